import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { CheckCircle2, CircleDashed } from "lucide-react";
import { get, type Schemas, type TaskSummary } from "../../api/client";
import { duration, Empty, Loading, Page, Trouble } from "../../parts/Show";
import { TaskRow } from "../tasks/TaskRow";
import { NewTask } from "./NewTask";

const NEEDS_A_PERSON = new Set(["question", "draft_pr", "declined", "unsolved", "stopped", "failed"]);
const MOST_SHOWN = 6;

export function Home() {
  const overview = useQuery({ queryKey: ["overview"], queryFn: get.overview });
  const tasks = useQuery({ queryKey: ["tasks", undefined, undefined], queryFn: () => get.tasks(undefined, undefined) });
  const items = tasks.data?.items ?? [];
  const active = items.filter((task) => task.state !== "done" && task.state !== "cancelled");
  const asking = items.filter((task) => task.state === "done" && NEEDS_A_PERSON.has(task.outcome ?? ""));
  const fine = items.filter((task) => task.state === "done" && !NEEDS_A_PERSON.has(task.outcome ?? ""));
  const jobs = overview.data?.jobs;
  return (
    <Page
      title="Home"
      aside={
        jobs && (
          <p className="text-soft">
            {jobs.leased} at work, {jobs.runnable + jobs.delayed + jobs.waiting} waiting
            {jobs.runnable > 0 && `, the first for ${duration(overview.data?.oldest_runnable_s ?? 0)}`}
            {jobs.dead > 0 && (
              <>
                {" · "}
                <Link to="/queue" className="text-bad underline">
                  {jobs.dead} given up
                </Link>
              </>
            )}
          </p>
        )
      }
    >
      {overview.data && <FirstSteps ready={overview.data.ready} />}
      <NewTask />
      {tasks.isError && <Trouble error={tasks.error} again={() => void tasks.refetch()} />}
      {tasks.isPending && <Loading rows={6} />}
      {tasks.isSuccess && items.length === 0 && (
        <Empty title="Nothing has been asked for yet">Label an issue on the forge, or describe what to do above.</Empty>
      )}
      {items.length > 0 && <Results items={items} />}
      <Section title="At work and in line" tasks={active} />
      <Section title="Wants a person" tasks={asking} />
      <Section title="Finished" tasks={fine} />
    </Page>
  );
}

/** What is still missing before an issue can become a pull request; nothing once all is there. */
function FirstSteps({ ready }: { ready: Schemas["Ready"] }) {
  if (ready.model && ready.forge && ready.repository) return null;
  const steps = [
    { done: ready.model, to: "/models", text: "Add a model", why: "one on a server of yours, or at a provider" },
    { done: ready.forge, to: "/repositories", text: "Give access to GitHub", why: "so that pull requests can be opened" },
    { done: ready.repository, to: "/repositories", text: "Add a repository", why: "whose issues are looked at for the label" },
  ] as const;
  return (
    <section aria-label="First steps" className="panel mb-4 px-4 py-3">
      <h2 className="mb-2 text-base font-semibold">Before the first pull request</h2>
      <ol className="space-y-1.5">
        {steps.map((step) => (
          <li key={step.text} className="flex items-baseline gap-2">
            {step.done ? <CheckCircle2 size={15} aria-label="done" className="shrink-0 self-center text-good" /> : <CircleDashed size={15} aria-label="to do" className="shrink-0 self-center text-warn" />}
            <span>
              {step.done ? (
                <span className="text-soft">{step.text}</span>
              ) : (
                <Link to={step.to} className="text-accent underline">
                  {step.text}
                </Link>
              )}{" "}
              <span className="text-soft">– {step.why}</span>
            </span>
          </li>
        ))}
      </ol>
    </section>
  );
}

function Section({ title, tasks }: { title: string; tasks: TaskSummary[] }) {
  if (tasks.length === 0) return null;
  return (
    <section className="mt-6">
      <h2 className="mb-2 text-base font-semibold">{title}</h2>
      <ul className="panel divide-y divide-line overflow-hidden">
        {tasks.slice(0, MOST_SHOWN).map((task) => (
          <TaskRow key={task.id} task={task} />
        ))}
      </ul>
      {tasks.length > MOST_SHOWN && (
        <Link to="/tasks" className="mt-1 inline-block text-accent underline">
          {tasks.length - MOST_SHOWN} more
        </Link>
      )}
    </section>
  );
}

/** How the newest Tasks ended, as one bar with its numbers in words. */
function Results({ items }: { items: TaskSummary[] }) {
  // A probe proves the way, and no change.
  const ended = items.filter((task) => task.state === "done" && task.outcome !== "probe_passed");
  const count = (is: (outcome: string) => boolean) => ended.filter((task) => is(task.outcome ?? "")).length;
  const parts = [
    { name: "proven", tone: "fill-good", value: count((outcome) => outcome === "ready_pr") },
    { name: "draft", tone: "fill-warn", value: count((outcome) => outcome === "draft_pr") },
    { name: "without a pull request", tone: "fill-bad", value: count((outcome) => !["ready_pr", "draft_pr"].includes(outcome)) },
  ];
  if (ended.length === 0) return null;
  let from = 0;
  return (
    <section className="panel mt-4 px-4 py-3">
      <h2 className="mb-2 font-medium">How the last {ended.length} ended</h2>
      <svg viewBox="0 0 100 4" preserveAspectRatio="none" className="h-2 w-full rounded" aria-hidden>
        {parts.map((part) => {
          const x = (100 * from) / ended.length;
          from += part.value;
          return <rect key={part.name} x={x} width={(100 * part.value) / ended.length} height="4" className={part.tone} />;
        })}
      </svg>
      <p className="mt-2 flex flex-wrap gap-x-5 text-soft">
        {parts.map((part) => (
          <span key={part.name} className="inline-flex items-center gap-1.5">
            <svg viewBox="0 0 8 8" className="size-2" aria-hidden>
              <circle cx="4" cy="4" r="4" className={part.tone} />
            </svg>
            {part.value} {part.name}
          </span>
        ))}
      </p>
    </section>
  );
}
