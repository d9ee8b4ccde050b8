import { useQuery } from "@tanstack/react-query";
import { AlertTriangle, CheckCircle2, CircleSlash, Clock, Cpu, XCircle } from "lucide-react";
import { useEffect, useState } from "react";
import { Failure, get, type Schemas } from "../../api/client";
import { Ago, Empty, Loading, Page, Trouble } from "../../parts/Show";
import { Line } from "./Line";

const OFTEN_MS = 2_000;
/** Four minutes at one look in two seconds. */
const MOST_SAMPLES = 120;

const HEALTH: Record<string, { Icon: typeof Cpu; word: string; tone: string }> = {
  ok: { Icon: CheckCircle2, word: "Well", tone: "text-good" },
  degraded: { Icon: AlertTriangle, word: "Degraded", tone: "text-warn" },
  waiting: { Icon: Clock, word: "Waiting", tone: "text-warn" },
  quarantined: { Icon: CircleSlash, word: "Quarantined", tone: "text-bad" },
  lost: { Icon: XCircle, word: "Lost", tone: "text-bad" },
};

const gib = (bytes: number) => `${(bytes / 2 ** 30).toLocaleString(undefined, { maximumFractionDigits: 1 })} GiB`;
const isAway = (error: unknown) => error instanceof Failure && error.status === 404;

/** The devices of this machine, what they do, and which model is where and why. */
export function Gpus() {
  const devices = useQuery({ queryKey: ["devices"], queryFn: get.devices, refetchInterval: OFTEN_MS });
  const placements = useQuery({ queryKey: ["placements"], queryFn: get.placements, refetchInterval: OFTEN_MS });
  const events = useQuery({ queryKey: ["placement-events"], queryFn: get.placementEvents, refetchInterval: 5_000 });
  const samples = useSamples(devices.data?.items, devices.dataUpdatedAt);
  if (isAway(devices.error)) {
    return (
      <Page title="GPUs">
        <Empty title="No inference process runs beside this dashboard">
          <code className="font-mono">fettle up</code> brings one along; otherwise start <code className="font-mono">fettle-inference</code> with the same data folder. Models elsewhere work without it.
        </Empty>
      </Page>
    );
  }
  const items = devices.data?.items ?? [];
  const gpus = items.filter((device) => device.id !== "cpu");
  return (
    <Page title="GPUs">
      {devices.isError && <Trouble error={devices.error} again={() => void devices.refetch()} />}
      {devices.isPending && <Loading rows={3} />}
      {devices.isSuccess && gpus.length === 0 && (
        <div className="mb-4">
          <Empty title="This machine has no GPU that Fettle can use">
            Models elsewhere, and recipes for the CPU, are served all the same. <code className="font-mono">fettle doctor</code> tells where NVIDIA’s library was looked for.
          </Empty>
        </div>
      )}
      <ul className="grid gap-3 lg:grid-cols-2" aria-label="Devices">
        {items.map((device) => (
          <Device key={device.id} device={device} pool={devices.data?.pools.find((pool) => pool.id === device.pool)} samples={samples.get(device.id) ?? []} />
        ))}
      </ul>
      <h2 className="mt-8 mb-2 text-base font-semibold">Where models are, and why</h2>
      {placements.isError && !isAway(placements.error) && <Trouble error={placements.error} again={() => void placements.refetch()} />}
      {placements.isPending && <Loading rows={2} />}
      {placements.isSuccess && <Placed placements={placements.data} />}
      <h2 className="mt-8 mb-2 text-base font-semibold">What happened</h2>
      {events.isError && !isAway(events.error) && <Trouble error={events.error} again={() => void events.refetch()} />}
      {events.isPending && <Loading rows={2} />}
      {events.isSuccess && events.data.items.length === 0 && <Empty title="Nothing yet">Loads, evictions and refusals are told here.</Empty>}
      {events.isSuccess && events.data.items.length > 0 && (
        <ol className="panel divide-y divide-line" aria-label="What happened">
          {events.data.items.map((event, index) => (
            <li key={index} className="flex flex-wrap gap-x-4 px-4 py-1.5">
              <span className="w-24 text-soft">
                <Ago at={event.at} />
              </span>
              <span className="w-24">{event.kind.replaceAll("_", " ")}</span>
              <span className="min-w-0 flex-1 basis-60 prose-text">{event.text}</span>
            </li>
          ))}
        </ol>
      )}
    </Page>
  );
}

interface Sample {
  at: number;
  load: number | null;
  watts: number | null;
  celsius: number | null;
}

/** What was seen since the page was opened: the process keeps no past of its own. */
function useSamples(items: Schemas["Device"][] | undefined, at: number): Map<string, Sample[]> {
  const [samples, setSamples] = useState(new Map<string, Sample[]>());
  useEffect(() => {
    if (!items) return;
    setSamples((before) => {
      const after = new Map<string, Sample[]>();
      for (const device of items) {
        const sample = { at, load: device.gpu_percent ?? null, watts: device.watts ?? null, celsius: device.celsius ?? null };
        after.set(device.id, [...(before.get(device.id) ?? []), sample].slice(-MOST_SAMPLES));
      }
      return after;
    });
  }, [items, at]);
  return samples;
}

