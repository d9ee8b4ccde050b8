import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { CheckCircle2, CircleDashed, Clock, HardHat, RotateCcw, XCircle } from "lucide-react";
import { get, post, type Schemas } from "../../api/client";
import { useMe } from "../access/me";
import { Pods } from "./Pods";
import { Ago, duration, Empty, Loading, Page, Trouble, useNow } from "../../parts/Show";

const OFTEN_MS = 5_000;
/** Of each job at work, which are few. */
const SELDOM_MS = 15_000;

export function Queue() {
  const overview = useQuery({ queryKey: ["overview"], queryFn: get.overview, refetchInterval: OFTEN_MS });
  const queue = useInfiniteQuery({
    queryKey: ["queue"],
    queryFn: ({ pageParam }) => get.queue(pageParam),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last) => last.next ?? undefined,
    refetchInterval: OFTEN_MS,
  });
  const open = queue.data?.pages.flatMap((page) => page.items) ?? [];
  const dead = useQuery({ queryKey: ["dead-jobs"], queryFn: get.deadJobs });
  const clocks = useQuery({ queryKey: ["reconcilers"], queryFn: get.reconcilers, refetchInterval: OFTEN_MS });
  const jobs = overview.data?.jobs;
  return (
    <Page title="Workers & queue">
      {overview.isError && <Trouble error={overview.error} again={() => void overview.refetch()} />}
      {overview.isPending && <Loading rows={1} />}
      {overview.data && jobs && (
        <dl className="grid grid-cols-2 gap-px overflow-hidden rounded-[10px] border border-line bg-line sm:grid-cols-3 lg:grid-cols-6">
          <Number name="Can begin now" value={jobs.runnable} hint={jobs.runnable > 0 ? `first for ${duration(overview.data.oldest_runnable_s)}` : "nobody waits"} />
          <Number name="At work" value={jobs.leased} hint="held by a worker" />
          <Number name="Later" value={jobs.delayed} hint="after a pause" />
          <Number name="Waiting" value={jobs.waiting} hint="for something to happen" />
          <Number name="Given up" value={jobs.dead} hint={jobs.dead > 0 ? "a person decides" : "none"} bad={jobs.dead > 0} />
          <Number name="Unread messages" value={overview.data.open_deliveries} hint="from the forge" />
        </dl>
      )}
      <h2 className="mt-8 mb-2 text-base font-semibold">Who is at work</h2>
      {queue.isError && <Trouble error={queue.error} again={() => void queue.refetch()} />}
      {queue.isPending && <Loading rows={2} />}
      {queue.isSuccess && <Workers jobs={open} />}
      {overview.data?.shows_pods && <Pods />}
      <h2 className="mt-8 mb-2 text-base font-semibold">What waits</h2>
      {queue.isPending && <Loading rows={2} />}
      {queue.isSuccess && <Waiting jobs={open} />}
      {queue.hasNextPage && (
        <button type="button" className="button mt-2" disabled={queue.isFetchingNextPage} onClick={() => void queue.fetchNextPage()}>
          Show more of what waits
        </button>
      )}
      <h2 className="mt-8 mb-2 text-base font-semibold">Given up</h2>
      {dead.isError && <Trouble error={dead.error} again={() => void dead.refetch()} />}
      {dead.isPending && <Loading rows={2} />}
      {dead.isSuccess &&
        (dead.data.items.length === 0 ? (
          <Empty title="Nothing was given up">A job that keeps failing ends here, with its last words, until somebody takes it up again.</Empty>
        ) : (
          <ul className="panel divide-y divide-line">
            {dead.data.items.map((job) => (
              <Dead key={job.job_id} job={job} />
            ))}
          </ul>
        ))}
      <h2 className="mt-8 mb-2 text-base font-semibold">What runs by the clock</h2>
      {clocks.isError && <Trouble error={clocks.error} again={() => void clocks.refetch()} />}
      {clocks.isPending && <Loading rows={3} />}
      {clocks.isSuccess && (
        <ul className="panel divide-y divide-line">
          {clocks.data.items.map((one) => {
            const Icon = one.last_outcome === "ok" ? CheckCircle2 : one.last_outcome === "failed" ? XCircle : CircleDashed;
            const tone = one.last_outcome === "ok" ? "text-good" : one.last_outcome === "failed" ? "text-bad" : "text-soft";
            return (
              <li key={one.name} className="grid grid-cols-[7rem_1fr_auto] items-baseline gap-x-4 gap-y-0.5 px-4 py-2 sm:grid-cols-[7rem_1fr_auto_6rem]">
                <span className={`inline-flex items-center gap-1.5 ${tone}`}>
                  <Icon size={14} aria-hidden /> {one.last_outcome === "ok" ? "Well" : one.last_outcome === "failed" ? `Failed ×${one.failures_in_a_row}` : "Not yet"}
                </span>
                <span className="min-w-0 truncate font-medium">{one.name}</span>
                <span className="text-soft tabular-nums max-sm:order-last max-sm:col-span-2 max-sm:col-start-2">every {one.period_s < 1 ? `${one.period_s * 1000} ms` : duration(one.period_s)}</span>
                <span className="text-right text-soft">{one.last_started_at ? <Ago at={one.last_started_at} /> : "never"}</span>
                {one.last_failure && <span className="order-last col-span-full text-bad prose-text">{one.last_failure}</span>}
              </li>
            );
          })}
        </ul>
      )}
    </Page>
  );
}

