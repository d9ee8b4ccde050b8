import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { lazy, Suspense, useState, type FormEvent, type ReactNode } from "react";
import { get, post, type Schemas, type Task } from "../../api/client";
import { useMe } from "../access/me";
import { duration, Loading, Standing, Trouble } from "../../parts/Show";
import { ProofView } from "./ProofView";

const Patch = lazy(() => import("../../parts/Patch"));

type Run = Schemas["Run"];

const LEVELS: Record<string, { word: string; tone: string }> = {
  proven: { word: "Proven", tone: "text-good" },
  weak: { word: "Weakly proven", tone: "text-warn" },
  unproven: { word: "Unproven", tone: "text-bad" },
};

/** As a Task's states are shown: a job knows more of them. */
function standing(run: Run): Pick<Task, "state" | "outcome"> {
  // What was stopped stays so, also when it came to its end after all.
  if (run.job_state === "cancelled") return { state: "cancelled", outcome: null };
  if (run.result) return { state: "done", outcome: run.result.outcome };
  if (run.job_state === "dead") return { state: "done", outcome: "failed" };
  if (run.job_state === "queued") return { state: "queued", outcome: null };
  return { state: run.job_state === "leased" || run.job_state === "cancelling" ? "running" : "waiting", outcome: null };
}

/** What makes Runs differ, one line for each, so that eyes go across. */
const LINES: [string, (run: Run) => ReactNode][] = [
  ["State", (run) => <Standing task={standing(run)} />],
  ["Told", (run) => run.instruction ?? <span className="text-soft">what the others are told</span>],
  ["Proof", (run) => level(run)],
  ["New tests", (run) => run.result?.proof?.new_tests.length ?? "–"],
  [
    "Suite",
    (run) => {
      const suite = run.result?.proof?.suite;
      return suite ? `${suite.base.failed} → ${suite.head.failed} failing, ${suite.broken} broken` : "–";
    },
  ],
  [
    "Size",
    (run) => {
      const change = run.result?.change;
      if (!change) return "–";
      const files = change.files === 1 ? "1 file" : `${change.files} files`;
      return (
        <>
          <span className="text-good">+{change.lines_added}</span> <span className="text-bad">−{change.lines_removed}</span> in {files}
        </>
      );
    },
  ],
  ["Model calls", (run) => run.spent.calls.toLocaleString()],
  ["Tokens written", (run) => run.spent.generated_tokens.toLocaleString()],
  ["Tokens read", (run) => run.spent.prompt_tokens.toLocaleString()],
  ["Work", (run) => duration(run.spent.wall_s)],
];

function level(run: Run) {
  const shown = LEVELS[run.result?.proof?.level ?? ""];
  return shown ? <span className={`font-medium ${shown.tone}`}>{shown.word}</span> : "–";
}

const model = (run: Run) => (run.result?.model ? run.result.model : (run.model ?? "the first model"));

