import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { post, type Me } from "../../api/client";
import { Field, FormTrouble } from "../../parts/Form";
import { setupToken } from "./setupToken";

const POINTERS = ["/username", "/email", "/password"];

/** The first admin's account, by the terminal's token, or one of one's own where that is open. */
export function NewAccount({ kind, done }: { kind: "setup" | "register"; done: () => void }) {
  const [token, setToken] = useState(setupToken);
  const [username, setUsername] = useState("");
  const [email, setEmail] = useState("");
  const [password, setPassword] = useState("");
  const submit = useMutation({
    mutationFn: async () => {
      const account = { username: username.trim(), email: email.trim(), password };
      if (kind === "setup") return post<Me>("/api/auth/setup", { ...account, token: token.trim() });
      await post<Me>("/api/auth/register", account);
      return post<Me>("/api/auth/session", { username: account.username, password });
    },
    onSuccess: done,
  });
  const { error } = submit;
  return (
    <form
      className="space-y-4"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        submit.mutate();
      }}
    >
      {kind === "setup" && (
        <Field label="Setup token" className="font-mono" autoComplete="off" required autoFocus={!setupToken} value={token} hint="Fettle’s terminal shows it when it starts, and a link that brings it here." onChange={(event) => setToken(event.target.value)} />
      )}
      <Field label="User name" pointer="/username" error={error} autoComplete="username" autoCapitalize="none" spellCheck={false} required autoFocus={kind === "register" || setupToken !== ""} value={username} onChange={(event) => setUsername(event.target.value)} />
      <Field label="E-mail address" pointer="/email" error={error} type="email" autoComplete="email" required value={email} onChange={(event) => setEmail(event.target.value)} />
      <Field label="Password" pointer="/password" error={error} type="password" autoComplete="new-password" required minLength={12} value={password} hint="At least 12 characters; a few unrelated words are good." onChange={(event) => setPassword(event.target.value)} />
      <FormTrouble error={error} pointers={POINTERS} />
      <button type="submit" className="button primary w-full justify-center" disabled={submit.isPending}>
        {kind === "setup" ? "Make the first admin" : "Make an account"}
      </button>
    </form>
  );
}