type Job = Schemas["OpenJob"];
const isHeld = (job: Job) => job.state === "held" || job.state === "cancelling";

function Workers({ jobs }: { jobs: Job[] }) {
  const now = useNow(1_000);
  const held = jobs.filter(isHeld);
  const names = [...new Map(held.map((job) => [job.worker_id, job.worker ?? ""]))].sort(([, one], [, other]) => one.localeCompare(other));
  if (names.length === 0) return <Empty title="Nobody holds a job">A worker shows here as soon as it takes something up; one without work is not known to the ledger.</Empty>;
  return (
    <ul className="panel divide-y divide-line" aria-label="Workers">
      {names.map(([id, name]) => (
        <li key={id} className="px-4 py-3">
          <p className="flex flex-wrap items-center gap-x-2 font-medium">
            <HardHat size={15} aria-hidden className="text-soft" /> {name || "A worker without a name"}
          </p>
          <ul className="mt-1 space-y-1 pl-6">
            {held
              .filter((job) => job.worker_id === id)
              .map((job) => {
                const left = (Date.parse(job.until ?? "") - now) / 1000;
                return (
                  <li key={job.job_id} className="flex flex-wrap items-baseline gap-x-3">
                    <span className="w-20 text-soft">{job.kind === "run" ? "Run" : "Publishing"}</span>
                    <JobTask job={job} />
                    <Doing job={job} />
                    {job.state === "cancelling" && <span className="text-warn">is told to stop</span>}
                    <span className={`text-xs tabular-nums ${left < 5 ? "text-warn" : "text-soft"}`}>{left > 0 ? `heard of; has it for ${Math.ceil(left)} s more` : "not heard of: goes to another"}</span>
                  </li>
                );
              })}
          </ul>
        </li>
      ))}
    </ul>
  );
}

/** The last that its Run has recorded, and since when nothing came after it. */
function Doing({ job }: { job: Job }) {
  const isRun = job.kind === "run";
  const task = useQuery({ queryKey: ["tasks", "one", job.task_id], queryFn: () => get.task(job.task_id), refetchInterval: SELDOM_MS, enabled: isRun });
  const runs = useQuery({ queryKey: ["tasks", "runs", job.task_id, task.data?.updated_at], queryFn: () => get.runs(job.task_id), enabled: isRun && task.isSuccess });
  const run = runs.data?.items.find((one) => one.job_id === job.job_id);
  const newest = useQuery({
    queryKey: ["tasks", "newest step", run?.id, run?.steps],
    queryFn: () => get.steps(run?.id ?? "", run && run.steps > 1 ? run.steps - 2 : undefined),
    enabled: run !== undefined && run.steps > 0,
    staleTime: Infinity,
  });
  if (!task.data || !runs.data) return null;
  const last = newest.data?.items.at(-1);
  return (
    <span className="w-full text-soft sm:order-last sm:pl-[5.75rem]">
      {last ? `Last: ${last.title} (${last.phase.replaceAll("_", " ")})` : "Nothing recorded yet"}, <Ago at={task.data.updated_at} />
    </span>
  );
}

