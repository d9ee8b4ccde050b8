import type { ReactNode } from "react";

/** The frame of every page before somebody has come in. */
export function Door({ title, children }: { title: string; children: ReactNode }) {
  return (
    <main className="flex min-h-full items-center justify-center p-4">
      <div className="panel w-full max-w-sm space-y-4 p-6">
        <div className="flex items-center gap-3">
          <img src="/icon.svg" alt="" width={32} height={32} />
          <div>
            <p className="text-xs text-soft">Fettle</p>
            <h1 className="text-lg leading-tight font-semibold">{title}</h1>
          </div>
        </div>
        {children}
      </div>
    </main>
  );
}
