import { useQuery } from "@tanstack/react-query";
import { AlertTriangle, CheckCircle2, CircleDashed, Loader2, ScrollText, X, XCircle } from "lucide-react";
import { useState } from "react";
import { get, type Schemas } from "../../api/client";
import { Ago, Empty, Loading, Trouble } from "../../parts/Show";

const OFTEN_MS = 5_000;
const LINES = 200;
const MOST_LINES = 2_000;

type Pod = Schemas["Pod"];

function standing(pod: Pod) {
  if (pod.phase === "Succeeded") return { Icon: CheckCircle2, word: "Ended", tone: "text-soft" };
  if (pod.phase === "Failed") return { Icon: XCircle, word: "Failed", tone: "text-bad" };
  if (pod.phase === "Running" && pod.why) return { Icon: AlertTriangle, word: "Running", tone: "text-warn" };
  if (pod.phase === "Running") return { Icon: Loader2, word: pod.ready ? "At work" : "Running", tone: pod.ready ? "text-accent" : "" };
  return { Icon: CircleDashed, word: pod.phase, tone: pod.why ? "text-warn" : "" };
}

/** Where Fettle runs in a cluster: the pods that workers run in, and what they have logged. */
export function Pods() {
  const pods = useQuery({ queryKey: ["pods"], queryFn: get.pods, refetchInterval: OFTEN_MS });
  const [open, setOpen] = useState<string | null>(null);
  return (
    <section aria-labelledby="pods">
      <h2 id="pods" className="mt-8 mb-2 text-base font-semibold">
        Pods of workers
      </h2>
      {pods.isError && <Trouble error={pods.error} again={() => void pods.refetch()} />}
      {pods.isPending && <Loading rows={2} />}
      {pods.isSuccess && pods.data.items.length === 0 && (
        <Empty title="No worker has a pod now">One is started when something can begin, unless workers are switched off or the cluster has no room.</Empty>
      )}
      {pods.isSuccess && pods.data.items.length > 0 && (
        <ul className="panel divide-y divide-line" aria-label="Pods of workers">
          {pods.data.items.map((pod) => (
            <One key={pod.name} pod={pod} open={open === pod.name} toggle={() => setOpen(open === pod.name ? null : pod.name)} />
          ))}
        </ul>
      )}
      {pods.data?.cut && <p className="mt-2 text-soft">There are more; these are as many as are listed.</p>}
    </section>
  );
}

function One({ pod, open, toggle }: { pod: Pod; open: boolean; toggle: () => void }) {
  const { Icon, word, tone } = standing(pod);
  return (
    <li className="px-4 py-2.5">
      <div className="flex flex-wrap items-baseline gap-x-4 gap-y-1">
        <span className={`inline-flex w-24 items-center gap-1.5 font-medium ${tone}`}>
          <Icon size={14} aria-hidden /> {word}
        </span>
        <span className="min-w-0 flex-1 basis-64 font-mono text-xs break-all">{pod.name}</span>
        <span className="text-soft">{pod.node ? `on ${pod.node}` : "on no node yet"}</span>
        <span className={`tabular-nums ${pod.restarts > 0 ? "text-warn" : "text-soft"}`}>{pod.restarts === 1 ? "1 restart" : `${pod.restarts} restarts`}</span>
        <span className="text-soft">
          <Ago at={pod.created_at} />
        </span>
        <button type="button" className="button self-center" aria-expanded={open} aria-label={`Log of ${pod.name}`} onClick={toggle}>
          <ScrollText size={14} aria-hidden /> Log
        </button>
      </div>
      {pod.why && <p className="mt-0.5 prose-text text-warn sm:pl-28">{pod.why}</p>}
      {open && <Log pod={pod.name} close={toggle} />}
    </li>
  );
}

function Log({ pod, close }: { pod: string; close: () => void }) {
  const [lines, setLines] = useState(LINES);
  const log = useQuery({ queryKey: ["pods", pod, "log", lines], queryFn: () => get.podLog(pod, lines), refetchInterval: OFTEN_MS });
  return (
    <section
      aria-label={`Log of ${pod}`}
      className="mt-2"
      onKeyDown={(event) => {
        if (event.key === "Escape") close();
      }}
    >
      {log.isError && <Trouble error={log.error} again={() => void log.refetch()} />}
      {log.isPending && <Loading rows={3} />}
      {log.isSuccess && (
        <pre className="max-h-96 overflow-auto rounded-[7px] bg-raised p-3 font-mono text-xs prose-text whitespace-pre-wrap" tabIndex={0} aria-label={`What ${pod} has logged`}>
          {log.data.text || "Nothing was logged yet."}
        </pre>
      )}
      <div className="mt-2 flex flex-wrap items-center gap-x-4 gap-y-2">
        <span className="min-w-0 flex-1 basis-64 text-soft">
          {log.data?.cut && "The first of these lines are left out: they are too long together. "}
          {log.data && log.data.hidden_lines > 0 && `Not shown, since they may hold a secret: ${log.data.hidden_lines} ${log.data.hidden_lines === 1 ? "line" : "lines"}.`}
        </span>
        {lines < MOST_LINES && (
          <button type="button" className="button" onClick={() => setLines(MOST_LINES)}>
            More lines
          </button>
        )}
        <button type="button" className="button" onClick={close}>
          <X size={14} aria-hidden /> Close the log
        </button>
      </div>
    </section>
  );
}