function JobTask({ job }: { job: Job }) {
  return (
    <span className="min-w-0 flex-1 basis-52 truncate">
      <Link to="/tasks/$id" params={{ id: job.task_id }} className="font-medium text-accent underline">
        {job.title}
      </Link>{" "}
      <span className="text-soft">{job.repository}</span>
    </span>
  );
}

function Waiting({ jobs }: { jobs: Job[] }) {
  const waiting = jobs.filter((job) => !isHeld(job));
  const held = jobs.length - waiting.length;
  if (waiting.length === 0) {
    return (
      <Empty title={held > 0 ? "Nothing else waits" : "Nothing waits"}>
        {held > 0 ? `${held === 1 ? "The one above is" : `The ${held} above are`} at work. Whatever is asked for now is taken up as soon as a worker is free.` : "Whatever is asked for is taken up at once."}
      </Empty>
    );
  }
  return (
    <>
      <ol className="panel divide-y divide-line" aria-label="Waiting jobs">
        {waiting.map((job) => (
          <li key={job.job_id} className="flex flex-wrap items-baseline gap-x-3 gap-y-0.5 px-4 py-2">
            <span className={`inline-flex w-32 items-center gap-1.5 ${job.state === "runnable" ? "" : "text-warn"}`}>
              {job.state === "runnable" ? <CircleDashed size={14} aria-hidden /> : <Clock size={14} aria-hidden />}
              {job.state === "runnable" ? "Can begin" : job.state === "delayed" ? "Later" : "For an event"}
            </span>
            <JobTask job={job} />
            <span className="text-soft">
              {job.kind === "run" ? "Run" : "Publishing"}
              {job.since && (
                <>
                  , since <Ago at={job.since} />
                </>
              )}
              {job.state === "delayed" && job.until && `, again at ${new Date(job.until).toLocaleTimeString()}`}
              {job.attempts + job.crashes > 0 && `, ${job.attempts + job.crashes} failed ${job.attempts + job.crashes === 1 ? "try" : "tries"}`}
            </span>
            {job.last_failure && <span className="w-full text-bad prose-text">{job.last_failure}</span>}
          </li>
        ))}
      </ol>
    </>
  );
}

function Number({ name, value, hint, bad = false }: { name: string; value: number; hint: string; bad?: boolean }) {
  return (
    <div className="bg-panel px-4 py-3">
      <dt className="text-xs text-soft">{name}</dt>
      <dd>
        <span className={`block text-2xl font-semibold tabular-nums ${bad ? "text-bad" : ""}`}>{value.toLocaleString()}</span>
        <span className="text-xs text-soft">{hint}</span>
      </dd>
    </div>
  );
}

function Dead({ job }: { job: Schemas["DeadJob"] }) {
  const queries = useQueryClient();
  const { may } = useMe();
  const redrive = useMutation({
    mutationFn: () => post(`/api/v1/jobs/${job.job_id}/redrive`),
    onSettled: () => Promise.all(["dead-jobs", "overview", "tasks"].map((name) => queries.invalidateQueries({ queryKey: [name] }))),
  });
  return (
    <li className="space-y-2 px-4 py-3">
      <div className="flex flex-wrap items-start gap-3">
        <div className="min-w-0 flex-1">
          <Link to="/tasks/$id" params={{ id: job.task_id }} className="font-medium text-accent underline">
            {job.kind === "run" ? "A Run" : "Publishing"} of this Task
          </Link>
          <p className="prose-text">{job.reason}</p>
          {job.last_failure && job.last_failure !== job.reason && <p className="prose-text text-soft">{job.last_failure}</p>}
          <p className="font-mono text-xs break-all text-soft">{job.job_id}</p>
        </div>
        {may("jobs.redrive") && (
        <button type="button" className="button" disabled={redrive.isPending} aria-label={`Take up again ${job.job_id}`} onClick={() => redrive.mutate()}>
          <RotateCcw size={14} aria-hidden /> Take up again
        </button>
        )}
      </div>
      {redrive.isError && <Trouble error={redrive.error} />}
    </li>
  );
}
