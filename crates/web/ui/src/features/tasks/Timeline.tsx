import { AlertTriangle, Ban, Brain, CheckCircle2, CircleDot, GitBranch, GitPullRequest, MessageSquare, Play, RotateCcw, ShieldCheck, Terminal, XCircle } from "lucide-react";
import type { TaskEvent } from "../../api/client";
import { duration } from "../../parts/Show";
import { isWeb } from "./TaskRow";

const PHASES: Record<string, string> = {
  triage: "Understand",
  base_green: "Check the base",
  reproduce: "Reproduce",
  fix: "Fix",
  verify: "Verify",
  repair: "Repair",
};

const STEP_ICONS: Record<string, typeof Brain> = {
  base: GitBranch,
  model_call: Brain,
  tool_call: Terminal,
  verify: ShieldCheck,
  decide: CircleDot,
  message_in: MessageSquare,
};

/** The story of a Task, as it is told by its events. */
export function Timeline({ events, actor }: { events: TaskEvent[]; actor: string }) {
  let phase = "";
  return (
    <ol className="panel divide-y divide-line/60 px-4 py-1" aria-label="What happened">
      {events.map((event) => {
        const { Icon, tone, text, detail, url, aside } = told(event, actor);
        const run = "run" in event.what && event.what.type !== "run_chosen" && event.what.type !== "run_stopped" && event.what.run > 1 ? `Run ${event.what.run}` : null;
        const now = event.what.type === "step" ? `${run ? `${run}: ` : ""}${PHASES[event.what.phase] ?? event.what.phase}` : "";
        const heading = now !== "" && now !== phase ? now : null;
        if (event.what.type === "step") phase = now;
        return (
          <li key={event.seq} className="arrives py-1.5">
            {heading && <p className="mt-1 mb-1 text-xs font-semibold tracking-wide text-soft uppercase">{heading}</p>}
            <div className="flex gap-2.5">
              <Icon size={15} className={`mt-0.5 shrink-0 ${tone}`} aria-hidden />
              <span className="min-w-0 flex-1 prose-text">
                {run && <span className="mr-1.5 rounded bg-raised px-1.5 py-0.5 text-xs text-soft">{run}</span>}
                {text}
                {detail && <span className="text-soft"> {detail}</span>}
                {isWeb(url) && (
                  <>
                    {" "}
                    <a href={url} target="_blank" rel="noreferrer" className="text-accent underline">
                      open
                    </a>
                  </>
                )}
              </span>
              <span className="hidden text-xs whitespace-nowrap text-soft tabular-nums sm:inline">{aside}</span>
              <time dateTime={event.at} className="text-xs whitespace-nowrap text-soft tabular-nums">
                {new Date(event.at).toLocaleTimeString()}
              </time>
            </div>
          </li>
        );
      })}
    </ol>
  );
}

interface Told {
  Icon: typeof Brain;
  tone: string;
  text: string;
  detail?: string;
  url?: string | null;
  aside?: string;
}

const TRIGGERS: Record<string, string> = {
  label: "by the label on its issue",
  comment: "in a comment on its issue",
  api: "in the browser or over the API",
  cli: "on the command line",
  foreign: "by another program's message",
};

/** How an end looks: only what somebody hoped for is green. */
function end(outcome: string): Pick<Told, "Icon" | "tone"> {
  if (["failed", "unsolved", "stopped"].includes(outcome)) return { Icon: XCircle, tone: "text-bad" };
  if (["draft_pr", "question", "declined"].includes(outcome)) return { Icon: AlertTriangle, tone: "text-warn" };
  return { Icon: CheckCircle2, tone: "text-good" };
}

/** What an effect did, without the word for it once more. */
function effect(kind: string, detail: string): string {
  const word = kind.replaceAll("_", " ");
  return detail.toLowerCase().startsWith(word.toLowerCase()) ? detail : `${word} ${detail}`;
}

function told({ what }: TaskEvent, actor: string): Told {
  const plain = "text-soft";
  switch (what.type) {
    case "task_created":
      return { Icon: Play, tone: plain, text: `Asked for by ${actor}`, detail: `${TRIGGERS[what.trigger] ?? what.trigger}, as ${what.mode}` };
    case "task_joined":
      // What was said is in the messages; the event only tells of it.
      return { Icon: MessageSquare, tone: "text-accent", ...(what.message === "message" ? { text: `${what.by} wrote a message` } : { text: `${what.by} wrote:`, detail: what.message }) };
    case "run_leased":
      return { Icon: Play, tone: "text-accent", text: "Taken up", detail: `by ${what.worker}` };
    case "step": {
      const tokens = what.generated_tokens > 0 ? `${what.generated_tokens.toLocaleString()} tokens · ` : "";
      return {
        Icon: STEP_ICONS[what.kind] ?? CircleDot,
        tone: plain,
        text: what.title,
        aside: `${what.kind === "model_call" ? tokens : ""}${what.took_ms < 1000 ? `${what.took_ms} ms` : duration(what.took_ms / 1000)}`,
      };
    }
    case "run_failed":
      return { Icon: XCircle, tone: "text-bad", text: what.again ? "Failed, and will be tried again:" : "Failed:", detail: what.why };
    case "run_lapsed":
      return { Icon: XCircle, tone: "text-warn", text: "Its worker has gone silent", detail: what.again ? "and another one takes over" : "for the last time" };
    case "run_ended":
      return { ...end(what.outcome), text: `The work has ended: ${what.outcome.replaceAll("_", " ")}`, detail: what.level ? `(${what.level})` : undefined };
    case "effect_intended":
      return { Icon: GitPullRequest, tone: plain, text: "About to write:", detail: effect(what.effect, what.detail) };
    case "effect_settled":
      return { Icon: GitPullRequest, tone: "text-good", text: "Written:", detail: effect(what.effect, what.detail), url: what.url };
    case "publish_failed":
      return { Icon: XCircle, tone: "text-bad", text: what.again ? "Publishing failed, and will be tried again:" : "Publishing failed:", detail: what.why };
    case "cancel_requested":
      return { Icon: Ban, tone: "text-warn", text: `${what.by} asked to stop` };
    case "task_cancelled":
      return { Icon: Ban, tone: "text-warn", text: "Cancelled" };
    case "task_done":
      return { ...end(what.outcome), text: `Done: ${what.outcome.replaceAll("_", " ")}`, detail: what.pull_request ? `pull request #${what.pull_request}` : undefined };
    case "redriven":
      return { Icon: RotateCcw, tone: "text-accent", text: `${what.by} took it up again` };
    case "runs_added":
      return { Icon: Play, tone: "text-accent", text: `${what.by} lets others try, too:`, detail: what.models.map((model) => model ?? "the first model").join(", ") };
    case "run_chosen":
      return { Icon: CheckCircle2, tone: "text-good", text: `${what.by} chose run ${what.run}${what.draft ? ", as a draft" : ""}` };
    case "run_stopped":
      return { Icon: Ban, tone: "text-warn", text: `${what.by} stopped run ${what.run}`, detail: "the others go on" };
  }
}
