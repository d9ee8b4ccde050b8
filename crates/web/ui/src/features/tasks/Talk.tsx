import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useRef, useState, type FormEvent } from "react";
import { get, post, type Task } from "../../api/client";
import { Ago, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";

/** What people said to the Task, and where to say more while it is at work. */
export function Talk({ task }: { task: Task }) {
  const { may } = useMe();
  const queries = useQueryClient();
  const [text, setText] = useState("");
  const sending = useRef(false);
  const messages = useQuery({ queryKey: ["tasks", "messages", task.id], queryFn: () => get.messages(task.id) });
  const say = useMutation({
    mutationFn: () => post(`/api/v1/tasks/${task.id}/messages`, { text: text.trim() }),
    onSuccess: () => setText(""),
    onSettled: () => {
      sending.current = false;
      return queries.invalidateQueries({ queryKey: ["tasks"] });
    },
  });
  const open = task.state !== "done" && task.state !== "cancelled" && may("messages.create");
  const said = messages.data?.items ?? [];
  if (!open && said.length === 0 && !messages.isError) return null;
  return (
    <section className="panel mb-3 space-y-3 p-4" aria-label="Messages">
      {messages.isError && <Trouble error={messages.error} again={() => void messages.refetch()} />}
      {said.length > 0 && (
        <ol className="space-y-2">
          {said.map((one) => (
            <li key={`${one.at} ${one.by}`}>
              <span className="font-medium">{one.by}</span>{" "}
              <span className="text-xs text-soft">
                <Ago at={one.at} />
              </span>
              <p className="prose-text whitespace-pre-wrap">{one.text}</p>
            </li>
          ))}
        </ol>
      )}
      {open && (
        <form
          className="flex flex-wrap items-end gap-3"
          onSubmit={(event: FormEvent) => {
            event.preventDefault();
            // Two clicks come before the page has drawn that one is on its way.
            if (sending.current || text.trim() === "") return;
            sending.current = true;
            say.mutate();
          }}
        >
          <label className="min-w-64 flex-1">
            <span className="mb-1 block text-soft">Say something to whoever works on it</span>
            <textarea className="field" rows={1} required maxLength={8000} value={text} onChange={(event) => setText(event.target.value)} />
          </label>
          <button type="submit" className="button" disabled={say.isPending || text.trim() === ""}>
            Send
          </button>
        </form>
      )}
      {say.isError && <Trouble error={say.error} />}
    </section>
  );
}
