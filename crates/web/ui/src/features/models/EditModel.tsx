import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { put, type Model } from "../../api/client";
import { Dialog, Field, FormTrouble } from "../../parts/Form";

const KINDS = [
  { name: "openai-compatible", text: "A server that speaks OpenAI’s API", url: "http://127.0.0.1:8000/v1", needsUrl: true, context: 65_536 },
  { name: "openai", text: "OpenAI", url: "https://api.openai.com/v1", needsUrl: false, context: 128_000 },
  { name: "anthropic", text: "Anthropic", url: "https://api.anthropic.com", needsUrl: false, context: 200_000 },
  { name: "google", text: "Google", url: "https://generativelanguage.googleapis.com", needsUrl: false, context: 1_000_000 },
  { name: "ollama", text: "Ollama", url: "http://127.0.0.1:11434", needsUrl: false, context: 65_536 },
] as const;

const POINTERS = ["/name", "/kind", "/base_url", "/known_as", "/context_tokens", "/api_key"];

/** Adds a model on a server elsewhere, or changes one that was added. Its key is written and never read. */
export function EditModel({ model, close }: { model?: Model; close: () => void }) {
  const queries = useQueryClient();
  const known = KINDS.find((one) => one.name === model?.kind);
  const [kind, setKind] = useState<(typeof KINDS)[number]>(known ?? KINDS[0]);
  const [name, setName] = useState(model?.name ?? "");
  const [url, setUrl] = useState(model?.server && model.server !== known?.url ? model.server : "");
  const [knownAs, setKnownAs] = useState(model?.known_as ?? "");
  const [context, setContext] = useState(String(model?.context_tokens ?? KINDS[0].context));
  const [secret, setSecret] = useState("");
  const [withoutKey, setWithoutKey] = useState(false);
  const save = useMutation({
    mutationFn: () =>
      put<Model>(`/api/v1/models/${encodeURIComponent(name.trim())}`, {
        kind: kind.name,
        ...(url.trim() ? { base_url: url.trim() } : {}),
        ...(knownAs.trim() ? { known_as: knownAs.trim() } : {}),
        context_tokens: Number(context),
        ...(secret.trim() ? { api_key: secret.trim() } : {}),
        without_key: withoutKey && !secret.trim(),
      }),
    onSuccess: async () => {
      await queries.invalidateQueries({ queryKey: ["models"] });
      void queries.invalidateQueries({ queryKey: ["overview"] });
      close();
    },
  });
  const choose = (next: (typeof KINDS)[number]) => {
    if (context === String(kind.context)) setContext(String(next.context));
    setKind(next);
  };
  return (
    <Dialog title={model ? `The model “${model.name}”` : "Add a model"} close={close}>
      <form
        className="space-y-4"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          save.mutate();
        }}
      >
        <label className="block">
          <span className="mb-1 block font-medium">It is served by</span>
          <select className="field" value={kind.name} onChange={(event) => choose(KINDS.find((one) => one.name === event.target.value) ?? KINDS[0])}>
            {KINDS.map((one) => (
              <option key={one.name} value={one.name}>
                {one.text}
              </option>
            ))}
          </select>
        </label>
        <Field
          label="Name"
          pointer="/name"
          error={save.error}
          required
          autoFocus={!model}
          readOnly={Boolean(model)}
          placeholder="coder"
          hint="What people call it here: one word."
          value={name}
          onChange={(event) => setName(event.target.value)}
        />
        <Field
          label={kind.needsUrl ? "Address" : "Address, if it is another"}
          pointer="/base_url"
          error={save.error}
          required={kind.needsUrl}
          inputMode="url"
          placeholder={kind.url}
          hint={kind.needsUrl ? "As the server documents it, mostly ending in /v1." : undefined}
          value={url}
          onChange={(event) => setUrl(event.target.value)}
        />
        <Field label="Its name there" pointer="/known_as" error={save.error} placeholder={name || "the same"} hint="As the server or provider calls it, if that is not the name above." value={knownAs} onChange={(event) => setKnownAs(event.target.value)} />
        <Field
          label="Window in tokens"
          pointer="/context_tokens"
          error={save.error}
          required
          type="number"
          min={1}
          step={1}
          hint="Prompt and answer together, as the server really offers it. Runs need 32,768."
          value={context}
          onChange={(event) => setContext(event.target.value)}
        />
        <Field
          label="API key"
          pointer="/api_key"
          error={save.error}
          type="password"
          autoComplete="off"
          placeholder={model?.with_key && !withoutKey ? "as it is" : "none"}
          hint="Kept sealed, sent to this address alone, and never shown again."
          value={secret}
          onChange={(event) => setSecret(event.target.value)}
        />
        {model?.with_key && (
          <label className="flex items-baseline gap-2">
            <input type="checkbox" checked={withoutKey} onChange={(event) => setWithoutKey(event.target.checked)} />
            Take its key away
          </label>
        )}
        <FormTrouble error={save.error} pointers={POINTERS} />
        <div className="flex justify-end gap-2">
          <button type="button" className="button" onClick={close}>
            Not now
          </button>
          <button type="submit" className="button primary" disabled={save.isPending}>
            {model ? "Save" : "Add it"}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
