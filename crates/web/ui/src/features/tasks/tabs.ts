export const TABS = [
  { id: "story", label: "Story" },
  { id: "work", label: "Work" },
  { id: "change", label: "Change" },
  { id: "proof", label: "Proof" },
  { id: "runs", label: "Runs" },
  { id: "issue", label: "Issue" },
] as const;
export type Tab = (typeof TABS)[number]["id"];
