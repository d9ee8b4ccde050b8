import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { ChevronRight, ExternalLink, RotateCcw, Square } from "lucide-react";
import { lazy, Suspense, useEffect, useRef, useState, type ReactNode } from "react";
import { get, post, type Task, type TaskEvent } from "../../api/client";
import { Ago, duration, Loading, Page, Standing, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";
import { Journal } from "./Journal";
import { ProofView } from "./ProofView";
import { useStory, type Saying, type Told } from "./live";
import { Sayings } from "./Sayings";
import { TABS, type Tab } from "./tabs";
import { isWeb } from "./TaskRow";
import { Talk } from "./Talk";
import { Timeline } from "./Timeline";

const Markdown = lazy(() => import("../../parts/Markdown"));
const Patch = lazy(() => import("../../parts/Patch"));
const Runs = lazy(() => import("./Runs"));
const route = getRouteApi("/tasks/$id");

export function TaskPage() {
  const { id } = route.useParams();
  return <OneTask key={id} id={id} />;
}

function OneTask({ id }: { id: string }) {
  const task = useQuery({ queryKey: ["tasks", "one", id], queryFn: () => get.task(id) });
  const { events, told, sayings } = useStory(id);
  const { tab = "story" } = route.useSearch();
  const navigate = route.useNavigate();
  // Each is a place of its own, to which a link and the way back lead; the first needs no name.
  const choose = (next: Tab) => void navigate({ search: next === "story" ? {} : { tab: next } });
  if (task.isError) {
    return (
      <Page title="Task">
        <Trouble error={task.error} again={() => void task.refetch()} />
      </Page>
    );
  }
  if (task.isPending) {
    return (
      <Page title="Task">
        <Loading rows={6} />
      </Page>
    );
  }
  const one = task.data;
  const change = one.run.result?.change;
  return (
    <Page title={one.title} aside={<Actions task={one} />}>
      <div className="mb-4 flex flex-wrap items-center gap-x-4 gap-y-1 text-soft">
        <Standing task={one} />
        <span>
          {one.repository ?? "no repository"}
          {one.issue != null &&
            (isWeb(one.issue_url) ? (
              <a href={one.issue_url} target="_blank" rel="noreferrer" className="ml-1 text-accent underline">
                #{one.issue}
              </a>
            ) : (
              ` #${one.issue}`
            ))}
        </span>
        <span>{one.mode}</span>
        <span>
          asked by {one.actor} <Ago at={one.created_at} />
        </span>
        {isWeb(one.pull_request?.url) && (
          <a href={one.pull_request?.url} target="_blank" rel="noreferrer" className="inline-flex items-center gap-1 font-medium text-accent underline">
            {one.pull_request?.draft ? "Draft pull request" : "Pull request"} #{one.pull_request?.number}
            <ExternalLink size={13} aria-hidden />
          </a>
        )}
      </div>
      {one.note && <p className="panel mb-4 px-4 py-2 text-warn">{one.note}</p>}
      {(one.run.result?.notes.length ?? 0) > 0 && (
        <div className="panel mb-4 space-y-2 p-4">
          {one.run.result?.notes.map((note) => (
            <Suspense key={note} fallback={<p>{note}</p>}>
              <Markdown text={note} />
            </Suspense>
          ))}
        </div>
      )}
      <Cost task={one} />
      <Tabs tab={tab} choose={choose} />
      <div role="tabpanel" id={`panel-${tab}`} aria-labelledby={`tab-${tab}`} className="mt-3">
        {tab === "story" && <Talk task={one} />}
        {tab === "story" && <Story task={one} events={events} told={told} sayings={sayings} />}
        {tab === "work" && (
          <>
            <Journal run={one.run.id} events={events} />
            <Sayings sayings={sayings.filter((saying) => saying.run === one.run.ordinal)} several={false} />
          </>
        )}
        {tab === "change" && (change ? <Change id={id} title={change.title} summary={change.summary} /> : <Nothing>There is no change, or not yet.</Nothing>)}
        {tab === "proof" && (change ? <ProofView id={id} /> : <Nothing>Nothing has been proven, or not yet.</Nothing>)}
        {tab === "runs" && (
          <Suspense fallback={<Loading rows={4} />}>
            <Runs task={one} />
          </Suspense>
        )}
        {tab === "issue" && (
          <div className="panel p-4">
            <Suspense fallback={<Loading rows={2} />}>{one.text.trim() ? <Markdown text={one.text} /> : <p className="text-soft">The issue has no text.</p>}</Suspense>
          </div>
        )}
      </div>
    </Page>
  );
}

const Nothing = ({ children }: { children: ReactNode }) => <p className="panel p-6 text-center text-soft">{children}</p>;

function Tabs({ tab, choose }: { tab: Tab; choose: (tab: Tab) => void }) {
  const place = useRef<HTMLDivElement>(null);
  const [more, setMore] = useState(false);
  useEffect(() => {
    const box = place.current;
    if (!box) return;
    // What is cut off fades out, so that nobody takes what is seen for all there is.
    const look = () => setMore(box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
    const sizes = new ResizeObserver(look);
    sizes.observe(box);
    box.addEventListener("scroll", look);
    return () => {
      sizes.disconnect();
      box.removeEventListener("scroll", look);
    };
  }, []);
  useEffect(() => {
    const [box, chosen] = [place.current, place.current?.querySelector<HTMLElement>(`#tab-${tab}`)];
    if (!box || !chosen) return;
    if (chosen.offsetLeft + chosen.offsetWidth > box.scrollLeft + box.clientWidth) box.scrollLeft = chosen.offsetLeft + chosen.offsetWidth - box.clientWidth;
    if (chosen.offsetLeft < box.scrollLeft) box.scrollLeft = chosen.offsetLeft;
  }, [tab]);
  return (
    <div className="relative">
      <div
        ref={place}
        role="tablist"
        aria-label="Parts of the Task"
        className="relative flex gap-1 max-sm:gap-0 overflow-x-auto border-b border-line whitespace-nowrap"
        onKeyDown={(event) => {
          const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
          const next = TABS[(TABS.findIndex((one) => one.id === tab) + step + TABS.length) % TABS.length];
          if (step === 0 || !next) return;
          choose(next.id);
          place.current?.querySelector<HTMLElement>(`#tab-${next.id}`)?.focus();
        }}
      >
        {TABS.map(({ id, label }) => (
          <button
            key={id}
            type="button"
            role="tab"
            id={`tab-${id}`}
            aria-selected={tab === id}
            aria-controls={tab === id ? `panel-${id}` : undefined}
            tabIndex={tab === id ? 0 : -1}
            className={`-mb-px shrink-0 border-b-2 px-3 py-2 max-sm:px-2 ${tab === id ? "border-accent font-medium" : "border-transparent text-soft"}`}
            onClick={() => choose(id)}
          >
            {label}
          </button>
        ))}
      </div>
      {more && (
        <span aria-hidden className="pointer-events-none absolute inset-y-0 right-0 flex w-14 items-center justify-end bg-linear-to-l from-ground from-40% to-transparent text-soft">
          <ChevronRight size={16} />
        </span>
      )}
    </div>
  );
}

/** Of all its Runs together. */
function Cost({ task }: { task: Task }) {
  const runs = useQuery({ queryKey: ["tasks", "runs", task.id, task.updated_at], queryFn: () => get.runs(task.id), placeholderData: (before) => before });
  const all = runs.data && runs.data.items.length > 1 ? runs.data.items : [task.run];
  const sum = (of: (run: Task["run"]) => number) => all.reduce((total, run) => total + of(run), 0);
  const models = [...new Set(all.map((run) => run.result?.model || run.model || task.model || "first configured"))];
  const facts: [string, string][] = [
    [models.length > 1 ? "Models" : "Model", models.join(", ")],
    ["Model calls", sum((run) => run.spent.calls).toLocaleString()],
    ["Tokens written", sum((run) => run.spent.generated_tokens).toLocaleString()],
    ["Tokens read", sum((run) => run.spent.prompt_tokens).toLocaleString()],
    ["Work", duration(sum((run) => run.spent.wall_s))],
    ["Failed tries", sum((run) => run.attempts + run.crashes).toLocaleString()],
  ];
  return (
    <div className="mb-4">
      <dl className="grid grid-cols-2 gap-px overflow-hidden rounded-[10px] border border-line bg-line sm:grid-cols-3 lg:grid-cols-6">
        {facts.map(([name, value]) => (
          <div key={name} className="bg-panel px-3 py-2">
            <dt className="text-xs text-soft">{name}</dt>
            <dd className="truncate font-medium tabular-nums" title={value}>
              {value}
            </dd>
          </div>
        ))}
      </dl>
      {all.length > 1 && <p className="mt-1 text-xs text-soft">Of its {all.length} Runs together; each alone is under Runs.</p>}
    </div>
  );
}

function Story({ task, events, told, sayings }: { task: Task; events: TaskEvent[]; told: Told; sayings: Saying[] }) {
  const several = events.some(({ what }) => "run" in what && what.run > 1);
  return (
    <>
      {events.length > 0 ? <Timeline events={events} actor={task.actor} /> : <Loading rows={4} />}
      <Sayings sayings={sayings} several={several} />
      <p role="status" className="mt-2 text-xs text-soft">
        {{ connecting: "Connecting…", live: "Live: what happens next appears here.", lost: "The connection is lost; trying again.", ended: "That is all that happened." }[told]}
      </p>
    </>
  );
}

function Change({ id, title, summary }: { id: string; title: string; summary: string }) {
  const patch = useQuery({ queryKey: ["patch", id], queryFn: () => get.patch(id), staleTime: Infinity });
  return (
    <div className="space-y-3">
      <div className="panel p-4">
        <h2 className="font-semibold">{title}</h2>
        <Suspense fallback={<p>{summary}</p>}>
          <Markdown text={summary} />
        </Suspense>
      </div>
      {patch.isError && <Trouble error={patch.error} again={() => void patch.refetch()} />}
      {patch.isPending && <Loading rows={6} />}
      {patch.isSuccess && (
        <Suspense fallback={<Loading rows={6} />}>
          {patch.data.cut && <p className="panel mb-2 px-4 py-2 text-warn">The change is larger than what is shown here; the pull request has all of it.</p>}
          <Patch diff={patch.data.diff} />
        </Suspense>
      )}
    </div>
  );
}

function Actions({ task }: { task: Task }) {
  const queries = useQueryClient();
  const navigate = useNavigate();
  const confirm = useRef<HTMLDialogElement>(null);
  const again = () => queries.invalidateQueries({ queryKey: ["tasks"] });
  const stop = useMutation({ mutationFn: () => post<Task>(`/api/v1/tasks/${task.id}/cancel`), onSettled: again });
  const retry = useMutation({
    mutationFn: () => post<Task>(`/api/v1/tasks/${task.id}/retry`),
    onSuccess: (made) => (made.id === task.id ? undefined : navigate({ to: "/tasks/$id", params: { id: made.id } })),
    onSettled: again,
  });
  const ended = task.state === "done" || task.state === "cancelled";
  const stuck = task.run.job_state === "dead";
  const { may } = useMe();
  return (
    <>
      {!ended && may("tasks.cancel") && (
        <button type="button" className="button" disabled={stop.isPending} onClick={() => confirm.current?.showModal()}>
          <Square size={14} aria-hidden /> Stop
        </button>
      )}
      {(task.state === "done" || stuck) && may("tasks.retry") && (
        <button type="button" className="button" disabled={retry.isPending} onClick={() => retry.mutate()}>
          <RotateCcw size={14} aria-hidden /> Try again
        </button>
      )}
      <dialog ref={confirm} aria-labelledby="stop-title" className="panel m-auto max-w-sm p-5 text-ink">
        <h2 id="stop-title" className="font-semibold">
          Stop this Task?
        </h2>
        <p className="mt-1 text-soft">Its worker is told at once. What it has done so far is not published.</p>
        <form method="dialog" className="mt-4 flex justify-end gap-2">
          <button className="button">Let it work</button>
          <button className="button primary" onClick={() => stop.mutate()}>
            Stop it
          </button>
        </form>
      </dialog>
      {(stop.error ?? retry.error) && (
        <div className="w-full">
          <Trouble error={stop.error ?? retry.error} />
        </div>
      )}
    </>
  );
}
