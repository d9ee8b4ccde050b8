import { AlertTriangle, CheckCircle2, CircleDashed, CircleSlash, Clock, HelpCircle, Loader2, Upload, XCircle } from "lucide-react";
import type { ReactNode } from "react";
import { useEffect, useState } from "react";
import { Failure, type TaskSummary } from "../api/client";

const STATES = {
  queued: { Icon: CircleDashed, word: "Queued", tone: "text-soft" },
  running: { Icon: Loader2, word: "Running", tone: "text-accent" },
  waiting: { Icon: Clock, word: "Waiting", tone: "text-warn" },
  publishing: { Icon: Upload, word: "Publishing", tone: "text-accent" },
  cancelled: { Icon: CircleSlash, word: "Cancelled", tone: "text-soft" },
} as const;

const OUTCOMES: Record<string, { Icon: typeof Clock; word: string; tone: string }> = {
  ready_pr: { Icon: CheckCircle2, word: "Proven", tone: "text-good" },
  draft_pr: { Icon: AlertTriangle, word: "Draft", tone: "text-warn" },
  question: { Icon: HelpCircle, word: "Asks you", tone: "text-warn" },
  no_change_needed: { Icon: CheckCircle2, word: "No change needed", tone: "text-soft" },
  probe_passed: { Icon: CheckCircle2, word: "Probe passed", tone: "text-good" },
  declined: { Icon: CircleSlash, word: "Declined", tone: "text-warn" },
  unsolved: { Icon: XCircle, word: "Unsolved", tone: "text-bad" },
  stopped: { Icon: XCircle, word: "Stopped", tone: "text-bad" },
  failed: { Icon: XCircle, word: "Failed", tone: "text-bad" },
};

/** Where a Task stands: an icon, a word and a colour, never the colour alone. */
export function Standing({ task }: { task: Pick<TaskSummary, "state" | "outcome"> }) {
  const shown =
    task.state === "done"
      ? (OUTCOMES[task.outcome ?? ""] ?? { Icon: CheckCircle2, word: "Done", tone: "text-soft" })
      : STATES[task.state];
  const { Icon, word, tone } = shown;
  return (
    <span className={`inline-flex items-center gap-1.5 whitespace-nowrap font-medium ${tone}`}>
      <Icon size={15} aria-hidden className={task.state === "running" ? "turns" : ""} />
      {word}
    </span>
  );
}

export function useNow(everyMs: number) {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

export function duration(seconds: number): string {
  const two = (whole: number, unit: string, rest: number, small: string) => `${whole} ${unit}${rest > 0 ? ` ${rest} ${small}` : ""}`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return two(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86_400) return two(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return `${Math.floor(whole / 86_400)} d`;
}

/** A day as people write it where they are. */
export const day = (at: string) => new Date(at).toLocaleDateString(undefined, { dateStyle: "medium" });

export function Ago({ at }: { at: string }) {
  const now = useNow(15_000);
  const seconds = Math.max(0, (now - Date.parse(at)) / 1000);
  const text = seconds < 45 ? "just now" : seconds < 3600 ? `${Math.max(1, Math.round(seconds / 60))} min ago` : `${duration(seconds).split(" ").slice(0, 2).join(" ")} ago`;
  return (
    <time dateTime={at} title={new Date(at).toLocaleString()} className="whitespace-nowrap tabular-nums">
      {text}
    </time>
  );
}

/** An error in full, with what to do: try again, and the number by which the operator finds it. */
export function Trouble({ error, again }: { error: unknown; again?: () => void }) {
  const failure = error instanceof Failure ? error : new Failure("Something went wrong", String(error), 0, null);
  return (
    <div role="alert" className="panel flex flex-wrap items-start gap-3 border-bad p-4">
      <XCircle size={18} className="mt-0.5 shrink-0 text-bad" aria-hidden />
      <div className="min-w-0 flex-1">
        <p className="font-semibold">{failure.title}</p>
        <p className="prose-text">{failure.detail}</p>
        {failure.fields.map((field) => (
          <p key={field.pointer} className="text-soft">
            <code className="font-mono">{field.pointer}</code> {field.detail}
          </p>
        ))}
        {failure.requestId && <p className="mt-1 font-mono text-xs break-all text-soft select-all">{failure.requestId}</p>}
      </div>
      {again && (
        <button type="button" className="button" onClick={again}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Empty({ title, children }: { title: string; children: ReactNode }) {
  return (
    <div className="panel px-6 py-5 text-center">
      <p className="font-semibold">{title}</p>
      <div className="mx-auto mt-1 max-w-prose text-soft">{children}</div>
    </div>
  );
}

/** Holds the place of what is being loaded. */
export function Loading({ rows = 5 }: { rows?: number }) {
  return (
    <div className="panel divide-y divide-line" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, row) => (
        <div key={row} className="flex items-center gap-4 px-4 py-4">
          <span className="h-3 w-20 rounded bg-raised" />
          <span className="h-3 flex-1 rounded bg-raised" />
        </div>
      ))}
    </div>
  );
}

export function Page({ title, aside, children }: { title: string; aside?: ReactNode; children: ReactNode }) {
  useEffect(() => {
    document.title = `${title} · Fettle`;
  }, [title]);
  return (
    <div className="mx-auto w-full max-w-6xl px-4 py-6 sm:px-8">
      <div className="mb-4 flex flex-wrap items-center gap-x-4 gap-y-2">
        <h1 className="min-w-0 flex-1 text-xl font-semibold tracking-tight">{title}</h1>
        {aside}
      </div>
      {children}
    </div>
  );
}
