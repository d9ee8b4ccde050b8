import { Gauge, Home, ListChecks, ScrollText, Users } from "lucide-react";
import type { Action } from "../access/me";

interface PageEntry {
  to: string;
  label: string;
  Icon: typeof Home;
  /** Only for those who may. */
  needs?: Action;
}

export const PAGES: PageEntry[] = [
  { to: "/", label: "Home", Icon: Home },
  { to: "/tasks", label: "Tasks", Icon: ListChecks },
  { to: "/queue", label: "Workers & queue", Icon: Gauge },
  { to: "/users", label: "Users & keys", Icon: Users, needs: "users.read" },
  { to: "/audit", label: "Audit", Icon: ScrollText, needs: "audit_log.read" },
];
