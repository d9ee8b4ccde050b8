import { Brain, EyeOff } from "lucide-react";
import { useLayoutEffect, useRef } from "react";
import type { Saying } from "./live";

/** So near the end somebody reads along. */
const NEAR_PX = 40;

/** What the Task's models are saying. Foreign, and so only ever text. */
export function Sayings({ sayings, several }: { sayings: Saying[]; several: boolean }) {
  return sayings.filter((one) => one.pieces.length > 0 || one.hidden).map((one) => <OneSaying key={one.run} saying={one} several={several} />);
}

function OneSaying({ saying, several }: { saying: Saying; several: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  useLayoutEffect(() => {
    const box = place.current;
    if (box && atEnd.current) box.scrollTop = box.scrollHeight;
  }, [saying]);
  const name = several ? `Run ${saying.run} is saying` : "The model is saying";
  return (
    <section aria-label={name} className="panel mt-2 px-4 py-3">
      <p className="mb-1 flex items-center gap-2 text-xs text-soft">
        <Brain size={14} aria-hidden /> {name}
      </p>
      <div
        ref={place}
        tabIndex={0}
        role="region"
        aria-label={`${name}, word by word`}
        className="max-h-72 overflow-y-auto prose-text whitespace-pre-wrap"
        onScroll={({ currentTarget: box }) => {
          atEnd.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
        }}
      >
        {saying.pieces.map(({ voice, text }, index) =>
          voice === "call" ? (
            <span key={index} className="block font-medium">
              asks for {text}
            </span>
          ) : (
            <span key={index} className={{ thought: "text-soft italic", said: "", arguments: "font-mono text-xs" }[voice]}>
              {text}
            </span>
          ),
        )}
        {!saying.hidden && <span className="caret" aria-hidden />}
      </div>
      {saying.hidden && (
        <p className="mt-1 flex items-center gap-2 text-warn">
          <EyeOff size={14} aria-hidden /> Something in it looks like a secret, so no more of this answer is shown here.
        </p>
      )}
    </section>
  );
}
