import { useInfiniteQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { get } from "../../api/client";
import { Empty, Loading, Page, Trouble } from "../../parts/Show";
import { TaskRow } from "./TaskRow";

const route = getRouteApi("/tasks");
const FILTERS = [undefined, "queued", "running", "waiting", "publishing", "done", "cancelled"] as const;

export function TaskList() {
  const { state } = route.useSearch();
  const tasks = useInfiniteQuery({
    queryKey: ["tasks", "list", state],
    queryFn: ({ pageParam }) => get.tasks(state, pageParam),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next ?? undefined,
  });
  const items = tasks.data?.pages.flatMap((page) => page.items) ?? [];
  return (
    <Page title="Tasks">
      <nav aria-label="Filter by state" className="mb-3 flex flex-wrap gap-1">
        {FILTERS.map((one) => (
          <Link
            key={one ?? "all"}
            to="/tasks"
            search={one ? { state: one } : {}}
            aria-current={one === state ? "true" : undefined}
            className={`rounded-full border px-3 py-0.5 ${one === state ? "border-accent text-accent" : "border-line text-soft hover:bg-raised"}`}
          >
            {one ? `${one[0]?.toUpperCase()}${one.slice(1)}` : "All"}
          </Link>
        ))}
      </nav>
      {tasks.isError && <Trouble error={tasks.error} again={() => void tasks.refetch()} />}
      {tasks.isPending && <Loading rows={8} />}
      {tasks.isSuccess && items.length === 0 && (
        <Empty title={state ? `No Task is ${state}` : "No Tasks yet"}>
          {state ? "Others may be: look at all of them." : "Label an issue on the forge, or start one on the Home page."}
        </Empty>
      )}
      {items.length > 0 && (
        <ul className="panel divide-y divide-line overflow-hidden">
          {items.map((task) => (
            <TaskRow key={task.id} task={task} />
          ))}
        </ul>
      )}
      {tasks.hasNextPage && (
        <button type="button" className="button mt-3" disabled={tasks.isFetchingNextPage} onClick={() => void tasks.fetchNextPage()}>
          Older Tasks
        </button>
      )}
    </Page>
  );
}
