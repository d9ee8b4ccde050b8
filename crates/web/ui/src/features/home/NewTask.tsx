import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useRef, useState, type FormEvent } from "react";
import { get, post, type Schemas } from "../../api/client";
import { useMe } from "../access/me";
import { Trouble } from "../../parts/Show";

const ISSUE = /^https?:\/\/[^/]+\/([^/]+\/[^/]+)\/issues\/(\d+)\/?$/;

/** What the words ask for: an issue by its address, else a text with its first line as the title. Each model, or the default one, makes `each` Runs. */
export function wish(repository: string, what: string, mode: Schemas["Mode"], models: string[], each: number): Schemas["NativeTask"] {
  const runs: { model?: string }[] = (models.length > 0 ? models.map((model) => ({ model })) : [{}]).flatMap((run) => Array.from({ length: each }, () => run));
  const [first, ...further] = runs;
  const common = { mode, ...first, further };
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
  const [models, setModels] = useState<string[]>([]);
  const [each, setEach] = useState(1);
  const known = useQuery({ queryKey: ["models"], queryFn: get.models }).data?.items ?? [];
  const repositories = useQuery({ queryKey: ["repositories"], queryFn: get.repositories }).data?.items ?? [];
  // The same wish again, after an answer that was lost, makes no second Task.
  const attempt = useRef(fresh());
  const queries = useQueryClient();
  const navigate = useNavigate();
  const submit = useMutation({
    mutationFn: () => post<Schemas["Submitted"]>("/api/v1/tasks", wish(repository.trim(), what, mode, models, each), { "Idempotency-Key": attempt.current }),
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
      className="panel mb-4 grid gap-3 p-4 sm:grid-cols-[1fr_9rem_9rem_auto]"
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
        <input className="field" placeholder="owner/name" list="repositories" required={!ISSUE.test(what.trim())} value={repository} onChange={(event) => edit(setRepository)(event.target.value)} />
      </label>
      <label>
        <span className="mb-1 block text-soft">Mode</span>
        <select className="field" value={mode} onChange={(event) => edit(setMode)(event.target.value as Schemas["Mode"])}>
          <option value="quickfix">Quick fix</option>
          <option value="refine">Refine</option>
        </select>
      </label>
      <label>
        <span className="mb-1 block text-soft">Runs side by side</span>
        <select className="field" title="Of each model; you choose among their patches" value={each} onChange={(event) => edit(setEach)(Number(event.target.value))}>
          {[1, 2, 3, 4].map((number) => (
            <option key={number} value={number}>
              {number}
            </option>
          ))}
        </select>
      </label>
      {known.length > 1 && (
        <fieldset className="sm:order-1 sm:col-span-4">
          <legend className="mb-1 text-soft">
            {models.length === 0 ? `Model: ${known[0]?.name ?? "the first"}, unless you choose` : models.length * each === 1 ? "Model" : `Models: ${models.length * each} Runs side by side, and you choose among their patches`}
          </legend>
          <div className="flex flex-wrap gap-x-4 gap-y-1">
            {known.map((one) => (
              <label key={one.name} className="flex items-baseline gap-1.5 break-all">
                <input
                  type="checkbox"
                  checked={models.includes(one.name)}
                  onChange={(event) => edit(setModels)(event.target.checked ? [...models, one.name] : models.filter((name) => name !== one.name))}
                />
                {one.name}
              </label>
            ))}
          </div>
        </fieldset>
      )}
      <button type="submit" className="button primary justify-center self-end" disabled={submit.isPending}>
        Start
      </button>
      <datalist id="repositories">
        {repositories.map((one) => (
          <option key={one.name} value={one.name} />
        ))}
      </datalist>
      {submit.isError && (
        <div className="sm:order-2 sm:col-span-4">
          <Trouble error={submit.error} />
        </div>
      )}
    </form>
  );
}
