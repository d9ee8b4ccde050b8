import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Boxes, CheckCircle2, HelpCircle, KeyRound, Loader2, MessageSquare, Pencil, Plus, Trash2, XCircle } from "lucide-react";
import { useState } from "react";
import { get, post, remove, type Model, type Schemas } from "../../api/client";
import { Dialog } from "../../parts/Form";
import { Empty, Loading, Page, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";
import { EditModel } from "./EditModel";

/** The models that Tasks can name, and how well each calls tools. */
export function Models() {
  const { may } = useMe();
  const list = useQuery({ queryKey: ["models"], queryFn: get.models });
  const [adding, setAdding] = useState(false);
  const can = may("models.change");
  return (
    <Page
      title="Models"
      aside={
        can && (
          <button type="button" className="button primary" onClick={() => setAdding(true)}>
            <Plus size={14} aria-hidden /> Add a model
          </button>
        )
      }
    >
      {list.isError && <Trouble error={list.error} again={() => void list.refetch()} />}
      {list.isPending && <Loading rows={3} />}
      {list.isSuccess && list.data.items.length === 0 && (
        <Empty title="No model yet">
          {can ? "Add one that a server or a provider has" : "An admin can add one that a server or a provider has"}. Models that run on this machine stand in the configuration, as <code className="font-mono">[[gateway.models]]</code> with a{" "}
          <code className="font-mono">path</code>.
        </Empty>
      )}
      {list.isSuccess && list.data.items.length > 0 && (
        <ul className="panel divide-y divide-line" aria-label="Models">
          {list.data.items.map((model, index) => (
            <Row key={model.name} model={model} isDefault={index === 0} />
          ))}
        </ul>
      )}
      {adding && <EditModel close={() => setAdding(false)} />}
    </Page>
  );
}

function Row({ model, isDefault }: { model: Model; isDefault: boolean }) {
  const { may } = useMe();
  const queries = useQueryClient();
  const [editing, setEditing] = useState(false);
  const [asking, setAsking] = useState(false);
  const at = `/api/v1/models/${encodeURIComponent(model.name)}`;
  const tried = useMutation({ mutationFn: () => post<Schemas["TriedModel"]>(`${at}/try`) });
  const gone = useMutation({ mutationFn: () => remove(at), onSettled: () => queries.invalidateQueries({ queryKey: ["models"] }) });
  return (
    <li className="grid gap-x-6 gap-y-2 px-4 py-3 sm:grid-cols-[1fr_1fr]">
      <div className="flex min-w-0 gap-3">
        <Boxes size={16} aria-hidden className="mt-0.5 shrink-0 text-soft" />
        <div className="min-w-0">
          <p className="font-medium break-all">
            {model.name}
            {isDefault && <span className="ml-2 rounded-full border border-accent px-2 text-xs font-normal text-accent">used unless a Task names another</span>}
          </p>
          <p className="break-all text-soft">
            {model.here ? "on this machine" : (model.server ?? model.kind)}
            {model.known_as && ` as ${model.known_as}`}
          </p>
          <p className="text-soft">
            {model.kind}, {model.context_tokens.toLocaleString()} tokens of context
            {model.parallel != null && `, ${model.parallel} at a time`}
            {model.pinned && ", stays loaded"}
            {model.with_key && (
              <span className="ml-2 inline-flex items-center gap-1">
                <KeyRound size={12} aria-hidden /> with a key
              </span>
            )}
          </p>
          {model.key_lost && <p className="text-bad">Its key cannot be used: {model.key_lost}. Enter it again.</p>}
        </div>
      </div>
      <Examined found={model.examined} name={model.name} />
      <div className="flex flex-wrap items-center gap-2 sm:col-span-2 sm:pl-7">
        {may("models.try") && (
          <button type="button" className="button" aria-label={`Try ${model.name}`} disabled={tried.isPending} onClick={() => tried.mutate()}>
            {tried.isPending ? <Loader2 size={14} aria-hidden className="turns" /> : <MessageSquare size={14} aria-hidden />} Try
          </button>
        )}
        {model.added && may("models.change") && (
          <>
            <button type="button" className="button" aria-label={`Change ${model.name}`} onClick={() => setEditing(true)}>
              <Pencil size={14} aria-hidden /> Change
            </button>
            <button type="button" className="button" aria-label={`Remove ${model.name}`} onClick={() => setAsking(true)}>
              <Trash2 size={14} aria-hidden /> Remove
            </button>
          </>
        )}
        <div role="status" className="min-w-0 flex-1 basis-60">
          {tried.isPending && <p className="text-soft">Asking it for one word…</p>}
          {tried.data && <Tried found={tried.data} />}
        </div>
      </div>
      {(tried.isError || gone.isError) && (
        <div className="sm:col-span-2">
          <Trouble error={tried.error ?? gone.error} />
        </div>
      )}
      {editing && <EditModel model={model} close={() => setEditing(false)} />}
      {asking && (
        <Dialog title={`Remove the model “${model.name}”?`} close={() => setAsking(false)}>
          <p className="text-soft">Its key is thrown away. Runs that ask for it wait until there is one of that name again.</p>
          <form method="dialog" className="mt-4 flex justify-end gap-2">
            <button className="button">Keep it</button>
            <button className="button primary" onClick={() => gone.mutate()}>
              Remove it
            </button>
          </form>
        </Dialog>
      )}
    </li>
  );
}

function Tried({ found }: { found: Schemas["TriedModel"] }) {
  const took = found.milliseconds < 1000 ? `${found.milliseconds} ms` : `${(found.milliseconds / 1000).toFixed(1)} s`;
  return found.answered ? (
    <p>
      <span className="inline-flex items-center gap-1.5 font-medium text-good">
        <CheckCircle2 size={14} aria-hidden /> Answered in {took}
      </span>{" "}
      <span className="break-words text-soft">{found.text ? `“${found.text}”` : "without a word"}</span>
    </p>
  ) : (
    <p>
      <span className="inline-flex items-center gap-1.5 font-medium text-bad">
        <XCircle size={14} aria-hidden /> No answer
      </span>{" "}
      <span className="break-words text-soft">{found.why}</span>
    </p>
  );
}

/** Breaks between words and, where the name is long, within it. */
function Check({ name }: { name: string }) {
  return (
    <code className="font-mono text-xs">
      fettle models check <span className="[overflow-wrap:anywhere]">{name}</span>
    </code>
  );
}

function Examined({ found, name }: { found: Schemas["Model"]["examined"]; name: string }) {
  if (!found) {
    return (
      <p className="text-soft max-sm:pl-7">
        <span className="inline-flex items-center gap-1.5">
          <HelpCircle size={14} aria-hidden /> Not examined.
        </span>{" "}
        Runs find out by themselves how it calls tools; <Check name={name} /> asks it beforehand.
      </p>
    );
  }
  if (!found.dialect) {
    return (
      <p className="max-sm:pl-7">
        <span className="inline-flex items-center gap-1.5 text-warn">
          <MessageSquare size={14} aria-hidden /> Only talks.
        </span>{" "}
        <span className="text-soft">
          It can be talked to, but Runs that ask it fail at once: too few of its calls of tools could be read{found.why && ` (${found.why})`}. Another chat template of its server helps at times, and a model that was made for calls always;
          then <Check name={name} /> asks it again.
        </span>
      </p>
    );
  }
  const share = found.asked ? (found.right ?? 0) / found.asked : 0;
  const tone = share >= 0.9 ? "text-good" : "text-warn";
  return (
    <div className="max-sm:pl-7">
      <p className={`inline-flex items-center gap-1.5 font-medium ${tone}`}>
        <CheckCircle2 size={14} aria-hidden /> {found.right} of {found.asked} right
      </p>
      <svg viewBox="0 0 100 3" preserveAspectRatio="none" className="my-1 h-1.5 w-full rounded" aria-hidden>
        <rect width="100" height="3" className="fill-raised" />
        <rect width={100 * share} height="3" className={share >= 0.9 ? "fill-good" : "fill-warn"} />
      </svg>
      <p className="text-soft">
        calls tools as {found.dialect}, edits by {found.edits}
      </p>
    </div>
  );
}
