import { get, key, type Schemas, type TaskEvent } from "./client";

/** The whole tab's connection. */
export type Link = "connecting" | "live" | "lost";
export type Words = Schemas["TaskWords"];
type Told = Schemas["LiveMessage"];

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
/** A browser tells a page nothing of pings, so it asks for something itself. */
const ASK_EVERY_MS = 25_000;
/** An answer that is not there by then will not come. */
const ANSWER_MS = 10_000;
/** Nobody turns back to a page within this. */
const IDLE_MS = 1_000;

interface Watcher {
  event?: (event: TaskEvent) => void;
  words?: (words: Words) => void;
  /** Whatever follows is live; also after the connection was lost. What has no numbers begins anew. */
  begun?: () => void;
  /** The Task has ended, for now. */
  ended?: () => void;
  /** The ledger was restored: what was seen may not have happened. */
  gap?: () => void;
}

interface Topic {
  /** Events with greater numbers are wanted; absent: those that come from now on. */
  after: number | undefined;
  watchers: Set<Watcher>;
  /** It ends by itself, and is not asked for again until somebody wants it anew. */
  over: boolean;
}

/**
 * One WebSocket for everything that a tab follows. Event streams would be one connection each, and a browser has six for a host
 * over all its tabs: three pages of Tasks would wait for each other.
 */
class Line {
  private topics = new Map<string, Topic>();
  private links = new Set<(link: Link) => void>();
  private link: Link = "connecting";
  private socket: WebSocket | null = null;
  private pause = FIRST_PAUSE_MS;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private asking: ReturnType<typeof setInterval> | undefined;
  private answer: ReturnType<typeof setTimeout> | undefined;
  private opening = 0;

  constructor() {
    addEventListener("online", () => this.again());
    addEventListener("offline", () => this.lost());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.again());
  }

  onLink(watcher: (link: Link) => void): () => void {
    this.links.add(watcher);
    watcher(this.link);
    return () => this.links.delete(watcher);
  }

  /** Follows a topic; its events from after this number on. */
  watch(name: string, after: number | undefined, watcher: Watcher): () => void {
    const known = this.topics.get(name);
    if (known && !known.over) {
      known.watchers.add(watcher);
    } else {
      this.topics.set(name, { after, watchers: new Set([...(known?.watchers ?? []), watcher]), over: false });
      this.subscribe(name);
    }
    if (!this.socket && this.timer === undefined) this.open();
    return () => {
      const topic = this.topics.get(name);
      if (!topic?.watchers.delete(watcher) || topic.watchers.size > 0) return;
      this.topics.delete(name);
      if (!topic.over) this.say({ type: "unsubscribe", topic: name });
      if (this.topics.size === 0) setTimeout(() => this.topics.size === 0 && this.close(), IDLE_MS);
    };
  }

  private tell(link: Link) {
    if (link === this.link) return;
    this.link = link;
    for (const watcher of this.links) watcher(link);
  }

  private open() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const mine = ++this.opening;
    const url = new URL("/api/v1/live", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    // A session comes with its cookie; a key has no other way into a WebSocket than the protocols that are offered.
    const token = key.get();
    const protocols = token === null ? [] : ["fettle", `fettle-key.${base64url(token)}`];
    const socket = new WebSocket(url, protocols);
    this.socket = socket;
    const over = () => mine === this.opening && this.lost();
    socket.onopen = () => {
      this.pause = FIRST_PAUSE_MS;
      this.tell("live");
      for (const [name, topic] of this.topics) if (!topic.over) this.subscribe(name);
      clearInterval(this.asking);
      this.asking = setInterval(() => this.ask(), ASK_EVERY_MS);
    };
    socket.onmessage = ({ data }) => {
      clearTimeout(this.answer);
      this.answer = undefined;
      this.hear(JSON.parse(String(data)) as Told);
    };
    socket.onerror = over;
    socket.onclose = over;
  }

  private close() {
    this.opening += 1;
    this.socket?.close();
    this.socket = null;
    clearInterval(this.asking);
    clearTimeout(this.answer);
    clearTimeout(this.timer);
    this.answer = this.timer = undefined;
  }

  private lost() {
    this.close();
    this.tell("lost");
    if (this.topics.size === 0) return;
    this.timer = setTimeout(() => this.open(), this.pause * (0.75 + Math.random() / 2));
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE_MS);
    // A refusal is not told to a page, but an ended session is found out by asking for anything.
    void get.me().catch(() => undefined);
  }

  /** The network may be back: nobody waits for a pause to end. */
  private again() {
    if (this.timer === undefined) return;
    this.pause = FIRST_PAUSE_MS;
    this.open();
  }

  /** Whether anybody is there: each subscription is answered, and one that is asked for again goes on where it was. */
  private ask() {
    const [name] = [...this.topics].find(([, topic]) => !topic.over && topic.after !== undefined) ?? [];
    if (name === undefined) return;
    this.subscribe(name);
    this.answer ??= setTimeout(() => this.lost(), ANSWER_MS);
  }

  private subscribe(name: string) {
    this.say({ type: "subscribe", topic: name, after: this.topics.get(name)?.after ?? null });
  }

  private say(said: Schemas["LiveRequest"]) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(said));
  }

  private hear(told: Told) {
    const topic = this.topics.get(told.topic ?? "");
    if (!topic) return;
    const each = (act: (watcher: Watcher) => void) => [...topic.watchers].forEach(act);
    switch (told.type) {
      case "subscribed":
        // Words have no numbers, so they are asked for without one.
        if (!told.topic.startsWith("words:")) topic.after ??= told.sequence;
        return each((one) => one.begun?.());
      case "event":
        if (topic.after !== undefined && told.sequence <= topic.after) return;
        topic.after = told.sequence;
        return each((one) => one.event?.(told.event));
      case "words":
        return each((one) => one.words?.(told.words));
      case "gap":
        topic.after = told.sequence;
        return each((one) => one.gap?.());
      case "end":
      case "error":
        topic.over = true;
        return each((one) => one.ended?.());
      case "unsubscribed":
      case "lagged":
        return;
    }
  }
}

const base64url = (text: string) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text)))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");

export const line = new Line();
