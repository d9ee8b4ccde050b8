import { Check, Copy as CopyIcon } from "lucide-react";
import { useEffect, useId, useRef, useState, type InputHTMLAttributes, type ReactNode } from "react";
import { Failure } from "../api/client";
import { Trouble } from "./Show";

interface FieldProps extends InputHTMLAttributes<HTMLInputElement> {
  label: string;
  hint?: ReactNode;
  /** Where the API's refusal points when it means this field. */
  pointer?: string;
  error?: unknown;
}

/** A labelled input with the server's objection, if it has one, beside it. */
export function Field({ label, hint, pointer, error, className = "", ...input }: FieldProps) {
  const id = useId();
  const objections = error instanceof Failure && pointer ? error.fields.filter((one) => one.pointer === pointer) : [];
  const described = [hint ? `${id}-hint` : "", objections.length > 0 ? `${id}-error` : ""].filter(Boolean).join(" ");
  return (
    <div>
      <label htmlFor={id} className="mb-1 block font-medium">
        {label}
      </label>
      <input id={id} className={`field ${className}`} aria-invalid={objections.length > 0 || undefined} aria-describedby={described || undefined} {...input} />
      {hint && (
        <p id={`${id}-hint`} className="mt-1 text-xs text-soft">
          {hint}
        </p>
      )}
      {objections.length > 0 && (
        <p id={`${id}-error`} className="mt-1 text-bad">
          {objections.map((one) => one.detail).join(" ")}
        </p>
      )}
    </div>
  );
}

/** What went wrong, unless a field tells it already. */
export function FormTrouble({ error, pointers = [] }: { error: unknown; pointers?: string[] }) {
  if (!error) return null;
  if (error instanceof Failure && error.fields.length > 0 && error.fields.every((one) => pointers.includes(one.pointer))) return null;
  return <Trouble error={error} />;
}

/** Modal while it is there. `Escape` closes it, and the focus goes back to where it was. */
export function Dialog({ title, close, children }: { title: string; close: () => void; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog ref={dialog} onClose={close} aria-labelledby={id} className="panel m-auto w-[calc(100%-2rem)] max-w-md p-5 text-ink">
      <h2 id={id} className="mb-3 text-base font-semibold">
        {title}
      </h2>
      {children}
    </dialog>
  );
}

/** Text to be taken along. Where the browser gives no clipboard, over plain http, it is selected instead. */
export function Copy({ text, name }: { text: string; name: string }) {
  const field = useRef<HTMLInputElement>(null);
  const [done, setDone] = useState<"" | "copied" | "selected">("");
  async function copy() {
    field.current?.select();
    try {
      await navigator.clipboard.writeText(text);
      setDone("copied");
    } catch {
      setDone("selected");
    }
  }
  return (
    <div>
      <div className="flex gap-2">
        <input ref={field} readOnly aria-label={name} value={text} className="field font-mono text-xs" onFocus={(event) => event.target.select()} />
        <button type="button" className="button" aria-label={`Copy ${name}`} onClick={() => void copy()}>
          {done === "copied" ? <Check size={14} aria-hidden /> : <CopyIcon size={14} aria-hidden />} Copy
        </button>
      </div>
      <p role="status" className="mt-1 text-xs text-soft">
        {{ "": "", copied: "Copied.", selected: "Selected: copy it with the keyboard." }[done]}
      </p>
    </div>
  );
}