/** A Task's Runs side by side: choose one and make the pull request from it. */
export default function Runs({ task }: { task: Task }) {
  const { may } = useMe();
  const runs = useQuery({ queryKey: ["tasks", "runs", task.id, task.updated_at], queryFn: () => get.runs(task.id), placeholderData: (before) => before });
  if (runs.isError) return <Trouble error={runs.error} again={() => void runs.refetch()} />;
  if (runs.isPending) return <Loading rows={4} />;
  const { items, leading } = runs.data;
  const choosing = may("pull_requests.create") && items.some(canBeChosen);
  const stopping = may("tasks.cancel") && items.some((run) => canBeStopped(run, items));
  const patches = items.filter((run) => run.result?.change);
  return (
    <div className="space-y-4">
      <div className="panel overflow-x-auto" role="region" aria-label="Runs side by side" tabIndex={0}>
        <table className="w-full text-left">
          <caption className="sr-only">Runs of this Task</caption>
          <thead>
            <tr className="border-b border-line align-top">
              <th scope="col" className="w-32 px-4 py-3 font-normal text-soft">
                Run
              </th>
              {items.map((run) => (
                <th key={run.id} scope="col" className="min-w-44 px-4 py-3 font-semibold">
                  {run.ordinal}. {model(run)}
                  {run.id === leading && items.length > 1 && task.pull_request && <span className="block text-xs font-normal text-good">published</span>}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {LINES.filter(([name]) => name !== "Told" || items.some((run) => run.instruction)).map(([name, shown]) => (
              <tr key={name} className="border-b border-line align-top last:border-0">
                <th scope="row" className="px-4 py-2 font-normal text-soft">
                  {name}
                </th>
                {items.map((run) => (
                  <td key={run.id} className="px-4 py-2 tabular-nums">
                    {shown(run)}
                  </td>
                ))}
              </tr>
            ))}
            {stopping && (
              <tr className="align-top">
                <th scope="row" className="px-4 py-3 font-normal text-soft">
                  Stop
                </th>
                {items.map((run) => (
                  <td key={run.id} className="px-4 py-3">
                    {canBeStopped(run, items) && <Stop task={task} run={run} />}
                  </td>
                ))}
              </tr>
            )}
            {choosing && (
              <tr className="align-top">
                <th scope="row" className="px-4 py-3 font-normal text-soft">
                  Choose
                </th>
                {items.map((run) => (
                  <td key={run.id} className="px-4 py-3">
                    {canBeChosen(run) && <Choose task={task} run={run} />}
                  </td>
                ))}
              </tr>
            )}
          </tbody>
        </table>
      </div>
      {patches.length > 1 && <SideBySide task={task} runs={patches} />}
      {may("runs.create") && !task.pull_request && task.state !== "cancelled" && task.mode !== "probe" && <Add task={task} has={items.length} />}
    </div>
  );
}

/** Its job waits with a patch; while another Run is at work the server says no, and why. */
const canBeChosen = (run: Run) => run.job_state === "waiting" && run.result != null;

/** It goes on, and so does another one: the last is stopped with its Task. */
function canBeStopped(run: Run, all: Run[]) {
  const ended = ["done", "dead", "cancelled", "cancelling"].includes(run.job_state) || canBeChosen(run);
  return !ended && all.some((other) => other.id !== run.id && !["cancelled", "cancelling"].includes(other.job_state));
}

function Stop({ task, run }: { task: Task; run: Run }) {
  const queries = useQueryClient();
  const stop = useMutation({
    mutationFn: () => post(`/api/v1/tasks/${task.id}/runs/${run.id}/stop`, {}),
    onSettled: () => queries.invalidateQueries({ queryKey: ["tasks"] }),
  });
  return (
    <>
      <button type="button" className="button" disabled={stop.isPending} onClick={() => stop.mutate()}>
        Stop this one<span className="sr-only">, run {run.ordinal}; the others go on</span>
      </button>
      {stop.isError && (
        <div className="mt-2">
          <Trouble error={stop.error} />
        </div>
      )}
    </>
  );
}

function Choose({ task, run }: { task: Task; run: Run }) {
  const queries = useQueryClient();
  const choose = useMutation({
    mutationFn: (draft: boolean) => post<Task>(`/api/v1/tasks/${task.id}/prs`, { run_id: run.id, draft }),
    onSettled: () => queries.invalidateQueries({ queryKey: ["tasks"] }),
  });
  const late = choose.isPending || task.state !== "waiting";
  const why = task.state === "waiting" ? undefined : "Another Run is at work";
  return (
    <>
      <div className="flex flex-wrap gap-2">
        <button type="button" className="button primary" disabled={late} onClick={() => choose.mutate(false)} title={why}>
          Make the pull request<span className="sr-only"> from run {run.ordinal}</span>
        </button>
        <button type="button" className="button" disabled={late} onClick={() => choose.mutate(true)} title={why}>
          As a draft<span className="sr-only">, from run {run.ordinal}</span>
        </button>
      </div>
      {choose.isError && (
        <div className="mt-2">
          <Trouble error={choose.error} />
        </div>
      )}
    </>
  );
}

/** Two of them at a time: more columns nobody reads. */
function SideBySide({ task, runs }: { task: Task; runs: Run[] }) {
  const [shown, setShown] = useState<"change" | "proof">("change");
  const [pair, setPair] = useState<[number, number]>([0, 1]);
  const pick = (side: 0 | 1, nth: number) => setPair(([left, right]) => (side === 0 ? [nth, right] : [left, nth]));
  return (
    <section aria-labelledby="side-by-side">
      <div className="mb-2 flex flex-wrap items-center gap-2">
        <h2 id="side-by-side" className="flex-1 font-semibold">{shown === "change" ? "Change against change" : "Proof against proof"}</h2>
        {(["change", "proof"] as const).map((one) => (
          <button key={one} type="button" className="button" aria-pressed={shown === one} onClick={() => setShown(one)}>
            <span className={shown === one ? "font-semibold text-accent" : ""}>{one === "change" ? "Changes" : "Proofs"}</span>
          </button>
        ))}
      </div>
      <div className="grid gap-4 lg:grid-cols-2">
        {([0, 1] as const).map((side) => {
          const run = runs[pair[side]] ?? runs[0];
          if (!run) return null;
          return (
            <div key={side} className="min-w-0">
              <label className="mb-2 flex items-center gap-2 text-soft">
                <span>{side === 0 ? "Left" : "Right"}</span>
                <select className="field" value={pair[side]} onChange={(event) => pick(side, Number(event.target.value))}>
                  {runs.map((one, nth) => (
                    <option key={one.id} value={nth}>
                      {one.ordinal}. {model(one)}
                    </option>
                  ))}
                </select>
              </label>
              {shown === "change" ? <Change task={task} run={run} /> : <ProofView id={task.id} run={run.id} />}
            </div>
          );
        })}
      </div>
    </section>
  );
}

function Change({ task, run }: { task: Task; run: Run }) {
  const patch = useQuery({ queryKey: ["patch", task.id, run.id], queryFn: () => get.patch(task.id, run.id), staleTime: Infinity });
  return (
    <div className="space-y-2">
      <p className="font-medium">{run.result?.change?.title}</p>
      {patch.isError && <Trouble error={patch.error} again={() => void patch.refetch()} />}
      {patch.isPending && <Loading rows={4} />}
      {patch.isSuccess && (
        <Suspense fallback={<Loading rows={4} />}>
          <Patch diff={patch.data.diff} narrow />
        </Suspense>
      )}
    </div>
  );
}

function Add({ task, has }: { task: Task; has: number }) {
  const queries = useQueryClient();
  const [name, setName] = useState("");
  const [instruction, setInstruction] = useState("");
  const add = useMutation({
    mutationFn: () => post(`/api/v1/tasks/${task.id}/runs`, { runs: [{ model: name.trim() || null, instruction: instruction.trim() || null }] }),
    onSuccess: () => {
      setName("");
      setInstruction("");
    },
    onSettled: () => queries.invalidateQueries({ queryKey: ["tasks"] }),
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    add.mutate();
  };
  return (
    <form className="panel space-y-3 p-4" onSubmit={submit}>
      <h2 className="font-semibold">Let another model try, too</h2>
      <p className="text-soft">It works beside the {has === 1 ? "other one" : "others"}. When all have ended and several have a patch, you choose.</p>
      <div className="flex flex-wrap gap-3">
        <label className="min-w-48 flex-1">
          <span className="mb-1 block text-soft">Model (empty: the first)</span>
          <input className="field w-full" value={name} onChange={(event) => setName(event.target.value)} />
        </label>
        <label className="min-w-64 flex-[2]">
          <span className="mb-1 block text-soft">What only this one is told (optional)</span>
          <input className="field w-full" value={instruction} maxLength={4000} onChange={(event) => setInstruction(event.target.value)} />
        </label>
      </div>
      <button type="submit" className="button" disabled={add.isPending}>
        Add a Run
      </button>
      {add.isError && <Trouble error={add.error} />}
    </form>
  );
}
