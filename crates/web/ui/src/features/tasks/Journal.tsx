import { useEffect, useState } from "react";
import { Brain, ChevronDown, ChevronRight, CircleDot, GitBranch, MessageSquare, ShieldCheck, Terminal, XCircle } from "lucide-react";
import { get, type Schemas, type TaskEvent } from "../../api/client";
import { duration, Loading, Trouble } from "../../parts/Show";

type Step = Schemas["Step"];

const ICONS: Record<string, typeof Brain> = {
  base: GitBranch,
  model_call: Brain,
  tool_call: Terminal,
  verify: ShieldCheck,
  decide: CircleDot,
  message_in: MessageSquare,
};

/** Everything that a Run has done: what the model said, what was carried out, and what came of it. */
export function Journal({ run, events }: { run: string; events: TaskEvent[] }) {
  const { steps, error, loading, again } = useSteps(run, events);
  return (
    <>
      {error !== null && <Trouble error={error} again={again} />}
      {steps.length === 0 && loading && <Loading rows={5} />}
      {steps.length === 0 && !loading && error === null && <p className="panel p-6 text-center text-soft">Nothing has been done yet.</p>}
      {steps.length > 0 && (
        <ol className="panel divide-y divide-line" aria-label="Steps">
          {steps.map((step) => (
            <OneStep key={step.seq} step={step} />
          ))}
        </ol>
      )}
    </>
  );
}

function OneStep({ step }: { step: Step }) {
  const [open, setOpen] = useState(false);
  // Before the change a new test has to fail.
  const expected = step.ok === false && step.phase === "reproduce" && step.calls.some((call) => call.tool === "run_tests");
  const failed = step.ok === false && !expected;
  const Icon = failed ? XCircle : (ICONS[step.kind] ?? CircleDot);
  const Arrow = open ? ChevronDown : ChevronRight;
  const called = step.kind === "model_call" ? step.calls : [];
  return (
    <li className="px-4 py-2">
      {step.said && <p className="mb-1 max-h-60 overflow-y-auto pl-6 whitespace-pre-wrap prose-text">{step.said}</p>}
      <button type="button" aria-expanded={open} className="flex w-full items-baseline gap-2 text-left" onClick={() => setOpen(!open)}>
        <Icon size={15} aria-hidden className={`shrink-0 translate-y-0.5 ${failed ? "text-warn" : "text-soft"}`} />
        <span className="min-w-0 flex-1 break-words">
          {step.title}
          {failed && <span className="text-warn"> (did not work)</span>}
          {expected && <span className="text-soft"> (failed before the change, as a test of it must)</span>}
          {called.length > 0 && <span className="text-soft"> asks for {called.map((call) => call.tool).join(", ")}</span>}
        </span>
        <span className="text-xs whitespace-nowrap text-soft tabular-nums">
          {step.took_ms < 1000 ? `${step.took_ms} ms` : duration(step.took_ms / 1000)}
        </span>
        <Arrow size={14} aria-hidden className="shrink-0 translate-y-0.5 text-soft" />
      </button>
      {open && (
        <div className="mt-2 space-y-2 pl-6">
          {step.reasoning && <Text name="Reasoning" text={step.reasoning} />}
          {step.calls.map((call, index) => (
            <Text key={index} name={`${step.kind === "model_call" ? "Asks for" : "Carried out:"} ${call.tool}`} text={call.arguments} />
          ))}
          {step.output && <Text name={step.kind === "tool_call" ? "What came of it" : "What is kept of it"} text={step.output} />}
          {!step.reasoning && step.calls.length === 0 && !step.output && <p className="text-soft">Nothing more is kept of it.</p>}
          {step.cut && <p className="text-xs text-soft">Longer texts end here after 8 KiB.</p>}
        </div>
      )}
    </li>
  );
}

function Text({ name, text }: { name: string; text: string }) {
  return (
    <div>
      <p className="text-xs text-soft">{name}</p>
      <pre className="max-h-80 overflow-auto rounded-md bg-ground p-2 font-mono text-xs whitespace-pre-wrap [overflow-wrap:anywhere]" tabIndex={0} aria-label={name}>
        {text}
      </pre>
    </div>
  );
}

/** Grows with the Run: each step that is told of makes the journal be read on from where it was. */
function useSteps(run: string, events: TaskEvent[]) {
  const done = events.filter((event) => event.what.type === "step").length;
  // Another holder may go another way: what it replaces has the same numbers.
  const leases = events.filter((event) => event.what.type === "run_leased").length;
  const [tries, setTries] = useState(0);
  const [state, setState] = useState<{ of: string; steps: Step[]; error: unknown; loading: boolean }>({ of: "", steps: [], error: null, loading: true });
  const of = `${run} ${leases}`;
  useEffect(() => {
    let over = false;
    const read = async () => {
      let known = state.of === of ? state.steps : [];
      try {
        for (;;) {
          const page = await get.steps(run, known.at(-1)?.seq);
          if (over) return;
          known = [...known, ...page.items];
          const more = page.next != null;
          setState({ of, steps: known, error: null, loading: more });
          if (!more) return;
        }
      } catch (error) {
        if (!over) setState({ of, steps: known, error, loading: false });
      }
    };
    void read();
    return () => {
      over = true;
    };
    // What is known is where the reading goes on, and no reason to read.
  }, [run, of, done, tries]);
  return { ...state, again: () => setTries(tries + 1) };
}
