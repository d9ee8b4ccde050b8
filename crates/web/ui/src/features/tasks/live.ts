import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import type { TaskEvent } from "../../api/client";
import { line, type Words } from "../../api/live";

/** How a Task's story stands. */
export type Told = "connecting" | "live" | "lost" | "ended";

/** What a model is saying, until the step is recorded. */
export type Saying = Pick<Words, "run" | "step" | "pieces" | "hidden">;

/** The Task's events from the first one on, in order; they grow while they are looked at, also after it was taken up again. */
export function useStory(id: string): { events: TaskEvent[]; told: Told; sayings: Saying[] } {
  const queries = useQueryClient();
  const [events, setEvents] = useState<TaskEvent[]>([]);
  const [sayings, setSayings] = useState<Saying[]>([]);
  const [told, setTold] = useState<Told>("connecting");
  useEffect(() => {
    let [last, over, link] = [0, false, "connecting" as Told];
    let stop = () => {};
    const show = () => setTold(over ? "ended" : link);
    setEvents([]);
    setSayings([]);
    const read = () => void queries.invalidateQueries({ queryKey: ["tasks", "one", id] });
    const follow = () => {
      stop();
      over = false;
      stop = line.watch(`task:${id}`, last, {
        event: (event) => {
          if (event.seq <= last) return;
          last = event.seq;
          setEvents((before) => [...before, event]);
          setSayings((before) => before.filter((saying) => !replaces(event, saying)));
        },
        begun: show,
        ended: () => {
          over = true;
          setSayings([]);
          show();
          read();
        },
        gap: () => {
          last = 0;
          setEvents([]);
          follow();
        },
      });
      show();
    };
    follow();
    const stops = [
      line.onLink((now) => {
        link = now;
        show();
      }),
      // A Task that has ended may be taken up again, here or elsewhere.
      line.watch("tasks", undefined, { event: (event) => over && event.task_id === id && event.seq > last && (follow(), read()) }),
      line.watch(`words:${id}`, undefined, {
        begun: () => setSayings([]),
        words: (words) => setSayings((before) => said(before, words)),
      }),
    ];
    return () => [stop, ...stops].forEach((end) => end());
  }, [id, queries]);
  return { events, told, sayings };
}

/** Whether the journal has it now, or its Run has gone on without it. */
function replaces({ what }: TaskEvent, saying: Saying): boolean {
  if (!("run" in what) || what.run !== saying.run) return false;
  return what.type === "step" ? what.seq >= saying.step : what.type !== "run_chosen";
}

function said(before: Saying[], words: Words): Saying[] {
  const { run, step, hidden, whole, over } = words;
  const others = before.filter((one) => one.run !== run);
  if (over) return others;
  const pieces = whole ? [] : [...(before.find((one) => one.run === run)?.pieces ?? [])];
  for (const piece of words.pieces) {
    const last = pieces.at(-1);
    if (last && last.voice === piece.voice && piece.voice !== "call") pieces[pieces.length - 1] = { ...last, text: last.text + piece.text };
    else pieces.push(piece);
  }
  return [...others, { run, step, hidden, pieces }].sort((one, other) => one.run - other.run);
}
