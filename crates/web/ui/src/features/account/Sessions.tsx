import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Monitor, Terminal } from "lucide-react";
import { get, remove, type Session } from "../../api/client";
import { Ago, Empty, Loading, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";

/** Live sessions of an account, one's own when none is named; each can be ended. */
export function Sessions({ user }: { user?: string }) {
  const sessions = useQuery({ queryKey: ["sessions", user], queryFn: () => get.sessions(user), refetchInterval: 15_000 });
  if (sessions.isError) return <Trouble error={sessions.error} again={() => void sessions.refetch()} />;
  if (sessions.isPending) return <Loading rows={2} />;
  if (sessions.data.items.length === 0) return <Empty title="Signed in nowhere">Whoever signs in is listed here until they sign out.</Empty>;
  return (
    <ul className="panel divide-y divide-line" aria-label="Sessions">
      {sessions.data.items.map((one) => (
        <Row key={one.id} session={one} />
      ))}
    </ul>
  );
}

function Row({ session }: { session: Session }) {
  const { may } = useMe();
  const queries = useQueryClient();
  const end = useMutation({
    mutationFn: () => remove(`/api/v1/sessions/${encodeURIComponent(session.id)}`),
    onSettled: () => queries.invalidateQueries({ queryKey: ["sessions"] }),
  });
  const Icon = session.kind === "browser" ? Monitor : Terminal;
  const name = agent(session.user_agent);
  return (
    <li className="flex flex-wrap items-center gap-x-4 gap-y-1 px-4 py-2.5">
      <Icon size={16} aria-hidden className="shrink-0 text-soft" />
      <div className="min-w-0 flex-1 basis-60">
        <p className="truncate font-medium" title={session.user_agent}>
          {name}
          {session.current && <span className="ml-2 rounded-full border border-good px-2 text-xs font-normal text-good">this one</span>}
        </p>
        <p className="text-soft">
          from {session.address || "an unknown address"}, used <Ago at={session.last_used_at} />, signed in <Ago at={session.created_at} />
        </p>
      </div>
      {!session.current && may("sessions.end") && (
        <button type="button" className="button" disabled={end.isPending} aria-label={`End the session of ${name} from ${session.address}`} onClick={() => end.mutate()}>
          End
        </button>
      )}
      {end.isError && (
        <div className="w-full">
          <Trouble error={end.error} />
        </div>
      )}
    </li>
  );
}

const BROWSERS: [RegExp, string][] = [
  [/Edg\//, "Edge"],
  [/Firefox\//, "Firefox"],
  [/Chrom(e|ium)\//, "Chrome"],
  [/Safari\//, "Safari"],
];
const SYSTEMS: [RegExp, string][] = [
  [/Android/, "Android"],
  [/iPhone|iPad/, "iOS"],
  [/Windows/, "Windows"],
  [/Mac OS X/, "macOS"],
  [/Linux/, "Linux"],
];

/** A guess that people recognise; the whole text stays readable beside it. */
function agent(text: string): string {
  const browser = BROWSERS.find(([is]) => is.test(text))?.[1];
  const system = SYSTEMS.find(([is]) => is.test(text))?.[1];
  if (browser) return system ? `${browser} on ${system}` : browser;
  return text || "A program without a name";
}
