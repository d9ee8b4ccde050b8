import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type Task = Schemas["Task"];
export type TaskSummary = Schemas["TaskSummary"];
export type TaskEvent = Schemas["TaskEvent"];
export type TaskState = Schemas["TaskState"];
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
    return new Failure(body.title, body.detail, response.status, body.request_id, body.errors ?? []);
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
  if (response.status === 401 && key.get()) {
    key.clear();
    signedOut();
  }
  if (!response.ok) throw await refused(response);
  return (await response.json()) as T;
}

export const post = <T>(path: string, body?: unknown, extra: Record<string, string> = {}) =>
  ask<T>(path, {
    method: "POST",
    headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...extra },
    body: body === undefined ? undefined : JSON.stringify(body),
  });

type Answer<P extends keyof paths> = paths[P] extends {
  get: { responses: { 200: { content: { "application/json": infer T } } } };
}
  ? T
  : never;

export const get = {
  overview: () => ask<Answer<"/api/v1/overview">>("/api/v1/overview"),
  tasks: (state: string | undefined, after: string | undefined) => {
    const query = new URLSearchParams({ limit: "50", ...(state ? { state } : {}), ...(after ? { after } : {}) });
    return ask<Answer<"/api/v1/tasks">>(`/api/v1/tasks?${query}`);
  },
  task: (id: string) => ask<Task>(`/api/v1/tasks/${encodeURIComponent(id)}`),
  patch: (id: string) => ask<Answer<"/api/v1/tasks/{task_id}/patch">>(`/api/v1/tasks/${encodeURIComponent(id)}/patch`),
  proof: (id: string) => ask<Answer<"/api/v1/tasks/{task_id}/proof">>(`/api/v1/tasks/${encodeURIComponent(id)}/proof`),
  deadJobs: () => ask<Schemas["DeadJobs"]>("/api/v1/dead-jobs"),
  reconcilers: () => ask<Schemas["ReconcilerList"]>("/api/v1/system/reconcilers"),
};
