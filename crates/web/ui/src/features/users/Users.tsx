import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";
import { ChevronDown, ChevronRight, Lock, UserPlus } from "lucide-react";
import { useState, type FormEvent } from "react";
import { get, patch, post, type User } from "../../api/client";
import { Dialog, Field, FormTrouble } from "../../parts/Form";
import { Ago, day, Empty, Loading, Page, Trouble } from "../../parts/Show";
import { KeysOf } from "../account/ApiKeys";
import { Sessions } from "../account/Sessions";
import { useMe } from "../access/me";

const ROLES = [
  { name: "viewer", text: "Viewer", why: "looks" },
  { name: "maintainer", text: "Maintainer", why: "also starts, stops and retries" },
  { name: "admin", text: "Admin", why: "everything" },
] as const;

/** Everybody's account, for admins. */
export function Users() {
  const { may, why } = useMe();
  const users = useInfiniteQuery({
    queryKey: ["users"],
    queryFn: ({ pageParam }) => get.users(pageParam),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next ?? undefined,
    enabled: may("users.read"),
  });
  const [adding, setAdding] = useState(false);
  const items = users.data?.pages.flatMap((page) => page.items) ?? [];
  if (!may("users.read")) {
    return (
      <Page title="Users & keys">
        <Empty title="This is for admins">{why}</Empty>
      </Page>
    );
  }
  return (
    <Page
      title="Users & keys"
      aside={
        <button type="button" className="button primary" onClick={() => setAdding(true)}>
          <UserPlus size={14} aria-hidden /> Add a user
        </button>
      }
    >
      <p className="mb-3 text-soft">
        {ROLES.map((role) => `${role.text}: ${role.why}`).join(" · ")}. Whoever is inactive cannot come in, and what they did stays. One’s own keys and password are under My account.
      </p>
      {users.isError && <Trouble error={users.error} again={() => void users.refetch()} />}
      {users.isPending && <Loading rows={4} />}
      {users.isSuccess && items.length === 0 && <Empty title="No accounts yet">Add the first one; until then the admin key alone opens Fettle.</Empty>}
      {items.length > 0 && (
        <ul className="panel divide-y divide-line" aria-label="Users">
          {items.map((user) => (
            <Row key={user.id} user={user} />
          ))}
        </ul>
      )}
      {users.hasNextPage && (
        <button type="button" className="button mt-3" disabled={users.isFetchingNextPage} onClick={() => void users.fetchNextPage()}>
          More users
        </button>
      )}
      {adding && <Add close={() => setAdding(false)} />}
    </Page>
  );
}

function Row({ user }: { user: User }) {
  const { me, may } = useMe();
  const queries = useQueryClient();
  const [open, setOpen] = useState(false);
  const [setting, setSetting] = useState(false);
  const [asking, setAsking] = useState(false);
  const change = useMutation({
    mutationFn: (edit: { role?: string; active?: boolean }) => patch<User>(`/api/v1/users/${encodeURIComponent(user.id)}`, edit),
    onSettled: () => queries.invalidateQueries({ queryKey: ["users"] }),
    onSuccess: () => (user.id === me.id ? queries.invalidateQueries({ queryKey: ["entry"] }) : undefined),
  });
  const can = may("users.change");
  const Arrow = open ? ChevronDown : ChevronRight;
  return (
    <li className="px-4 py-2.5">
      <div className="flex flex-wrap items-center gap-x-4 gap-y-2">
        <button type="button" className="-ml-1 flex min-w-0 flex-1 basis-64 items-center gap-1.5 text-left" aria-expanded={open} onClick={() => setOpen(!open)}>
          <Arrow size={15} aria-hidden className="shrink-0 text-soft" />
          <span className="min-w-0">
            <span className={`block truncate font-medium ${user.active ? "" : "text-soft line-through"}`}>
              {user.username}
            </span>
            <span className="block truncate text-soft">{user.email}</span>
          </span>
        </button>
        <span className="flex w-44 flex-wrap gap-x-2 text-soft max-sm:w-full max-sm:pl-5">
          {!user.active && <span className="text-warn">inactive</span>}
          {user.locked_until && (
            <span className="inline-flex items-center gap-1 text-warn" title={new Date(user.locked_until).toLocaleString()}>
              <Lock size={12} aria-hidden /> locked for a while
            </span>
          )}
          {user.id === me.id && <span className="text-accent">you</span>}
          {user.last_login_at ? (
            <span>
              here <Ago at={user.last_login_at} />
            </span>
          ) : (
            <span>never signed in</span>
          )}
        </span>
        <select className="field !w-36" aria-label={`Role of ${user.username}`} value={user.role} disabled={!can || change.isPending} onChange={(event) => change.mutate({ role: event.target.value })}>
          {ROLES.map((role) => (
            <option key={role.name} value={role.name}>
              {role.text}
            </option>
          ))}
        </select>
      </div>
      {change.isError && (
        <div className="mt-2">
          <Trouble error={change.error} />
        </div>
      )}
      {open && (
        <div className="mt-3 space-y-3 pl-5">
          <p className="text-soft">
            Made on {day(user.created_at)}. <code className="font-mono text-xs">{user.id}</code>
          </p>
          <h2 className="font-medium">Signed in</h2>
          <Sessions user={user.id} />
          <h2 className="font-medium">API keys</h2>
          <KeysOf user={user.id} name={user.username} />
          {can && (
            <div className="flex flex-wrap gap-2">
              <button type="button" className="button" aria-label={`Set a new password for ${user.username}`} onClick={() => setSetting(true)}>
                Set a new password
              </button>
              {user.active ? (
                <button type="button" className="button" disabled={change.isPending} aria-label={`Make inactive: ${user.username}`} onClick={() => setAsking(true)}>
                  Make inactive
                </button>
              ) : (
                <button type="button" className="button" disabled={change.isPending} aria-label={`Make active: ${user.username}`} onClick={() => change.mutate({ active: true })}>
                  Make active
                </button>
              )}
            </div>
          )}
        </div>
      )}
      {asking && (
        <Dialog title={`Make ${user.username} inactive?`} close={() => setAsking(false)}>
          <p className="text-soft">All sessions of the account end, and its keys open nothing. It can be made active again.</p>
          <form method="dialog" className="mt-4 flex justify-end gap-2">
            <button className="button">Leave it</button>
            <button className="button primary" onClick={() => change.mutate({ active: false })}>
              Make it inactive
            </button>
          </form>
        </Dialog>
      )}
      {setting && <NewPassword user={user} close={() => setSetting(false)} />}
    </li>
  );
}

