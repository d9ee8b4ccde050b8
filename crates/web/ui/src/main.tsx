import "./features/access/setupToken";
import "./features/access/signInProblem";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { createRootRoute, createRoute, createRouter, lazyRouteComponent, redirect, RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Failure } from "./api/client";
import { Shell } from "./features/shell/Shell";
import { TABS, type Tab } from "./features/tasks/tabs";
import { NotFound } from "./features/shell/NotFound";
import { applyTheme } from "./features/shell/theme";
import type { TaskState } from "./api/client";
import "./style.css";

applyTheme();

const STATES: TaskState[] = ["queued", "running", "waiting", "publishing", "done", "cancelled"];

const root = createRootRoute({ component: Shell, notFoundComponent: NotFound });
const home = createRoute({
  getParentRoute: () => root,
  path: "/",
  component: lazyRouteComponent(() => import("./features/home/Home"), "Home"),
});
const tasks = createRoute({
  getParentRoute: () => root,
  path: "/tasks",
  validateSearch: (search: Record<string, unknown>): { state?: TaskState } => {
    const state = STATES.find((one) => one === search.state);
    return state ? { state } : {};
  },
  component: lazyRouteComponent(() => import("./features/tasks/TaskList"), "TaskList"),
});
const task = createRoute({
  getParentRoute: () => root,
  path: "/tasks/$id",
  validateSearch: (search: Record<string, unknown>): { tab?: Tab } => {
    const tab = TABS.find(({ id }) => id === search.tab);
    return tab ? { tab: tab.id } : {};
  },
  component: lazyRouteComponent(() => import("./features/tasks/TaskPage"), "TaskPage"),
});
const queue = createRoute({
  getParentRoute: () => root,
  path: "/queue",
  component: lazyRouteComponent(() => import("./features/queue/Queue"), "Queue"),
});
const account = createRoute({
  getParentRoute: () => root,
  path: "/account",
  component: lazyRouteComponent(() => import("./features/account/Account"), "Account"),
});
const users = createRoute({
  getParentRoute: () => root,
  path: "/users",
  component: lazyRouteComponent(() => import("./features/users/Users"), "Users"),
});
const audit = createRoute({
  getParentRoute: () => root,
  path: "/audit",
  validateSearch: ({ actor, action }: Record<string, unknown>): { actor?: string; action?: string } => ({
    ...(typeof actor === "string" ? { actor } : {}),
    ...(typeof action === "string" ? { action } : {}),
  }),
  component: lazyRouteComponent(() => import("./features/audit/Audit"), "Audit"),
});
const repositories = createRoute({
  getParentRoute: () => root,
  path: "/repositories",
  component: lazyRouteComponent(() => import("./features/repositories/Repositories"), "Repositories"),
});
const models = createRoute({
  getParentRoute: () => root,
  path: "/models",
  component: lazyRouteComponent(() => import("./features/models/Models"), "Models"),
});
const gpus = createRoute({
  getParentRoute: () => root,
  path: "/gpus",
  component: lazyRouteComponent(() => import("./features/gpus/Gpus"), "Gpus"),
});
const settings = createRoute({
  getParentRoute: () => root,
  path: "/settings",
  component: lazyRouteComponent(() => import("./features/settings/Settings"), "Settings"),
});
// The link of the terminal; once there is an admin it leads to the start.
const setup = createRoute({
  getParentRoute: () => root,
  path: "/setup",
  beforeLoad: () => {
    throw redirect({ to: "/", replace: true });
  },
});

const router = createRouter({ routeTree: root.addChildren([home, tasks, task, queue, account, users, audit, repositories, models, gpus, settings, setup]), defaultPreload: "intent" });

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}

const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      // Whoever is refused is refused again; an outage is tried twice more.
      retry: (count, error) => count < 2 && !(error instanceof Failure && error.status >= 400 && error.status < 500),
    },
  },
});

const place = document.getElementById("root");
if (place) {
  createRoot(place).render(
    <StrictMode>
      <QueryClientProvider client={client}>
        <RouterProvider router={router} />
      </QueryClientProvider>
    </StrictMode>,
  );
}
