import { headers, turnedAway, type TaskEvent } from "./client";

export type Link = "connecting" | "live" | "lost" | "ended";

/** A server says something every 15 s; twice that and a little more is silence. */
const SILENCE_MS = 35_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;

/** Follows a feed of events, and resumes it after the last number seen until `signal` ends it. */
export async function follow(
  path: string,
  after: number,
  signal: AbortSignal,
  on: { event: (event: TaskEvent) => void; link: (link: Link) => void },
): Promise<void> {
  let last = after;
  let pause = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    const silence = new AbortController();
    let watch = setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      const response = await fetch(path, {
        headers: { Accept: "text/event-stream", ...headers(), "Last-Event-ID": String(last) },
        signal: AbortSignal.any([signal, silence.signal]),
        cache: "no-store",
      });
      if (!response.ok || !response.body) throw await turnedAway(path, response);
      on.link("live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        pause = FIRST_PAUSE_MS;
        clearTimeout(watch);
        watch = setTimeout(() => silence.abort(), SILENCE_MS);
        text += value;
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
          const lines = text.slice(0, end).split("\n");
          text = text.slice(end + 2);
          if (lines.includes("event: end")) {
            on.link("ended");
            return;
          }
          const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
          if (data.length === 0) continue;
          const event = JSON.parse(data.join("\n")) as TaskEvent;
          if (event.seq > last) {
            last = event.seq;
            on.event(event);
          }
        }
      }
    } catch {
      // Whatever it was: said by the link's state, and tried again.
    } finally {
      clearTimeout(watch);
    }
    if (signal.aborted) return;
    on.link("lost");
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }
}