function NewPassword({ user, close }: { user: User; close: () => void }) {
  const queries = useQueryClient();
  const [password, setPassword] = useState("");
  const change = useMutation({
    mutationFn: () => patch<User>(`/api/v1/users/${encodeURIComponent(user.id)}`, { password }),
    onSuccess: () => {
      close();
      return Promise.all(["sessions", "api-keys"].map((name) => queries.invalidateQueries({ queryKey: [name] })));
    },
  });
  return (
    <Dialog title={`A new password for ${user.username}`} close={close}>
      <form
        className="space-y-4"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          change.mutate();
        }}
      >
        <Field label="New password" pointer="/password" error={change.error} type="password" autoComplete="new-password" required minLength={12} autoFocus hint="At least 12 characters. All sessions of the account end, and its API keys are removed for good; tell the person another way than this." value={password} onChange={(event) => setPassword(event.target.value)} />
        <FormTrouble error={change.error} pointers={["/password"]} />
        <div className="flex justify-end gap-2">
          <button type="button" className="button" onClick={close}>
            Not now
          </button>
          <button type="submit" className="button primary" disabled={change.isPending}>
            Set it
          </button>
        </div>
      </form>
    </Dialog>
  );
}

const POINTERS = ["/username", "/email", "/password"];

function Add({ close }: { close: () => void }) {
  const queries = useQueryClient();
  const [username, setUsername] = useState("");
  const [email, setEmail] = useState("");
  const [password, setPassword] = useState("");
  const [role, setRole] = useState("viewer");
  const make = useMutation({
    mutationFn: () => post<User>("/api/v1/users", { username: username.trim(), email: email.trim(), password, role }),
    onSuccess: () => {
      close();
      return queries.invalidateQueries({ queryKey: ["users"] });
    },
  });
  const { error } = make;
  return (
    <Dialog title="Add a user" close={close}>
      <form
        className="space-y-4"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          make.mutate();
        }}
      >
        <Field label="User name" pointer="/username" error={error} autoComplete="off" autoCapitalize="none" spellCheck={false} required autoFocus value={username} onChange={(event) => setUsername(event.target.value)} />
        <Field label="E-mail address" pointer="/email" error={error} type="email" autoComplete="off" required value={email} onChange={(event) => setEmail(event.target.value)} />
        <Field label="Password" pointer="/password" error={error} type="password" autoComplete="new-password" required minLength={12} hint="At least 12 characters; it can be changed under My account." value={password} onChange={(event) => setPassword(event.target.value)} />
        <label className="block">
          <span className="mb-1 block font-medium">Role</span>
          <select className="field" value={role} onChange={(event) => setRole(event.target.value)}>
            {ROLES.map((one) => (
              <option key={one.name} value={one.name}>
                {one.text}: {one.why}
              </option>
            ))}
          </select>
        </label>
        <FormTrouble error={error} pointers={POINTERS} />
        <div className="flex justify-end gap-2">
          <button type="button" className="button" onClick={close}>
            Not now
          </button>
          <button type="submit" className="button primary" disabled={make.isPending}>
            Add
          </button>
        </div>
      </form>
    </Dialog>
  );
}
