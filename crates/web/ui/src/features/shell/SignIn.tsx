import { useState, type FormEvent } from "react";
import { get, key } from "../../api/client";
import { Trouble } from "../../parts/Show";

/** Asks for the admin key, which stays in this tab until it is closed. */
export function SignIn({ done }: { done: () => void }) {
  const [value, setValue] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  async function submit(event: FormEvent) {
    event.preventDefault();
    setBusy(true);
    setError(null);
    key.set(value.trim());
    try {
      await get.overview();
      done();
    } catch (failure) {
      key.clear();
      setError(failure);
    } finally {
      setBusy(false);
    }
  }
  return (
    <main className="flex min-h-full items-center justify-center p-4">
      <form onSubmit={submit} className="panel w-full max-w-sm space-y-4 p-6">
        <div className="flex items-center gap-3">
          <img src="/icon.svg" alt="" width={32} height={32} />
          <h1 className="text-lg font-semibold">Fettle</h1>
        </div>
        <label className="block">
          <span className="mb-1 block font-medium">Admin key</span>
          <input className="field font-mono" type="password" autoComplete="current-password" required value={value} autoFocus onChange={(event) => setValue(event.target.value)} />
        </label>
        <p className="text-soft">
          It lies in <code className="font-mono">admin.key</code> of Fettle’s data folder. This tab forgets it when it is closed.
        </p>
        {error !== null && <Trouble error={error} />}
        <button type="submit" className="button primary w-full justify-center" disabled={busy}>
          Sign in
        </button>
      </form>
    </main>
  );
}
