import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent, type ReactNode } from "react";
import { get, key, post, type AuthState, type Me } from "../../api/client";
import { Field, FormTrouble } from "../../parts/Form";
import { Door } from "./Door";
import { NewAccount } from "./NewAccount";
import { signInProblem } from "./signInProblem";

/** How somebody comes in. `state` is null where there are no accounts and only the admin key opens. */
export function SignIn({ state, ended, done }: { state: AuthState | null; ended: boolean; done: () => void }) {
  const [registering, setRegistering] = useState(false);
  if (state?.setup_needed) {
    return (
      <Door title="Make the first admin">
        <p className="text-soft">Nobody has an account here yet. Whoever has the terminal’s token makes the first one.</p>
        <NewAccount kind="setup" done={done} />
        <OtherWays>
          <WithKey done={done} />
        </OtherWays>
      </Door>
    );
  }
  if (!state) {
    return (
      <Door title="Sign in">
        {ended && <Ended />}
        <WithKey done={done} />
      </Door>
    );
  }
  if (registering && state.registration === "open") {
    return (
      <Door title="Make an account">
        <p className="text-soft">It may look at everything; an admin lets it do more.</p>
        <NewAccount kind="register" done={done} />
        <button type="button" className="text-accent underline" onClick={() => setRegistering(false)}>
          Sign in instead
        </button>
      </Door>
    );
  }
  return (
    <Door title="Sign in">
      {ended && <Ended />}
      {signInProblem && !ended && (
        <p role="alert" className="rounded-md border border-bad px-3 py-2 text-bad">
          {signInProblem}
        </p>
      )}
      <WithPassword done={done} />
      {state.oidc && (
        <a className="button w-full justify-center" href="/api/auth/oidc/start">
          Sign in with {state.oidc.name}
        </a>
      )}
      {state.registration === "open" && (
        <p className="text-soft">
          No account?{" "}
          <button type="button" className="text-accent underline" onClick={() => setRegistering(true)}>
            Make one
          </button>
        </p>
      )}
      <OtherWays>
        <WithKey done={done} />
      </OtherWays>
    </Door>
  );
}

const Ended = () => (
  <p role="status" className="rounded-md border border-warn px-3 py-2 text-warn">
    You are signed out here: the session has ended, or was ended by somebody.
  </p>
);

function OtherWays({ children }: { children: ReactNode }) {
  return (
    <details className="border-t border-line pt-3">
      <summary className="text-soft">Other ways to sign in</summary>
      <div className="pt-3">{children}</div>
    </details>
  );
}

function WithPassword({ done }: { done: () => void }) {
  const [username, setUsername] = useState("");
  const [password, setPassword] = useState("");
  const submit = useMutation({
    mutationFn: () => post<Me>("/api/auth/session", { username: username.trim(), password }),
    onSuccess: done,
  });
  return (
    <form
      className="space-y-4"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        submit.mutate();
      }}
    >
      <Field label="User name or e-mail address" autoComplete="username" autoCapitalize="none" spellCheck={false} required autoFocus value={username} onChange={(event) => setUsername(event.target.value)} />
      <Field label="Password" type="password" autoComplete="current-password" required value={password} onChange={(event) => setPassword(event.target.value)} />
      <FormTrouble error={submit.error} />
      <button type="submit" className="button primary w-full justify-center" disabled={submit.isPending}>
        Sign in
      </button>
    </form>
  );
}

/** The admin key or an API key, which stays in this tab until it is closed. */
function WithKey({ done }: { done: () => void }) {
  const [value, setValue] = useState("");
  const submit = useMutation({
    mutationFn: async () => {
      key.set(value.trim());
      try {
        return await get.me();
      } catch (failure) {
        key.clear();
        throw failure;
      }
    },
    onSuccess: done,
  });
  return (
    <form
      className="space-y-3"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        submit.mutate();
      }}
    >
      <Field
        label="Admin key"
        className="font-mono"
        type="password"
        autoComplete="off"
        required
        value={value}
        hint={
          <>
            It lies in <code className="font-mono">admin.key</code> of Fettle’s data folder; an API key does as well. This tab forgets it when it is closed.
          </>
        }
        onChange={(event) => setValue(event.target.value)}
      />
      <FormTrouble error={submit.error} />
      <button type="submit" className="button w-full justify-center" disabled={submit.isPending}>
        Sign in with the key
      </button>
    </form>
  );
}
