import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { AlertTriangle, CheckCircle2, KeyRound } from "lucide-react";
import { useState, type FormEvent } from "react";
import { get, put, remove, type Schemas } from "../../api/client";
import { Dialog, Field, FormTrouble } from "../../parts/Form";
import { Loading, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";

/** With what the forge is asked, in a line; tokens are entered here where the configuration has none. */
export function ForgeAccess() {
  const { may } = useMe();
  const queries = useQueryClient();
  const forge = useQuery({ queryKey: ["forge"], queryFn: get.forge });
  const [entering, setEntering] = useState(false);
  const [asking, setAsking] = useState(false);
  const renew = () => {
    void queries.invalidateQueries({ queryKey: ["forge"] });
    void queries.invalidateQueries({ queryKey: ["overview"] });
  };
  const gone = useMutation({ mutationFn: () => remove("/api/v1/forge/tokens"), onSettled: renew });
  if (forge.isPending) return <Loading rows={1} />;
  if (forge.isError) return <Trouble error={forge.error} again={() => void forge.refetch()} />;
  const { can_write, configured, lost, label, webhooks, read_token, write_token, address } = forge.data;
  const can = may("forge.change") && !configured;
  return (
    <section aria-label="Access to GitHub" className="panel mb-4 flex flex-wrap items-center gap-x-4 gap-y-2 px-4 py-3">
      {can_write ? <CheckCircle2 size={16} aria-hidden className="shrink-0 text-good" /> : <AlertTriangle size={16} aria-hidden className="shrink-0 text-warn" />}
      <div className="min-w-0 flex-1 basis-72">
        <p className="font-medium">{can_write ? "Pull requests can be opened" : "Nothing can be written to GitHub yet"}</p>
        <p className="text-soft">
          <span className="break-all">{address}</span>
          {can_write && (
            <>
              {" · "}the label <code className="font-mono">{label}</code> on an issue asks for work, {webhooks ? "and webhooks tell of it" : "and is looked for by the clock"}
            </>
          )}
          {write_token && !read_token && " · without a token that reads, only public repositories can be worked on"}
        </p>
        {lost && <p className="text-bad">A token that was entered cannot be used: {lost}. Enter it again.</p>}
        {!can_write && !can && <p className="text-soft">{configured ? "Its tokens stand in the configuration: set forge.write_token_file, or forge.app_id and forge.app_key_file." : "An admin can enter tokens here."}</p>}
      </div>
      {can && (
        <div className="flex flex-wrap gap-2">
          <button type="button" className={`button ${can_write ? "" : "primary"}`} onClick={() => setEntering(true)}>
            <KeyRound size={14} aria-hidden /> {write_token ? "Change tokens" : "Enter tokens"}
          </button>
          {(write_token || read_token) && (
            <button type="button" className="button" onClick={() => setAsking(true)}>
              Remove them
            </button>
          )}
        </div>
      )}
      {gone.isError && (
        <div className="w-full">
          <Trouble error={gone.error} />
        </div>
      )}
      {entering && <Enter close={() => setEntering(false)} done={() => { gone.reset(); renew(); }} />}
      {asking && (
        <Dialog title="Remove the tokens?" close={() => setAsking(false)}>
          <p className="text-soft">Nothing is read from or written to GitHub with them from then on. Tasks at work wait for others.</p>
          <form method="dialog" className="mt-4 flex justify-end gap-2">
            <button className="button">Keep them</button>
            <button className="button primary" onClick={() => gone.mutate()}>
              Remove them
            </button>
          </form>
        </Dialog>
      )}
    </section>
  );
}

const POINTERS = ["/read", "/write"];

function Enter({ close, done }: { close: () => void; done: () => void }) {
  const [write, setWrite] = useState("");
  const [read, setRead] = useState("");
  const save = useMutation({
    mutationFn: () => put<Schemas["TokensTaken"]>("/api/v1/forge/tokens", { write: write.trim(), ...(read.trim() ? { read: read.trim() } : {}) }),
    onSuccess: done,
  });
  if (save.data) {
    return (
      <Dialog title="GitHub knows them" close={close}>
        <p>
          Pull requests will be opened as <strong>{save.data.login}</strong>.
        </p>
        <div className="mt-4 flex justify-end">
          <button type="button" className="button primary" autoFocus onClick={close}>
            Good
          </button>
        </div>
      </Dialog>
    );
  }
  return (
    <Dialog title="Tokens for GitHub" close={close}>
      <form
        className="space-y-4"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          save.mutate();
        }}
      >
        <p className="text-soft">Two fine-grained personal access tokens, best of an account of its own. Both are kept sealed and never shown again.</p>
        <Field
          label="The one that writes"
          pointer="/write"
          error={save.error}
          required
          autoFocus
          type="password"
          autoComplete="off"
          hint="Contents, Issues and Pull requests: read and write. No agent and no worker ever has it."
          value={write}
          onChange={(event) => setWrite(event.target.value)}
        />
        <Field
          label="The one that reads"
          pointer="/read"
          error={save.error}
          type="password"
          autoComplete="off"
          hint="Contents: read-only. Workers clone with it; without one, only public repositories can be worked on."
          value={read}
          onChange={(event) => setRead(event.target.value)}
        />
        <FormTrouble error={save.error} pointers={POINTERS} />
        <div className="flex justify-end gap-2">
          <button type="button" className="button" onClick={close}>
            Not now
          </button>
          <button type="submit" className="button primary" disabled={save.isPending}>
            Use them
          </button>
        </div>
      </form>
    </Dialog>
  );
}
