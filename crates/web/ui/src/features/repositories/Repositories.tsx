import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { FolderGit2, Plus } from "lucide-react";
import { useState, type FormEvent } from "react";
import { get, post, remove, type Schemas, type TaskState } from "../../api/client";
import { Dialog, Field, FormTrouble } from "../../parts/Form";
import { useMe } from "../access/me";
import { ForgeAccess } from "./ForgeAccess";
import { Ago, Empty, Loading, Page, Standing, Trouble } from "../../parts/Show";

/** Where Tasks were asked for, and how the last one went. */
export function Repositories() {
  const { may } = useMe();
  const list = useQuery({ queryKey: ["repositories"], queryFn: get.repositories });
  const forge = useQuery({ queryKey: ["forge"], queryFn: get.forge });
  // What was refused without a token is not refused with one: whatever changes it takes what was said before away.
  const access = JSON.stringify([forge.data?.can_write, forge.data?.read_token, forge.data?.write_token, forge.dataUpdatedAt]);
  return (
    <Page title="Repositories">
      <ForgeAccess />
      {may("repositories.change") && <Add key={access} />}
      {list.isError && <Trouble error={list.error} again={() => void list.refetch()} />}
      {list.isPending && <Loading rows={4} />}
      {list.isSuccess && list.data.items.length === 0 && (
        <Empty title="No repository yet">Add one: issues in it that get the label are then worked on. One in which a Task is asked for shows here as well.</Empty>
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
                  {(one.configured || one.added) && " · looked at for labels"}
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
              {one.added && may("repositories.change") && <Remove name={one.name} />}
            </li>
          ))}
        </ul>
      )}
      {list.data?.cut && <p className="mt-1 text-soft">There are more than are listed here.</p>}
    </Page>
  );
}

function Add() {
  const queries = useQueryClient();
  const [repository, setRepository] = useState("");
  const add = useMutation({
    mutationFn: () => post<Schemas["AddedRepository"]>("/api/v1/repositories", { repository: repository.trim() }),
    onSuccess: () => {
      setRepository("");
      void queries.invalidateQueries({ queryKey: ["overview"] });
      return queries.invalidateQueries({ queryKey: ["repositories"] });
    },
  });
  return (
    <form
      aria-label="Add a repository"
      className="panel mb-4 p-4"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        add.mutate();
      }}
    >
      <div className="flex flex-wrap items-start gap-3">
        <div className="min-w-0 flex-1 basis-60">
          <Field label="Add a repository" pointer="/repository" error={add.error} required placeholder="owner/name, or its address" value={repository} onChange={(event) => { setRepository(event.target.value); add.reset(); }} />
        </div>
        <button type="submit" className="button primary mt-6" disabled={add.isPending}>
          <Plus size={14} aria-hidden /> Add
        </button>
      </div>
      <p role="status" className="text-soft">
        {add.data && `${add.data.name} is looked at for labels from now on; its changes start from ${add.data.default_branch}.`}
      </p>
      <FormTrouble error={add.error} pointers={["/repository"]} />
    </form>
  );
}

function Remove({ name }: { name: string }) {
  const queries = useQueryClient();
  const [asking, setAsking] = useState(false);
  const gone = useMutation({
    mutationFn: () => remove(`/api/v1/repositories/${name.split("/").map(encodeURIComponent).join("/")}`),
    onSettled: () => queries.invalidateQueries({ queryKey: ["repositories"] }),
  });
  return (
    <>
      <button type="button" className="button" aria-label={`Remove ${name}`} onClick={() => setAsking(true)}>
        Remove
      </button>
      {gone.isError && (
        <div className="w-full">
          <Trouble error={gone.error} />
        </div>
      )}
      {asking && (
        <Dialog title={`Remove ${name}?`} close={() => setAsking(false)}>
          <p className="text-soft">It is looked at for labels no more. Its Tasks stay and go on, and webhooks from it still count.</p>
          <form method="dialog" className="mt-4 flex justify-end gap-2">
            <button className="button">Keep it</button>
            <button className="button primary" onClick={() => gone.mutate()}>
              Remove it
            </button>
          </form>
        </Dialog>
      )}
    </>
  );
}
