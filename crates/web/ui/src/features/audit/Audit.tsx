import { useInfiniteQuery, useMutation } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { CheckCircle2, Download, XCircle } from "lucide-react";
import { useState, type FormEvent } from "react";
import { download, get, type AuditLogEntry } from "../../api/client";
import { Empty, Loading, Page, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";

const OFTEN_MS = 10_000;
const route = getRouteApi("/audit");

/** Who did what, and what was refused; the newest first. */
export function Audit() {
  const { may, why } = useMe();
  const { actor, action } = route.useSearch();
  const log = useInfiniteQuery({
    queryKey: ["audit-log", actor, action],
    queryFn: ({ pageParam }) => get.auditLog({ actor, action, after: pageParam }),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next ?? undefined,
    enabled: may("audit_log.read"),
    refetchInterval: (query) => ((query.state.data?.pages.length ?? 1) === 1 ? OFTEN_MS : false),
  });
  const save = useMutation({ mutationFn: () => download("/api/v1/audit-log/export", "fettle-audit-log.jsonl") });
  if (!may("audit_log.read")) {
    return (
      <Page title="Audit">
        <Empty title="This is for admins">{why}</Empty>
      </Page>
    );
  }
  const items = log.data?.pages.flatMap((page) => page.items) ?? [];
  const filtered = actor !== undefined || action !== undefined;
  return (
    <Page
      title="Audit"
      aside={
        <button type="button" className="button" disabled={save.isPending} onClick={() => save.mutate()}>
          <Download size={14} aria-hidden /> Export
        </button>
      }
    >
      <p className="mb-3 text-soft">
        What was done and refused here. Each entry carries the digest of the one before, so that an export shows whether something was changed or taken out.
      </p>
      {save.isError && <Trouble error={save.error} />}
      <Filter key={`${actor}\0${action}`} actor={actor} action={action} />
      {log.isError && <Trouble error={log.error} again={() => void log.refetch()} />}
      {log.isPending && <Loading rows={8} />}
      {log.isSuccess && items.length === 0 && (
        <Empty title={filtered ? "Nothing of that kind so far back" : "Nothing has been written down yet"}>
          {filtered ? "Older entries may be; look further back, or take the filter away." : "Signing in, starting a Task and changing an account are."}
        </Empty>
      )}
      {items.length > 0 && (
        <ol className="panel divide-y divide-line" aria-label="Entries">
          {items.map((entry) => (
            <Entry key={entry.sequence} entry={entry} />
          ))}
        </ol>
      )}
      {log.hasNextPage && (
        <button type="button" className="button mt-3" disabled={log.isFetchingNextPage} onClick={() => void log.fetchNextPage()}>
          {filtered ? "Look further back" : "Older entries"}
        </button>
      )}
    </Page>
  );
}

function Filter({ actor, action }: { actor?: string; action?: string }) {
  const navigate = useNavigate();
  const [who, setWho] = useState(actor ?? "");
  const [what, setWhat] = useState(action ?? "");
  return (
    <form
      role="search"
      aria-label="Filter"
      className="mb-3 flex flex-wrap items-end gap-2"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        void navigate({ to: "/audit", search: { ...(who.trim() ? { actor: who.trim() } : {}), ...(what.trim() ? { action: what.trim() } : {}) } });
      }}
    >
      <label className="w-40 max-sm:flex-1">
        <span className="mb-1 block text-soft">Who</span>
        <input className="field" placeholder="a user name" value={who} onChange={(event) => setWho(event.target.value)} />
      </label>
      <label className="w-48 max-sm:flex-1">
        <span className="mb-1 block text-soft">Action</span>
        <input className="field" placeholder="as in users.create" value={what} onChange={(event) => setWhat(event.target.value)} />
      </label>
      <button type="submit" className="button">
        Filter
      </button>
      {(actor !== undefined || action !== undefined) && (
        <button type="button" className="button" onClick={() => void navigate({ to: "/audit", search: {} })}>
          Show all
        </button>
      )}
    </form>
  );
}

function Entry({ entry }: { entry: AuditLogEntry }) {
  const done = entry.result === "done";
  const Icon = done ? CheckCircle2 : XCircle;
  return (
    <li>
      <details className="group">
        <summary className="grid grid-cols-[1fr_auto] items-baseline gap-x-4 gap-y-0.5 px-4 py-2 hover:bg-raised sm:grid-cols-[6rem_10rem_11rem_1fr_auto]">
          <span className={`inline-flex items-center gap-1.5 max-sm:order-2 max-sm:text-right ${done ? "text-good" : "text-bad"}`}>
            <Icon size={14} aria-hidden /> {done ? "Done" : entry.result === "refused" ? "Refused" : entry.result}
          </span>
          <span className="truncate font-medium max-sm:order-1">{entry.actor || "nobody known"}</span>
          <span className="truncate max-sm:order-3">{entry.action}</span>
          <span className="truncate text-soft max-sm:order-5 max-sm:col-span-2">
            {[entry.object, entry.detail].filter(Boolean).join(" · ")}
          </span>
          <time dateTime={entry.at} className="text-right whitespace-nowrap text-soft tabular-nums max-sm:order-4" title={new Date(entry.at).toLocaleString()}>
            {moment(entry.at)}
          </time>
        </summary>
        <dl className="grid grid-cols-[7rem_1fr] gap-x-4 gap-y-0.5 bg-ground px-4 py-3 text-xs">
          {[
            ["Number", String(entry.sequence)],
            ["At", new Date(entry.at).toLocaleString()],
            ["What", entry.object],
            ["More", entry.detail],
            ["From", entry.address],
            ["Digest", entry.digest],
          ]
            .filter(([, value]) => value)
            .map(([name, value]) => (
              <div key={name} className="contents">
                <dt className="text-soft">{name}</dt>
                <dd className="font-mono break-all">{value}</dd>
              </div>
            ))}
        </dl>
      </details>
    </li>
  );
}

function moment(at: string): string {
  const when = new Date(at);
  const time = when.toLocaleTimeString(undefined, { timeStyle: "short" });
  return when.toDateString() === new Date().toDateString() ? time : `${when.toLocaleDateString(undefined, { month: "short", day: "numeric" })}, ${time}`;
}
