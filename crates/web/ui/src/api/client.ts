import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type Task = Schemas["Task"];
export type TaskSummary = Schemas["TaskSummary"];
export type TaskEvent = Schemas["TaskEvent"];
export type TaskState = Schemas["TaskState"];
export type Me = Schemas["Me"];
export type User = Schemas["User"];
export type Session = Schemas["Session"];
export type AuditLogEntry = Schemas["AuditLogEntry"];
export type ApiKey = Schemas["ApiKey"];
export type Model = Schemas["Model"];
/** The document cannot name what an identity provider is called. */
export type AuthState = Omit<Schemas["AuthState"], "oidc"> & { oidc?: { name: string } | null };
type Problem = Schemas["Problem"];

const KEY = "fettle.key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value: string) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

/** What went wrong, in the server's words where it has said any. */
export class Failure extends Error {
  constructor(
    readonly title: string,
    readonly detail: string,
    readonly status: number,
    readonly requestId: string | null,
    readonly fields: { pointer: string; detail: string }[] = [],
    readonly code = "",
  ) {
    super(`${title}: ${detail}`);
  }
}

/** Longer than the server lets any request run. */
const ANSWER_LIMIT_MS = 35_000;

export function headers(): Record<string, string> {
  const token = key.get();
  return { "X-Fettle-Request": "1", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

export async function refused(response: Response): Promise<Failure> {
  const text = await response.text();
  try {
    const body = JSON.parse(text) as Problem;
    return new Failure(body.title, body.detail, response.status, body.request_id, body.errors ?? [], body.code);
  } catch {
    const detail = text.slice(0, 200) || response.statusText;
    return new Failure("Unexpected answer", detail, response.status, response.headers.get("x-request-id"));
  }
}

let signedOut = () => {};
export const onSignedOut = (act: () => void) => {
  signedOut = act;
};

export async function ask<T>(path: string, init: RequestInit = {}): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      ...init,
      headers: { Accept: "application/json", ...headers(), ...init.headers },
      signal: AbortSignal.any([AbortSignal.timeout(ANSWER_LIMIT_MS), ...(init.signal ? [init.signal] : [])]),
    });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Failure("No answer", "Fettle could not be reached. Is it running, and the network up?", 0, null);
  }
  if (!response.ok) throw await turnedAway(path, response);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

/** A 401 of the API, unlike one of the sign-in itself, says that whatever this page came with is good no longer. */
export async function turnedAway(path: string, response: Response): Promise<Failure> {
  if (response.status === 401 && path.startsWith("/api/v1/")) {
    key.clear();
    signedOut();
  }
  return refused(response);
}

const send = <T>(method: string, path: string, body?: unknown, extra: Record<string, string> = {}) =>
  ask<T>(path, {
    method,
    headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...extra },
    body: body === undefined ? undefined : JSON.stringify(body),
  });

export const post = <T>(path: string, body?: unknown, extra?: Record<string, string>) => send<T>("POST", path, body, extra);
export const put = <T>(path: string, body: unknown) => send<T>("PUT", path, body);
export const patch = <T>(path: string, body: unknown) => send<T>("PATCH", path, body);
export const remove = (path: string) => send<void>("DELETE", path);

/** Saves what is at `path`. Read whole, since a link carries no key; what comes by cookie is a link of the browser's own. */
export async function download(path: string, name: string): Promise<void> {
  const link = document.createElement("a");
  link.download = name;
  if (key.get() === null) {
    link.href = path;
    link.click();
    return;
  }
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await turnedAway(path, response);
  const url = URL.createObjectURL(await response.blob());
  link.href = url;
  link.click();
  URL.revokeObjectURL(url);
}

type Answer<P extends keyof paths> = paths[P] extends {
  get: { responses: { 200: { content: { "application/json": infer T } } } };
}
  ? T
  : never;

/** Without it, of the leading Run. */
const ofRun = (run: string | undefined) => (run ? `?run=${encodeURIComponent(run)}` : "");

export const get = {
  authState: () => ask<AuthState>("/api/auth/state"),
  me: () => ask<Me>("/api/v1/me"),
  sessions: (user?: string) => ask<Schemas["SessionList"]>(`/api/v1/sessions${user ? `?user=${encodeURIComponent(user)}` : ""}`),
  apiKeys: (user?: string) => ask<Schemas["ApiKeyList"]>(user ? `/api/v1/users/${encodeURIComponent(user)}/keys` : "/api/v1/api-keys"),
  auditLog: ({ actor, action, after }: { actor?: string; action?: string; after?: string }) =>
    ask<Schemas["LogPage"]>(`/api/v1/audit-log?${new URLSearchParams({ limit: "50", ...(actor ? { actor } : {}), ...(action ? { action } : {}), ...(after ? { after } : {}) })}`),
  users: (after: string | undefined) => ask<Schemas["UserPage"]>(`/api/v1/users?${new URLSearchParams(after ? { after } : {})}`),
  overview: () => ask<Answer<"/api/v1/overview">>("/api/v1/overview"),
  tasks: (state: string | undefined, after: string | undefined) => {
    const query = new URLSearchParams({ limit: "50", ...(state ? { state } : {}), ...(after ? { after } : {}) });
    return ask<Answer<"/api/v1/tasks">>(`/api/v1/tasks?${query}`);
  },
  task: (id: string) => ask<Task>(`/api/v1/tasks/${encodeURIComponent(id)}`),
  messages: (id: string) => ask<Answer<"/api/v1/tasks/{task_id}/messages">>(`/api/v1/tasks/${encodeURIComponent(id)}/messages`),
  runs: (id: string) => ask<Answer<"/api/v1/tasks/{task_id}/runs">>(`/api/v1/tasks/${encodeURIComponent(id)}/runs`),
  patch: (id: string, run?: string) => ask<Answer<"/api/v1/tasks/{task_id}/patch">>(`/api/v1/tasks/${encodeURIComponent(id)}/patch${ofRun(run)}`),
  proof: (id: string, run?: string) => ask<Answer<"/api/v1/tasks/{task_id}/proof">>(`/api/v1/tasks/${encodeURIComponent(id)}/proof${ofRun(run)}`),
  queue: (after: string | undefined) => ask<Schemas["Queue"]>(`/api/v1/queue${after ? `?${new URLSearchParams({ after })}` : ""}`),
  pods: () => ask<Schemas["PodList"]>("/api/v1/pods"),
  podLog: (pod: string, lines: number) => ask<Schemas["PodLog"]>(`/api/v1/pods/${encodeURIComponent(pod)}/log?lines=${lines}`),
  repositories: () => ask<Schemas["RepositoryList"]>("/api/v1/repositories"),
  models: () => ask<Schemas["ModelList"]>("/api/v1/models"),
  forge: () => ask<Schemas["Forge"]>("/api/v1/forge"),
  settings: () => ask<Schemas["Settings"]>("/api/v1/system/settings"),
  devices: () => ask<Schemas["DeviceList"]>("/api/v1/inference/devices"),
  placements: () => ask<Schemas["Placements"]>("/api/v1/inference/placements"),
  placementEvents: () => ask<Schemas["PlacementEvents"]>("/api/v1/inference/events"),
  steps: (run: string, after: number | undefined) => ask<Schemas["StepPage"]>(`/api/v1/runs/${encodeURIComponent(run)}/steps${after === undefined ? "" : `?after=${after}`}`),
  deadJobs: () => ask<Schemas["DeadJobs"]>("/api/v1/dead-jobs"),
  reconcilers: () => ask<Schemas["ReconcilerList"]>("/api/v1/system/reconcilers"),
};
