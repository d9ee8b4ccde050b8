import { Link } from "@tanstack/react-router";
import { ExternalLink } from "lucide-react";
import type { TaskSummary } from "../../api/client";
import { Ago, Standing } from "../../parts/Show";

/** An address that a forge has told: only the web's are links. */
export const isWeb = (url: string | null | undefined): url is string => !!url && /^https?:\/\//.test(url);

export function TaskRow({ task }: { task: TaskSummary }) {
  return (
    <li className="relative grid grid-cols-[1fr_auto] gap-x-4 gap-y-0.5 px-4 py-2.5 hover:bg-raised sm:grid-cols-[8.5rem_1fr_auto]">
      <span className="max-sm:order-2 max-sm:col-span-2">
        <Standing task={task} />
      </span>
      <span className="min-w-0">
        <Link to="/tasks/$id" params={{ id: task.id }} className="block truncate font-medium after:absolute after:inset-0">
          {task.title}
        </Link>
        <span className="block truncate text-soft">
          {task.repository ?? task.mode}
          {task.issue != null && ` #${task.issue}`}
          {task.note && ` · ${task.note}`}
        </span>
      </span>
      <span className="text-right text-soft">
        <Ago at={task.created_at} />
        {isWeb(task.pull_request?.url) && (
          <a href={task.pull_request?.url} target="_blank" rel="noreferrer" className="relative z-1 flex items-center justify-end gap-1 text-accent">
            #{task.pull_request?.number} <ExternalLink size={12} aria-hidden />
            <span className="sr-only">pull request of {task.title}</span>
          </a>
        )}
      </span>
    </li>
  );
}