function Device({ device, pool, samples }: { device: Schemas["Device"]; pool?: Schemas["Pool"]; samples: Sample[] }) {
  const { Icon, word, tone } = HEALTH[device.health] ?? { Icon: Cpu, word: device.health, tone: "text-soft" };
  const lines = [
    { name: "Load", unit: "%", most: 100, values: samples.map((one) => one.load) },
    { name: "Power", unit: "W", values: samples.map((one) => one.watts) },
    { name: "Temperature", unit: "°C", values: samples.map((one) => one.celsius) },
  ].filter(({ values }) => values.some((value) => value !== null));
  return (
    <li className="panel space-y-3 p-4">
      <div className="flex flex-wrap items-center gap-x-3">
        <Cpu size={16} aria-hidden className="text-soft" />
        <p className="min-w-0 flex-1 truncate font-medium" title={device.id}>
          {device.name}
        </p>
        <span className={`inline-flex items-center gap-1.5 font-medium ${tone}`}>
          <Icon size={14} aria-hidden /> {word}
        </span>
      </div>
      {(device.why ?? pool?.closed) && <p className="text-warn">{device.why ?? pool?.closed}</p>}
      {pool && <Memory pool={pool} />}
      {lines.length > 0 ? (
        <div className="grid gap-3 sm:grid-cols-3">
          {lines.map((line) => (
            <Line key={line.name} {...line} seconds={(OFTEN_MS / 1000) * MOST_SAMPLES} slots={MOST_SAMPLES} />
          ))}
        </div>
      ) : (
        <p className="text-xs text-soft">It tells neither load nor power.</p>
      )}
    </li>
  );
}

function Memory({ pool }: { pool: Schemas["Pool"] }) {
  const used = Math.max(0, pool.capacity_bytes - pool.claimed_bytes - pool.foreign_bytes - pool.available_bytes);
  const parts = [
    { name: "models", tone: "fill-accent", bytes: pool.claimed_bytes },
    { name: "other programs", tone: "fill-warn", bytes: pool.foreign_bytes },
    { name: "kept free", tone: "fill-line", bytes: used },
    { name: "available", tone: "fill-good", bytes: pool.available_bytes },
  ];
  const whole = Math.max(1, parts.reduce((sum, part) => sum + part.bytes, 0));
  let from = 0;
  return (
    <div>
      <svg viewBox="0 0 100 4" preserveAspectRatio="none" className="h-2.5 w-full rounded" aria-hidden>
        {parts.map((part) => {
          const x = (100 * from) / whole;
          from += part.bytes;
          return <rect key={part.name} x={x} width={(100 * part.bytes) / whole} height="4" className={part.tone} />;
        })}
      </svg>
      <p className="mt-1.5 flex flex-wrap gap-x-4 text-xs text-soft">
        {parts.map((part) => (
          <span key={part.name} className="inline-flex items-center gap-1.5 tabular-nums">
            <svg viewBox="0 0 8 8" className="size-2" aria-hidden>
              <circle cx="4" cy="4" r="4" className={part.tone} />
            </svg>
            {gib(part.bytes)} {part.name}
          </span>
        ))}
      </p>
    </div>
  );
}

function Placed({ placements }: { placements: Schemas["Placements"] }) {
  const { engines, refused, models } = placements;
  const idle = models.filter((model) => engines.every((one) => one.model !== model) && refused.every((one) => one.model !== model));
  if (engines.length + refused.length + idle.length === 0) {
    return <Empty title="No model is to run on this machine">Give one a path or recipes under [[gateway.models]], and it is loaded when it is asked for.</Empty>;
  }
  return (
    <ul className="panel divide-y divide-line" aria-label="Placements">
      {engines.map((engine) => (
        <li key={engine.id} className="flex flex-wrap gap-x-4 gap-y-0.5 px-4 py-2.5">
          <span className="w-28 font-medium">{engine.state}</span>
          <span className="min-w-0 flex-1 basis-72">
            <span className="font-medium break-all">{engine.model}</span> <span className="text-soft">by {engine.recipe}, {engine.in_flight} at work</span>
            <span className="block prose-text text-soft">{engine.why}</span>
          </span>
        </li>
      ))}
      {refused.map((one) => (
        <li key={`${one.model}\0${one.owner}`} className="flex flex-wrap gap-x-4 gap-y-0.5 px-4 py-2.5">
          <span className="w-28 font-medium text-warn">waiting</span>
          <span className="min-w-0 flex-1 basis-72">
            <span className="font-medium break-all">{one.model}</span> <span className="text-soft">for {one.owner}</span>
            <span className="block prose-text text-warn">{one.why}</span>
          </span>
        </li>
      ))}
      {idle.map((model) => (
        <li key={model} className="flex flex-wrap gap-x-4 px-4 py-2.5">
          <span className="w-28 text-soft">not loaded</span>
          <span className="min-w-0 flex-1">
            <span className="font-medium break-all">{model}</span> <span className="text-soft">nobody asks for it</span>
          </span>
        </li>
      ))}
    </ul>
  );
}
