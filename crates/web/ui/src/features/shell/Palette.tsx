import { useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { get } from "../../api/client";

const MOST_SHOWN = 12;

interface Entry {
  id: string;
  label: string;
  hint: string;
  act: () => void;
}

/** Goes to a page or one of the newest Tasks, or does something, by a few letters of its name. */
export function Palette({ pages, acts, close, go }: { pages: { to: string; label: string }[]; acts: { label: string; act: () => void }[]; close: () => void; go: (to: string) => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const list = useRef<HTMLUListElement>(null);
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const tasks = useQuery({ queryKey: ["tasks", undefined, undefined], queryFn: () => get.tasks(undefined, undefined) });
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  const all: Entry[] = [
    ...[...pages, { to: "/account", label: "My account" }].map(({ to, label }) => ({ id: to, label, hint: "page", act: () => go(to) })),
    ...acts.map(({ label, act }) => ({ id: label, label, hint: "do", act })),
    ...(tasks.data?.items ?? []).map((task) => ({
      id: task.id,
      label: task.title,
      hint: task.repository ? `${task.repository}${task.issue ? ` #${task.issue}` : ""}` : task.mode,
      act: () => go(`/tasks/${task.id}`),
    })),
  ];
  const words = text.toLowerCase().split(/\s+/);
  const fitting = all.filter((one) => words.every((word) => `${one.label} ${one.hint} ${one.id}`.toLowerCase().includes(word)));
  const found = fitting.slice(0, text ? MOST_SHOWN : 2 * MOST_SHOWN);
  const chosen = Math.min(at, found.length - 1);
  useEffect(() => {
    void list.current?.children[chosen]?.scrollIntoView({ block: "nearest" });
  }, [chosen]);
  const take = (one: Entry) => {
    close();
    one.act();
  };
  return (
    <dialog ref={dialog} onClose={close} aria-label="Go to" className="panel m-auto mt-[12vh] w-[calc(100%-2rem)] max-w-lg p-0 text-ink">
      <input
        className="w-full border-b border-line bg-transparent px-4 py-3 outline-none"
        role="combobox"
        aria-expanded="true"
        aria-autocomplete="list"
        aria-controls="palette-list"
        aria-activedescendant={found[chosen] ? `palette-${chosen}` : undefined}
        aria-label="Page, Task or command"
        placeholder="Page, Task or command"
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          setAt(0);
        }}
        onKeyDown={(event) => {
          const one = found[chosen];
          if (event.key === "ArrowDown") setAt(Math.min(chosen + 1, found.length - 1));
          else if (event.key === "ArrowUp") setAt(Math.max(chosen - 1, 0));
          else if (event.key === "Enter" && one) take(one);
          else return;
          event.preventDefault();
        }}
      />
      <ul ref={list} id="palette-list" role="listbox" aria-label="Found" className="max-h-80 overflow-y-auto p-1">
        {found.map((one, index) => (
          <li
            key={one.id}
            id={`palette-${index}`}
            role="option"
            aria-selected={index === chosen}
            className={`flex cursor-pointer gap-3 rounded-md px-3 py-1.5 ${index === chosen ? "bg-raised" : ""}`}
            onMouseMove={() => setAt(index)}
            onClick={() => take(one)}
          >
            <span className="min-w-0 flex-1 truncate">{one.label}</span>
            <span className="text-soft">{one.hint}</span>
          </li>
        ))}
      </ul>
      {found.length === 0 && <p className="px-4 pb-4 text-soft">No page or command of that name, and no Task among the newest.</p>}
      <p className="border-t border-line px-4 py-2 text-xs text-soft">↑ ↓ to choose, Enter to go, Escape to close</p>
    </dialog>
  );
}
