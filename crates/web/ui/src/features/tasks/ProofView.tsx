import { useQuery } from "@tanstack/react-query";
import { AlertTriangle, CheckCircle2, MinusCircle, XCircle } from "lucide-react";
import { get, type Schemas } from "../../api/client";
import { duration, Loading, Trouble } from "../../parts/Show";

const LEVELS = {
  proven: { Icon: CheckCircle2, tone: "text-good", text: "Proven", why: "New tests fail on the base and pass with the change; nothing else broke." },
  weak: { Icon: AlertTriangle, tone: "text-warn", text: "Weakly proven", why: "Not everything that a proof asks for was observed." },
  unproven: { Icon: XCircle, tone: "text-bad", text: "Unproven", why: "What was observed does not show that the change works." },
};

/** What was observed about the change, all of it. */
export function ProofView({ id, run }: { id: string; run?: string }) {
  const proof = useQuery({ queryKey: ["proof", id, run], queryFn: () => get.proof(id, run), staleTime: Infinity });
  if (proof.isError) return <Trouble error={proof.error} again={() => void proof.refetch()} />;
  if (proof.isPending) return <Loading rows={6} />;
  const one = proof.data;
  const { Icon, tone, text, why } = LEVELS[one.level as keyof typeof LEVELS] ?? LEVELS.unproven;
  const lists: [string, string[]][] = one.suite
    ? [
        ["Broken", one.suite.broken],
        ["Vanished", one.suite.vanished],
        ["Flaky", one.suite.flaky],
        ["Fixed", one.suite.fixed],
        ["Red before already", one.suite.known_failures],
      ]
    : [];
  return (
    <div className="space-y-3">
      <div className="panel flex gap-3 p-4">
        <Icon size={20} className={`mt-0.5 shrink-0 ${tone}`} aria-hidden />
        <div className="min-w-0">
          <h2 className={`font-semibold ${tone}`}>{text}</h2>
          {one.reasons.length === 0 ? <p>{why}</p> : <ul className="list-disc pl-5">{one.reasons.map((reason) => <li key={reason}>{reason}</li>)}</ul>}
        </div>
      </div>
      {one.new_tests.length > 0 && (
        <section className="panel overflow-x-auto p-4">
          <h2 className="mb-2 font-semibold">New tests</h2>
          <table className="w-full text-left">
            <thead className="text-xs text-soft">
              <tr>
                <th className="pr-4 font-normal">Test</th>
                <th className="pr-4 font-normal">On the base</th>
                <th className="font-normal">With the change</th>
              </tr>
            </thead>
            <tbody>
              {one.new_tests.map((test) => (
                <tr key={test.id} className="border-t border-line">
                  <td className="py-1.5 pr-4 font-mono text-xs break-all">{test.id}</td>
                  <td className="py-1.5 pr-4"><Outcomes outcomes={test.base} before /></td>
                  <td className="py-1.5"><Outcomes outcomes={test.head} /></td>
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      )}
      {lists.some(([, names]) => names.length > 0) && (
        <section className="panel p-4">
          <h2 className="mb-2 font-semibold">The suite</h2>
          {lists.filter(([, names]) => names.length > 0).map(([name, names]) => (
            <details key={name} open={name === "Broken"} className="py-0.5">
              <summary>{name}: {names.length}</summary>
              <ul className="pl-5 font-mono text-xs">{names.map((test) => <li key={test} className="break-all">{test}</li>)}</ul>
            </details>
          ))}
        </section>
      )}
      <section className="panel p-4">
        <h2 className="mb-2 font-semibold">Commands that were run</h2>
        <ol className="space-y-1">
          {one.commands.map((command, index) => (
            <li key={index} className="grid items-baseline gap-x-3 max-sm:border-t max-sm:border-line max-sm:py-1.5 max-sm:first:border-0 sm:grid-cols-[9rem_1fr_auto]">
              <span className="text-soft">{command.purpose}</span>
              <code className="min-w-0 font-mono text-xs [overflow-wrap:anywhere]">{command.command}</code>
              <span className="text-xs text-soft tabular-nums">
                {ending(command)} · {duration(command.took_ms / 1000)}
              </span>
            </li>
          ))}
        </ol>
      </section>
      <p className="text-xs break-all text-soft">
        Base <code className="font-mono">{one.base}</code>, tree <code className="font-mono">{one.head_tree}</code>; {one.architecture}, sandbox {one.sandbox}
        {one.toolchain.length > 0 && `; ${one.toolchain.join(", ")}`}
      </p>
    </div>
  );
}

/** Before the change the new tests have to fail. */
function ending({ purpose, exit, timed_out }: Schemas["ProofCommand"]): string {
  if (timed_out) return "timed out";
  const end = `exit ${exit ?? "by signal"}`;
  return purpose === "new tests on base" && exit != null && exit !== 0 ? `failed before the change, as it must: ${end}` : end;
}

function Outcomes({ outcomes, before = false }: { outcomes: string[]; before?: boolean }) {
  return (
    <span className="flex flex-wrap gap-x-3">
      {outcomes.map((outcome, index) => {
        const Icon = outcome === "passed" ? CheckCircle2 : outcome === "failed" ? XCircle : MinusCircle;
        const tone = outcome === "passed" ? "text-good" : outcome === "failed" && !before ? "text-bad" : "text-soft";
        return (
          <span key={index} className={`inline-flex items-center gap-1 ${tone}`}>
            <Icon size={13} aria-hidden /> {outcome}
          </span>
        );
      })}
    </span>
  );
}
