import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { KeyRound, Plus } from "lucide-react";
import { useState, type FormEvent } from "react";
import { get, post, remove, type ApiKey, type Schemas } from "../../api/client";
import { Copy, Dialog, Field, FormTrouble } from "../../parts/Form";
import { Ago, day, Empty, Loading, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";

const SCOPES = [
  { name: "read", text: "Read", why: "look at Tasks, queue and models" },
  { name: "write", text: "Write", why: "also start, stop and retry Tasks" },
  { name: "admin", text: "Admin", why: "everything that your role may" },
] as const;

const LIVES = [
  { days: 30, text: "30 days" },
  { days: 90, text: "90 days" },
  { days: 365, text: "a year" },
  { days: null, text: "until it is removed" },
] as const;

/** One's own keys for programs. */
export function ApiKeys() {
  const { may, why } = useMe();
  const keys = useQuery({ queryKey: ["api-keys", "own"], queryFn: () => get.apiKeys() });
  const [making, setMaking] = useState(false);
  return (
    <>
      {keys.isError && <Trouble error={keys.error} again={() => void keys.refetch()} />}
      {keys.isPending && <Loading rows={2} />}
      {keys.isSuccess && keys.data.items.length === 0 && <Empty title="No API keys">A program sends one as `X-API-Key` and acts as you, as far as the key reaches.</Empty>}
      {keys.isSuccess && keys.data.items.length > 0 && (
        <ul className="panel divide-y divide-line" aria-label="API keys">
          {keys.data.items.map((one) => (
            <Row key={one.id} item={one} />
          ))}
        </ul>
      )}
      {may("api_keys.create") ? (
        <button type="button" className="button mt-3" onClick={() => setMaking(true)}>
          <Plus size={14} aria-hidden /> New API key
        </button>
      ) : (
        <p className="mt-2 text-soft">{why}</p>
      )}
      {making && <NewKey close={() => setMaking(false)} />}
    </>
  );
}

/** The keys of somebody else, for admins, who can remove them and not make any. */
export function KeysOf({ user, name }: { user: string; name: string }) {
  const keys = useQuery({ queryKey: ["api-keys", user], queryFn: () => get.apiKeys(user) });
  if (keys.isError) return <Trouble error={keys.error} again={() => void keys.refetch()} />;
  if (keys.isPending) return <Loading rows={1} />;
  if (keys.data.items.length === 0) return <p className="text-soft">No API keys.</p>;
  return (
    <ul className="panel divide-y divide-line" aria-label={`API keys of ${name}`}>
      {keys.data.items.map((one) => (
        <Row key={one.id} item={one} user={user} />
      ))}
    </ul>
  );
}

function Row({ item, user }: { item: ApiKey; user?: string }) {
  const queries = useQueryClient();
  const [asking, setAsking] = useState(false);
  const end = useMutation({
    mutationFn: () => remove(`${user ? `/api/v1/users/${encodeURIComponent(user)}/keys` : "/api/v1/api-keys"}/${encodeURIComponent(item.id)}`),
    onSettled: () => queries.invalidateQueries({ queryKey: ["api-keys"] }),
  });
  const over = item.expires_at != null && Date.parse(item.expires_at) <= Date.now();
  return (
    <li className="flex flex-wrap items-center gap-x-4 gap-y-1 px-4 py-2.5">
      <KeyRound size={16} aria-hidden className="shrink-0 text-soft" />
      <div className="min-w-0 flex-1 basis-60">
        <p className="truncate font-medium">
          {item.name} <span className="font-normal text-soft">{item.scopes.join(", ")}</span>
        </p>
        <p className="text-soft">
          <code className="font-mono text-xs">{item.prefix}…</code>
          {" · "}
          {item.last_used_at ? (
            <>
              used <Ago at={item.last_used_at} />
            </>
          ) : (
            "never used"
          )}
          {" · "}
          <span className={over ? "text-bad" : ""}>{item.expires_at ? `${over ? "ended" : "ends"} ${day(item.expires_at)}` : "does not end"}</span>
        </p>
      </div>
      <button type="button" className="button" aria-label={`Remove the key ${item.name}`} onClick={() => setAsking(true)}>
        Remove
      </button>
      {end.isError && (
        <div className="w-full">
          <Trouble error={end.error} />
        </div>
      )}
      {asking && (
        <Dialog title={`Remove the key “${item.name}”?`} close={() => setAsking(false)}>
          <p className="text-soft">Programs that use it are refused from then on. It cannot be brought back.</p>
          <form method="dialog" className="mt-4 flex justify-end gap-2">
            <button className="button">Keep it</button>
            <button className="button primary" onClick={() => end.mutate()}>
              Remove it
            </button>
          </form>
        </Dialog>
      )}
    </li>
  );
}

const POINTERS = ["/name", "/scopes"];

function NewKey({ close }: { close: () => void }) {
  const queries = useQueryClient();
  const [name, setName] = useState("");
  const [scope, setScope] = useState<string>("read");
  const [days, setDays] = useState<number | null>(90);
  const make = useMutation({
    mutationFn: () => post<Schemas["MadeApiKey"]>("/api/v1/api-keys", { name: name.trim(), scopes: [scope], ...(days ? { expires_in_days: days } : {}) }),
    onSuccess: () => queries.invalidateQueries({ queryKey: ["api-keys"] }),
  });
  if (make.data) {
    return (
      <Dialog title={`The key “${make.data.name}”`} close={close}>
        <p className="mb-3 text-warn">It is shown this once. Keep it where secrets are kept.</p>
        <Copy text={make.data.key} name="the new key" />
        <div className="mt-4 flex justify-end">
          <button type="button" className="button primary" onClick={close}>
            I have it
          </button>
        </div>
      </Dialog>
    );
  }
  return (
    <Dialog title="New API key" close={close}>
      <form
        className="space-y-4"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          make.mutate();
        }}
      >
        <Field label="Name" pointer="/name" error={make.error} required autoFocus placeholder="What it is for" value={name} onChange={(event) => setName(event.target.value)} />
        <fieldset>
          <legend className="mb-1 font-medium">It may</legend>
          {SCOPES.map((one) => (
            <label key={one.name} className="flex items-baseline gap-2 py-0.5">
              <input type="radio" name="scope" value={one.name} checked={scope === one.name} onChange={() => setScope(one.name)} />
              <span>
                {one.text} <span className="text-soft">{one.why}</span>
              </span>
            </label>
          ))}
        </fieldset>
        <label className="block">
          <span className="mb-1 block font-medium">It lasts</span>
          <select className="field" value={days ?? ""} onChange={(event) => setDays(event.target.value ? Number(event.target.value) : null)}>
            {LIVES.map((one) => (
              <option key={one.text} value={one.days ?? ""}>
                {one.text}
              </option>
            ))}
          </select>
        </label>
        <FormTrouble error={make.error} pointers={POINTERS} />
        <div className="flex justify-end gap-2">
          <button type="button" className="button" onClick={close}>
            Not now
          </button>
          <button type="submit" className="button primary" disabled={make.isPending}>
            Make the key
          </button>
        </div>
      </form>
    </Dialog>
  );
}
