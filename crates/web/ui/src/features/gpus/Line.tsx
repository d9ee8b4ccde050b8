/** One value over the last minutes, the newest at the right; its number in words above. */
export function Line({ name, unit, most, values, slots, seconds }: { name: string; unit: string; most?: number; values: (number | null)[]; slots: number; seconds: number }) {
  const known = values.filter((value) => value !== null);
  const top = most ?? Math.max(1, ...known) * 1.15;
  const newest = values.at(-1);
  const points = values.flatMap((value, index) => (value === null ? [] : [`${(100 * (slots - values.length + index)) / (slots - 1)},${30 - (28 * value) / top}`]));
  return (
    <figure>
      <figcaption className="flex items-baseline justify-between text-xs text-soft">
        {name}
        <span className="text-sm font-medium text-ink tabular-nums">{newest == null ? "unknown" : `${Math.round(newest)} ${unit}`}</span>
      </figcaption>
      <svg viewBox="0 0 100 30" preserveAspectRatio="none" className="mt-1 h-12 w-full rounded bg-ground" role="img" aria-label={`${name} of the last ${Math.round(seconds / 60)} minutes, at most ${Math.round(Math.max(0, ...known))} ${unit}`}>
        <polyline points={points.join(" ")} fill="none" className="stroke-accent" strokeWidth="1.5" vectorEffect="non-scaling-stroke" strokeLinejoin="round" />
      </svg>
    </figure>
  );
}
