import { useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { get } from "../../api/client";
import { PAGES } from "./Shell";

const MOST_SHOWN = 12;

/** Goes to a page or one of the newest Tasks by a few letters of its name. */
export function Palette({ close, go }: { close: () => void; go: (to: string) => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const tasks = useQuery({ queryKey: ["tasks", undefined, undefined], queryFn: () => get.tasks(undefined, undefined) });
  useEffect(() => dialog.current?.showModal(), []);
  const all = [
    ...PAGES.map((page) => ({ to: page.to as string, label: page.label, hint: "page" })),
    ...(tasks.data?.items ?? []).map((task) => ({
      to: `/tasks/${task.id}`,
      label: task.title,
      hint: task.repository ? `${task.repository}${task.issue ? ` #${task.issue}` : ""}` : task.mode,
    })),
  ];
  const words = text.toLowerCase().split(/\s+/);
  const found = all.filter((one) => words.every((word) => `${one.label} ${one.hint}`.toLowerCase().includes(word))).slice(0, MOST_SHOWN);
  const chosen = Math.min(at, found.length - 1);
  return (
    <dialog ref={dialog} onClose={close} aria-label="Go to" className="panel m-auto mt-24 w-full max-w-lg p-0 text-ink">
      <input
        className="w-full border-b border-line bg-transparent px-4 py-3 outline-none"
        role="combobox"
        aria-expanded="true"
        aria-controls="palette-list"
        aria-activedescendant={found[chosen] ? `palette-${chosen}` : undefined}
        aria-label="Page or Task"
        placeholder="Page or Task"
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          setAt(0);
        }}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown") setAt(Math.min(chosen + 1, found.length - 1));
          else if (event.key === "ArrowUp") setAt(Math.max(chosen - 1, 0));
          else if (event.key === "Enter" && found[chosen]) go(found[chosen].to);
          else return;
          event.preventDefault();
        }}
      />
      <ul id="palette-list" role="listbox" aria-label="Found" className="max-h-80 overflow-y-auto p-1">
        {found.map((one, index) => (
          <li
            key={one.to}
            id={`palette-${index}`}
            role="option"
            aria-selected={index === chosen}
            className={`flex cursor-pointer gap-3 rounded-md px-3 py-2 ${index === chosen ? "bg-raised" : ""}`}
            onMouseMove={() => setAt(index)}
            onClick={() => go(one.to)}
          >
            <span className="min-w-0 flex-1 truncate">{one.label}</span>
            <span className="text-soft">{one.hint}</span>
          </li>
        ))}
      </ul>
      {found.length === 0 && <p className="px-4 pb-4 text-soft">Nothing of that name among the newest Tasks.</p>}
    </dialog>
  );
}
