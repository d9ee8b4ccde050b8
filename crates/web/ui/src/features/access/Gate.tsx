import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState, type ReactNode } from "react";
import { Failure, get, key, onSignedOut, remove, type AuthState, type Me } from "../../api/client";
import { Loading, Trouble } from "../../parts/Show";
import { Door } from "./Door";
import { MeContext } from "./me";
import { SignIn } from "./SignIn";

/** A session that was ended elsewhere is noticed so soon, also on a page that asks for nothing. */
const LOOK_AGAIN_MS = 20_000;

interface Entry {
  /** Null where there are no accounts. */
  state: AuthState | null;
  me: Me | null;
}

async function enter(): Promise<Entry> {
  const state = await get.authState().catch((error: unknown) => {
    if (error instanceof Failure && (error.code === "not_configured" || error.status === 404)) return null;
    throw error;
  });
  if (!key.get()) return { state, me: state?.user ?? null };
  try {
    return { state, me: await get.me() };
  } catch (error) {
    if (error instanceof Failure && error.status === 401) return { state, me: state?.user ?? null };
    throw error;
  }
}

/** Lets in whoever has shown who they are, and shows the others how. */
export function Gate({ children }: { children: (signOut: () => Promise<void>) => ReactNode }) {
  const queries = useQueryClient();
  // Whoever leaves by themselves is not told that their session has ended.
  const [left, setLeft] = useState(true);
  const entry = useQuery({ queryKey: ["entry"], queryFn: enter, refetchInterval: LOOK_AGAIN_MS, refetchOnWindowFocus: "always", staleTime: 0 });
  const inside = entry.data?.me != null;
  useEffect(() => onSignedOut(() => void queries.invalidateQueries({ queryKey: ["entry"] })), [queries]);
  useEffect(() => {
    // What somebody else was shown is not kept for whoever comes next.
    if (entry.data && !inside) queries.removeQueries({ predicate: (query) => query.queryKey[0] !== "entry" });
  }, [entry.data, inside, queries]);
  useEffect(() => {
    if (inside) setLeft(false);
  }, [inside]);
  if (!entry.data) {
    return (
      <Door title="Fettle">
        {entry.isError ? <Trouble error={entry.error} again={() => void entry.refetch()} /> : <Loading rows={2} />}
      </Door>
    );
  }
  const { me, state } = entry.data;
  if (!me) {
    return (
      <SignIn
        state={state}
        ended={!left}
        done={() => void queries.invalidateQueries({ queryKey: ["entry"] })}
      />
    );
  }
  const signOut = async () => {
    if (key.get()) key.clear();
    else await remove("/api/auth/session");
    setLeft(true);
    await queries.invalidateQueries({ queryKey: ["entry"] });
  };
  return <MeContext value={me}>{children(signOut)}</MeContext>;
}
