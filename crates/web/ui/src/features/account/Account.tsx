import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { post } from "../../api/client";
import { Field, FormTrouble } from "../../parts/Form";
import { Page } from "../../parts/Show";
import { useMe } from "../access/me";
import { ApiKeys } from "./ApiKeys";
import { Sessions } from "./Sessions";

const VIA: Record<string, string> = {
  session: "signed in with this browser",
  token: "by an access token",
  api_key: "by an API key",
  admin_key: "by the admin key",
};

/** Oneself: who one is here, the password, where one is signed in, and keys for programs. */
export function Account() {
  const { me, may, why } = useMe();
  return (
    <Page title="My account">
      <div className="panel flex flex-wrap items-baseline gap-x-4 gap-y-1 p-4">
        <p className="text-base font-semibold">{me.via === "admin_key" ? "The holder of the admin key" : me.username}</p>
        {me.email && <p className="text-soft">{me.email}</p>}
        <p>{me.role}</p>
        <p className="text-soft">{VIA[me.via] ?? me.via}</p>
      </div>
      {me.id ? (
        <>
          <h2 className="mt-8 mb-2 text-base font-semibold">Where you are signed in</h2>
          <Sessions />
          <h2 className="mt-8 mb-2 text-base font-semibold">API keys</h2>
          <ApiKeys />
          <h2 className="mt-8 mb-2 text-base font-semibold">Password</h2>
          {may("me.password") ? <Password username={me.username} /> : <p className="text-soft">{why}</p>}
        </>
      ) : (
        <p className="mt-4 text-soft">
          The admin key is no account: it has no password, no sessions and no keys of its own. Make yourself an account under Users &amp; keys, and sign in with it.
        </p>
      )}
    </Page>
  );
}

const POINTERS = ["/current", "/new"];

function Password({ username }: { username: string }) {
  const [current, setCurrent] = useState("");
  const [fresh, setFresh] = useState("");
  const change = useMutation({
    mutationFn: () => post<void>("/api/v1/me/password", { current, new: fresh }),
    onSuccess: () => {
      setCurrent("");
      setFresh("");
    },
  });
  return (
    <form
      className="panel max-w-md space-y-4 p-4"
      aria-label="Password"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        change.mutate();
      }}
    >
      <input type="text" autoComplete="username" value={username} readOnly hidden />
      <Field label="Current password" pointer="/current" error={change.error} type="password" autoComplete="current-password" required value={current} onChange={(event) => setCurrent(event.target.value)} />
      <Field label="New password" pointer="/new" error={change.error} type="password" autoComplete="new-password" required minLength={12} hint="At least 12 characters. All other sessions end." value={fresh} onChange={(event) => setFresh(event.target.value)} />
      <FormTrouble error={change.error} pointers={POINTERS} />
      <div className="flex items-center gap-3">
        <button type="submit" className="button" disabled={change.isPending}>
          Change the password
        </button>
        <span role="status" className="text-good">{change.isSuccess && "It counts from now on."}</span>
      </div>
    </form>
  );
}
