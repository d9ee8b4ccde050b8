import { createContext, useContext } from "react";
import type { Me } from "../../api/client";

/** What the API lets somebody do, by its own words. */
export type Action =
  | "tasks.create"
  | "tasks.cancel"
  | "tasks.retry"
  | "runs.create"
  | "messages.create"
  | "pull_requests.create"
  | "jobs.redrive"
  | "models.change"
  | "models.try"
  | "repositories.change"
  | "secrets.rotate"
  | "forge.change"
  | "sessions.end"
  | "api_keys.create"
  | "me.password"
  | "users.read"
  | "users.change"
  | "audit_log.read"
  | "settings.read";

export const MeContext = createContext<Me | null>(null);

export function useMe(): { me: Me; may: (action: Action) => boolean; why: string } {
  const me = useContext(MeContext);
  if (!me) throw new Error("a page is shown to whoever has come in");
  const key = me.via === "api_key" ? "the scope of this key" : `the role ${me.role}`;
  return { me, may: (action) => me.may.includes(action), why: `Not allowed to ${key}.` };
}
