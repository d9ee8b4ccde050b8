import { Boxes, Cpu, FolderGit2, Gauge, Home, ListChecks, ScrollText, Settings, Users } from "lucide-react";
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
  { to: "/repositories", label: "Repositories", Icon: FolderGit2 },
  { to: "/models", label: "Models", Icon: Boxes },
  { to: "/gpus", label: "GPUs", Icon: Cpu },
  { to: "/queue", label: "Workers & queue", Icon: Gauge },
  { to: "/users", label: "Users & keys", Icon: Users, needs: "users.read" },
  { to: "/audit", label: "Audit", Icon: ScrollText, needs: "audit_log.read" },
  { to: "/settings", label: "Settings", Icon: Settings, needs: "settings.read" },
];
