import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { ExternalLink, RotateCcw, Square } from "lucide-react";
import { lazy, Suspense, useEffect, useRef, useState, type ReactNode } from "react";
import { get, post, type Task, type TaskEvent } from "../../api/client";
import { follow, type Link as Wire } from "../../api/live";
import { Ago, duration, Loading, Page, Standing, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";
import { Journal } from "./Journal";
import { ProofView } from "./ProofView";
import { isWeb } from "./TaskRow";
import { Talk } from "./Talk";
import { Timeline } from "./Timeline";

const Markdown = lazy(() => import("../../parts/Markdown"));
const Patch = lazy(() => import("../../parts/Patch"));
const Runs = lazy(() => import("./Runs"));
const route = getRouteApi("/tasks/$id");

const TABS = [
  { id: "story", label: "Story" },
  { id: "work", label: "Work" },
  { id: "change", label: "Change" },
  { id: "proof", label: "Proof" },
  { id: "runs", label: "Runs" },
  { id: "issue", label: "Issue" },
] as const;
type Tab = (typeof TABS)[number]["id"];

export function TaskPage() {
  const { id } = route.useParams();
  return <OneTask key={id} id={id} />;
}

function OneTask({ id }: { id: string }) {
  const task = useQuery({ queryKey: ["tasks", "one", id], queryFn: () => get.task(id) });
  const { events, link } = useStory(id);
  const [tab, setTab] = useState<Tab>("story");
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
      <Tabs tab={tab} choose={setTab} />
      <div role="tabpanel" id={`panel-${tab}`} aria-labelledby={`tab-${tab}`} className="mt-3">
        {tab === "story" && <Talk task={one} />}
        {tab === "story" && <Story events={events} link={link} />}
        {tab === "work" && <Journal run={one.run.id} events={events} />}
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
  return (
    <div
      ref={place}
      role="tablist"
      aria-label="Parts of the Task"
      className="flex gap-1 overflow-x-auto border-b border-line whitespace-nowrap"
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
          className={`-mb-px border-b-2 px-3 py-2 ${tab === id ? "border-accent font-medium" : "border-transparent text-soft"}`}
          onClick={() => choose(id)}
        >
          {label}
        </button>
      ))}
    </div>
  );
}

function Cost({ task }: { task: Task }) {
  const { spent, result, attempts, crashes } = task.run;
  const facts: [string, string][] = [
    ["Model", result?.model ?? task.model ?? "first configured"],
    ["Model calls", spent.calls.toLocaleString()],
    ["Tokens written", spent.generated_tokens.toLocaleString()],
    ["Tokens read", spent.prompt_tokens.toLocaleString()],
    ["Work", duration(spent.wall_s)],
    ["Failed tries", String(attempts + crashes)],
  ];
  return (
    <dl className="mb-4 grid grid-cols-2 gap-px overflow-hidden rounded-[10px] border border-line bg-line sm:grid-cols-3 lg:grid-cols-6">
      {facts.map(([name, value]) => (
        <div key={name} className="bg-panel px-3 py-2">
          <dt className="text-xs text-soft">{name}</dt>
          <dd className="truncate font-medium tabular-nums" title={value}>
            {value}
          </dd>
        </div>
      ))}
    </dl>
  );
}

function Story({ events, link }: { events: TaskEvent[]; link: Wire }) {
  return (
    <>
      {events.length > 0 ? <Timeline events={events} /> : <Loading rows={4} />}
      <p role="status" className="mt-2 text-xs text-soft">
        {{ connecting: "Connecting…", live: "Live: what happens next appears here.", lost: "The connection is lost; trying again.", ended: "That is all that happened." }[link]}
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

/** The Task's events from the first one on, in order; they grow while they are looked at. */
function useStory(id: string): { events: TaskEvent[]; link: Wire } {
  const queries = useQueryClient();
  const [events, setEvents] = useState<TaskEvent[]>([]);
  const [link, setLink] = useState<Wire>("connecting");
  useEffect(() => {
    const stop = new AbortController();
    setEvents([]);
    void follow(`/api/v1/tasks/${encodeURIComponent(id)}/events`, 0, stop.signal, {
      event: (event) => setEvents((before) => [...before, event]),
      link: (now) => {
        setLink(now);
        if (now === "ended") void queries.invalidateQueries({ queryKey: ["tasks", "one", id] });
      },
    });
    return () => stop.abort();
  }, [id, queries]);
  return { events, link };
}
