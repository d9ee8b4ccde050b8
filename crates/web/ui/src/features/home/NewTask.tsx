import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useRef, useState, type FormEvent } from "react";
import { post, type Schemas } from "../../api/client";
import { useMe } from "../access/me";
import { Trouble } from "../../parts/Show";

const ISSUE = /^https?:\/\/[^/]+\/([^/]+\/[^/]+)\/issues\/(\d+)\/?$/;

/** What the words ask for: an issue by its address, else a text with its first line as the title. Models stand between commas. */
export function wish(repository: string, what: string, mode: Schemas["Mode"], model: string): Schemas["NativeTask"] {
  const [first, ...others] = model.split(",").map((name) => name.trim()).filter(Boolean);
  const common = { mode, ...(first ? { model: first } : {}), further: others.map((other) => ({ model: other })) };
  const issue = ISSUE.exec(what.trim());
  if (issue) return { ...common, repository: repository || issue[1], issue: Number(issue[2]) };
  if (/^#?\d+$/.test(what.trim())) return { ...common, repository, issue: Number(what.trim().replace("#", "")) };
  const [title = "", ...rest] = what.trim().split("\n");
  return { ...common, repository, text: { title, body: rest.join("\n").trim() } };
}

// `crypto.randomUUID` is only there over https.
const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function NewTask() {
  const { may, why } = useMe();
  if (may("tasks.create")) return <Wish />;
  return <p className="panel mb-4 px-4 py-3 text-soft">Starting a Task: {why}</p>;
}

function Wish() {
  const [repository, setRepository] = useState("");
  const [what, setWhat] = useState("");
  const [mode, setMode] = useState<Schemas["Mode"]>("quickfix");
  const [model, setModel] = useState("");
  // The same wish again, after an answer that was lost, makes no second Task.
  const attempt = useRef(fresh());
  const queries = useQueryClient();
  const navigate = useNavigate();
  const submit = useMutation({
    mutationFn: () => post<Schemas["Submitted"]>("/api/v1/tasks", wish(repository.trim(), what, mode, model.trim()), { "Idempotency-Key": attempt.current }),
    onSuccess: ({ task }) => {
      void queries.invalidateQueries({ queryKey: ["tasks"] });
      return navigate({ to: "/tasks/$id", params: { id: task.id } });
    },
  });
  const edit = <T,>(set: (value: T) => void) => (value: T) => {
    attempt.current = fresh();
    set(value);
  };
  return (
    <form
      aria-label="New Task"
      className="panel mb-4 grid gap-3 p-4 sm:grid-cols-[1fr_9rem_12rem_auto]"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        submit.mutate();
      }}
    >
      <label className="sm:col-span-4">
        <span className="mb-1 block font-medium">What to do</span>
        <textarea className="field" rows={2} required placeholder="The address of an issue, its number, or what to do in your own words" value={what} onChange={(event) => edit(setWhat)(event.target.value)} />
      </label>
      <label>
        <span className="mb-1 block text-soft">Repository</span>
        <input className="field" placeholder="owner/name" required={!ISSUE.test(what.trim())} value={repository} onChange={(event) => edit(setRepository)(event.target.value)} />
      </label>
      <label>
        <span className="mb-1 block text-soft">Mode</span>
        <select className="field" value={mode} onChange={(event) => edit(setMode)(event.target.value as Schemas["Mode"])}>
          <option value="quickfix">Quick fix</option>
          <option value="refine">Refine</option>
        </select>
      </label>
      <label>
        <span className="mb-1 block text-soft">Model, or several</span>
        <input className="field" placeholder="first configured" title="Several, with commas between, work side by side; you choose among their patches" value={model} onChange={(event) => edit(setModel)(event.target.value)} />
      </label>
      <button type="submit" className="button primary self-end" disabled={submit.isPending}>
        Start
      </button>
      {submit.isError && (
        <div className="sm:col-span-4">
          <Trouble error={submit.error} />
        </div>
      )}
    </form>
  );
}
