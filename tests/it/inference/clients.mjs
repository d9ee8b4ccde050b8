// The official JavaScript clients against a gateway, unmodified but for address and key. Each line that is printed is one question:
// `ok` or `FAIL` with what came instead. The gateway's address is the only argument.

import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";

const base = process.argv[2];
const messages = [{ role: "user", content: "Say hello." }];
const city = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "weather", description: "w", parameters: city } }];

function ok(name, good, what) {
  console.log(good ? `ok   ${name}` : `FAIL ${name}  ${JSON.stringify(what)}`);
}

async function refused(name, kind, ask, good) {
  try {
    await ask();
    ok(name, false, "nothing was refused");
  } catch (error) {
    ok(name, error instanceof kind && good(error), String(error));
  }
}

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function chat(client) {
  const create = (body) => client.chat.completions.create({ model: "coder", messages, ...body });
  const r = await create({});
  const whole = r.choices[0].message.content === "Hello world" && r.model === "coder";
  ok("chat", whole && r.usage.completion_tokens === 3, r);
  let s = await all(await create({ stream: true }));
  const text = s.map((x) => x.choices[0]?.delta.content ?? "").join("");
  ok("chat streamed", text === "Hello world" && s.every((x) => !x.usage), s);
  s = await all(await create({ stream: true, stream_options: { include_usage: true } }));
  ok("chat streamed with usage", s.at(-1).usage?.completion_tokens === 3, s.at(-1));
  const called = await create({ tools });
  ok("chat with tools", called.choices[0].message.tool_calls[0].function.name === "weather", called);
  const last = await client.chat.completions.stream({ model: "coder", messages, tools }).finalChatCompletion();
  const call = last.choices[0].message.tool_calls[0].function;
  ok("chat streamed with tools", call.arguments === '{"city": "Ulm"}', last);
}

async function responses(client) {
  const r = await client.responses.create({ model: "coder", input: "Say hello." });
  ok("responses", r.output_text === "Hello world" && r.usage.output_tokens === 3, r);
  const stream = client.responses.stream({ model: "coder", input: "Say hello." });
  const events = (await all(stream)).map((event) => event.type);
  const last = await stream.finalResponse();
  ok("responses streamed", last.output_text === "Hello world" && events.includes("response.completed"), events);
  const own = [{ type: "function", name: "weather", parameters: city, strict: false }];
  const asked = await client.responses.create({ model: "coder", input: "w?", tools: own });
  const call = asked.output.find((item) => item.type === "function_call");
  ok("responses with tools", call.name === "weather", asked);
  const told = { type: "function_call_output", call_id: call.call_id, output: "Rain" };
  const answered = await client.responses.create({ model: "coder", tools: own, input: [messages[0], call, told] });
  ok("responses with a tool's result", answered.output_text === "Hello world", answered);
}

async function claudes(client) {
  const own = [{ name: "weather", description: "w", input_schema: city }];
  const asked = { model: "coder", max_tokens: 50, messages };
  let m = await client.messages.create({ ...asked, system: "Be brief." });
  const whole = m.content[0].text === "Hello world" && m.model === "coder";
  ok("messages", whole && m.usage.output_tokens === 3, m);
  const stream = client.messages.stream(asked);
  let text = "";
  stream.on("text", (piece) => (text += piece));
  let last = await stream.finalMessage();
  ok("messages streamed", text === "Hello world" && last.stop_reason === "end_turn", last);
  m = await client.messages.create({ ...asked, tools: own });
  let use = m.content.find((block) => block.type === "tool_use");
  ok("messages with tools", m.stop_reason === "tool_use" && use.input.city === "Ulm", m);
  last = await client.messages.stream({ ...asked, tools: own }).finalMessage();
  use = last.content.find((block) => block.type === "tool_use");
  ok("messages streamed with tools", last.stop_reason === "tool_use" && use.input.city === "Ulm", last);
  const told = { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "Rain" }] };
  const history = [...messages, { role: "assistant", content: [use] }, told];
  m = await client.messages.create({ ...asked, tools: own, messages: history });
  ok("messages with a tool's result", m.content[0].text === "Hello world", m);
  const n = await client.messages.countTokens({ model: "coder", messages });
  ok("tokens counted", n.input_tokens > 0, n);
}

async function ollamas(client) {
  const r = await client.chat({ model: "coder", messages });
  ok("ollama", r.message.content === "Hello world", r);
  const s = await all(await client.chat({ model: "coder", messages, stream: true }));
  ok("ollama streamed", s.map((x) => x.message.content).join("") === "Hello world" && s.at(-1).done, s);
  const called = await client.chat({ model: "coder", messages, tools });
  ok("ollama with tools", called.message.tool_calls[0].function.name === "weather", called);
  const listed = await client.list();
  ok("ollama's list", listed.models[0].model.startsWith("coder"), listed);
  const running = await client.ps();
  ok("ollama's running models", running.models.length === 1, running);
}

const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: "sesame", maxRetries: 0 });
await chat(openai);
await responses(openai);
const listed = await all(await openai.models.list());
ok("models", listed.length === 1 && listed[0].id === "coder", listed);
ok("model", (await openai.models.retrieve("coder")).id === "coder");
const nobody = () => openai.chat.completions.create({ model: "nobody", messages });
await refused("an unknown model", OpenAI.NotFoundError, nobody, (e) => e.code === "model_not_found" && e.requestID);
const wrong = new OpenAI({ baseURL: `${base}/v1`, apiKey: "wrong", maxRetries: 0 });
await refused("a wrong key", OpenAI.AuthenticationError, () => wrong.models.list(), (e) => e.code === "invalid_api_key");

const claude = new Anthropic({ baseURL: base, apiKey: "sesame", maxRetries: 0 });
await claudes(claude);
const known = await all(await claude.models.list());
ok("anthropic's models", known.length === 1 && known[0].id === "coder", known);
const unknown = () => claude.messages.create({ model: "nobody", max_tokens: 5, messages });
await refused("anthropic: an unknown model", Anthropic.NotFoundError, unknown, (e) => e.error.error.type === "not_found_error");
const other = new Anthropic({ baseURL: base, apiKey: "wrong", maxRetries: 0 });
await refused("anthropic: a wrong key", Anthropic.AuthenticationError, () => other.models.list(), () => true);

await ollamas(new Ollama({ host: base, headers: { Authorization: "Bearer sesame" } }));
