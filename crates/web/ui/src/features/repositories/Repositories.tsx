import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { FolderGit2 } from "lucide-react";
import { get, type TaskState } from "../../api/client";
import { Ago, Empty, Loading, Page, Standing, Trouble } from "../../parts/Show";

/** Where Tasks were asked for, and how the last one went. */
export function Repositories() {
  const list = useQuery({ queryKey: ["repositories"], queryFn: get.repositories });
  return (
    <Page title="Repositories">
      {list.isError && <Trouble error={list.error} again={() => void list.refetch()} />}
      {list.isPending && <Loading rows={4} />}
      {list.isSuccess && list.data.items.length === 0 && (
        <Empty title="No repository yet">One shows here after its first Task, or when forge.poll_repositories names it.</Empty>
      )}
      {list.isSuccess && list.data.items.length > 0 && (
        <ul className="panel divide-y divide-line" aria-label="Repositories">
          {list.data.items.map((one) => (
            <li key={one.name} className="flex flex-wrap items-center gap-x-4 gap-y-1 px-4 py-3">
              <FolderGit2 size={16} aria-hidden className="shrink-0 text-soft" />
              <div className="min-w-0 flex-1 basis-56">
                <p className="truncate font-medium">{one.name}</p>
                <p className="text-soft">
                  {one.tasks === 0 ? "no Task yet" : one.tasks === 1 ? "1 Task" : `${one.tasks.toLocaleString()} Tasks`}
                  {one.open > 0 && `, ${one.open.toLocaleString()} not ended`}
                  {one.configured && " · looked at for labels"}
                </p>
              </div>
              {one.newest && (
                <div className="min-w-0 flex-1 basis-72">
                  <p className="flex flex-wrap items-center gap-x-3">
                    <Standing task={{ state: one.newest.state as TaskState, outcome: one.newest.outcome }} />
                    <span className="text-soft">
                      <Ago at={one.newest.created_at} />
                    </span>
                  </p>
                  <Link to="/tasks/$id" params={{ id: one.newest.task_id }} className="block truncate text-accent underline">
                    {one.newest.title}
                  </Link>
                </div>
              )}
            </li>
          ))}
        </ul>
      )}
      {list.data?.cut && <p className="mt-1 text-soft">There are more than are listed here.</p>}
    </Page>
  );
}
