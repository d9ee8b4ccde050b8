import { ChevronDown, ChevronRight } from "lucide-react";
import { useMemo, useState } from "react";
import { Diff, Hunk, markEdits, parseDiff, tokenize, type FileData } from "react-diff-view";
import "react-diff-view/style/index.css";

/** Lines that a browser lays out without a pause; larger files are opened by hand. */
const OPEN_LINES = 400;
const WIDE = "(min-width: 1000px)";

/** A change, file by file; `narrow` beside another one. File names and lines are foreign and only ever text. */
export default function Patch({ diff, narrow = false }: { diff: string; narrow?: boolean }) {
  const files = useMemo(() => parseDiff(diff, { nearbySequences: "zip" }), [diff]);
  const [view, setView] = useState<"unified" | "split">(() => (!narrow && matchMedia(WIDE).matches ? "split" : "unified"));
  return (
    <div>
      <div className="mb-2 flex items-center gap-2 text-soft">
        <span className="flex-1">{files.length === 1 ? "1 file" : `${files.length} files`}</span>
        {(narrow ? [] : (["unified", "split"] as const)).map((one) => (
          <button key={one} type="button" className="button" aria-pressed={view === one} onClick={() => setView(one)}>
            <span className={view === one ? "font-semibold text-accent" : ""}>{one === "split" ? "Side by side" : "Unified"}</span>
          </button>
        ))}
      </div>
      <div className="space-y-3">
        {files.map((file) => (
          <OneFile key={`${file.oldPath}\0${file.newPath}`} file={file} view={view} />
        ))}
      </div>
    </div>
  );
}

function OneFile({ file, view }: { file: FileData; view: "unified" | "split" }) {
  const changes = file.hunks.flatMap((hunk) => hunk.changes);
  const added = changes.filter((change) => change.type === "insert").length;
  const removed = changes.filter((change) => change.type === "delete").length;
  const [open, setOpen] = useState(changes.length <= OPEN_LINES);
  const name = file.type === "delete" ? file.oldPath : file.newPath;
  const tokens = useMemo(() => {
    if (!open) return undefined;
    try {
      return tokenize(file.hunks, { enhancers: [markEdits(file.hunks)] });
    } catch {
      return undefined;
    }
  }, [file, open]);
  const Arrow = open ? ChevronDown : ChevronRight;
  return (
    <section className="panel overflow-hidden">
      <h3>
        <button
          type="button"
          aria-expanded={open}
          className="flex w-full items-center gap-2 bg-raised px-3 py-2 text-left"
          onClick={() => setOpen(!open)}
        >
          <Arrow size={15} aria-hidden className="shrink-0" />
          <span className="min-w-0 flex-1 font-mono text-xs break-all">{name}</span>
          {file.type !== "modify" && <span className="text-xs text-soft">{{ add: "new", delete: "deleted", rename: "renamed", copy: "copied" }[file.type]}</span>}
          <span className="font-mono text-xs whitespace-nowrap tabular-nums">
            <span className="text-good">+{added}</span> <span className="text-bad">−{removed}</span>
          </span>
        </button>
      </h3>
      {open &&
        (file.hunks.length === 0 ? (
          <p className="px-3 py-2 text-soft">No text to show: binary, or only its mode changed.</p>
        ) : (
          <div className="overflow-x-auto" tabIndex={0} role="region" aria-label={`Change of ${name}`}>
            <Diff viewType={view} diffType={file.type} hunks={file.hunks} tokens={tokens}>
              {(hunks) => hunks.map((hunk) => <Hunk key={hunk.content} hunk={hunk} />)}
            </Diff>
          </div>
        ))}
    </section>
  );
}
