import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, type Schemas } from "../../api/client";
import { Empty, Loading, Page, Trouble } from "../../parts/Show";
import { useMe } from "../access/me";

/** The configuration that counts now. It is changed in its file, not here. */
export function Settings() {
  const { may, why } = useMe();
  const settings = useQuery({ queryKey: ["settings"], queryFn: get.settings, enabled: may("settings.read") });
  const [text, setText] = useState("");
  if (!may("settings.read")) {
    return (
      <Page title="Settings">
        <Empty title="This is for admins">{why}</Empty>
      </Page>
    );
  }
  const fitting = (settings.data?.items ?? []).filter((one) => `${one.key} ${one.value}`.toLowerCase().includes(text.toLowerCase()));
  const sections = [...new Set(fitting.map((one) => section(one)))];
  return (
    <Page title="Settings" aside={settings.data && <p className="text-soft">Fettle {settings.data.version}</p>}>
      {settings.isError && <Trouble error={settings.error} again={() => void settings.refetch()} />}
      {settings.isPending && <Loading rows={8} />}
      {settings.isSuccess && (
        <>
          <p className="mb-3 text-soft">
            {settings.data.config_file ? (
              <>
                Read from <code className="font-mono break-all">{settings.data.config_file}</code>, with what the environment overrides.
              </>
            ) : (
              "No file was named: these are defaults, and what the environment sets."
            )}{" "}
            What is marked counts after a reload (<code className="font-mono">SIGHUP</code>); the rest needs a restart. Of secrets, the file is shown that each is read from.
          </p>
          <label className="mb-3 block max-w-sm">
            <span className="sr-only">Find a key</span>
            <input className="field" type="search" placeholder="Find a key" value={text} onChange={(event) => setText(event.target.value)} />
          </label>
          {sections.length === 0 && <Empty title="No such key">Only keys that have a value are listed, also those by default.</Empty>}
          {sections.map((name) => (
            <section key={name} className="mb-4">
              <h2 className="mb-1 font-mono font-semibold">[{name}]</h2>
              <dl className="panel divide-y divide-line">
                {fitting
                  .filter((one) => section(one) === name)
                  .map((one) => (
                    <div key={one.key} className="grid grid-cols-[1fr_auto] gap-x-4 px-4 py-1.5 sm:grid-cols-[16rem_1fr_auto]">
                      <dt className="font-mono text-xs leading-6 break-all">{one.key.slice(name.length + 1)}</dt>
                      <dd className="font-mono text-xs leading-6 break-all text-soft max-sm:order-3 max-sm:col-span-2">{one.value}</dd>
                      <dd className="text-xs leading-6">{one.live && <span className="text-good">after a reload</span>}</dd>
                    </div>
                  ))}
              </dl>
            </section>
          ))}
        </>
      )}
    </Page>
  );
}

const section = (one: Schemas["Setting"]) => one.key.split(".")[0] ?? "";
