import { useQuery } from "@tanstack/react-query";
import { Boxes, CheckCircle2, HelpCircle, KeyRound, MessageSquare } from "lucide-react";
import { get, type Schemas } from "../../api/client";
import { Empty, Loading, Page, Trouble } from "../../parts/Show";

/** The models that Tasks can name, and how well each calls tools. */
export function Models() {
  const list = useQuery({ queryKey: ["models"], queryFn: get.models });
  return (
    <Page title="Models">
      {list.isError && <Trouble error={list.error} again={() => void list.refetch()} />}
      {list.isPending && <Loading rows={3} />}
      {list.isSuccess && list.data.items.length === 0 && (
        <Empty title="No model is configured">
          Add a <code className="font-mono">[[gateway.models]]</code> entry to the configuration: with <code className="font-mono">name</code> and <code className="font-mono">base_url</code>, or with{" "}
          <code className="font-mono">name</code> and <code className="font-mono">path</code> for one on this machine.
        </Empty>
      )}
      {list.isSuccess && list.data.items.length > 0 && (
        <ul className="panel divide-y divide-line" aria-label="Models">
          {list.data.items.map((model, index) => (
            <li key={model.name} className="grid gap-x-6 gap-y-1 px-4 py-3 sm:grid-cols-[1fr_1fr]">
              <div className="flex min-w-0 gap-3">
                <Boxes size={16} aria-hidden className="mt-0.5 shrink-0 text-soft" />
                <div className="min-w-0">
                  <p className="font-medium break-all">
                    {model.name}
                    {index === 0 && <span className="ml-2 rounded-full border border-accent px-2 text-xs font-normal text-accent">used unless a Task names another</span>}
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
                </div>
              </div>
              <Examined found={model.examined} name={model.name} />
            </li>
          ))}
        </ul>
      )}
    </Page>
  );
}

function Examined({ found, name }: { found: Schemas["Model"]["examined"]; name: string }) {
  if (!found) {
    return (
      <p className="text-soft max-sm:pl-7">
        <span className="inline-flex items-center gap-1.5">
          <HelpCircle size={14} aria-hidden /> Not examined.
        </span>{" "}
        Runs find out by themselves how it calls tools; <code className="font-mono text-xs break-all">fettle models check {name}</code> asks it beforehand.
      </p>
    );
  }
  if (!found.dialect) {
    return (
      <p className="max-sm:pl-7">
        <span className="inline-flex items-center gap-1.5 text-warn">
          <MessageSquare size={14} aria-hidden /> Only talks.
        </span>{" "}
        <span className="text-soft">{found.why}</span>
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
