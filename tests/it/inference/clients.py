"""The official Python clients against a gateway, unmodified but for address and key. Each line that is printed is one question: `ok`
or `FAIL` with what came instead. The gateway's address is the only argument."""
import sys

import anthropic
import ollama
import openai

BASE = sys.argv[1]
MESSAGES = [{"role": "user", "content": "Say hello."}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "w", "parameters": CITY}}]


def ok(name, good, what=None):
    print(("ok   " if good else "FAIL ") + name + ("" if good else f"  {what!r}"))


def refused(name, error, ask, good):
    try:
        ask()
    except error as e:
        ok(name, good(e), e)
    else:
        ok(name, False, "nothing was refused")


def chat(client):
    create = client.chat.completions.create
    r = create(model="coder", messages=MESSAGES)
    ok("chat", r.choices[0].message.content == "Hello world" and r.model == "coder" and r.usage.completion_tokens == 3, r)
    s = list(create(model="coder", messages=MESSAGES, stream=True))
    text = "".join(x.choices[0].delta.content or "" for x in s if x.choices)
    ok("chat streamed", text == "Hello world" and all(x.usage is None for x in s), s)
    s = list(create(model="coder", messages=MESSAGES, stream=True, stream_options={"include_usage": True}))
    ok("chat streamed with usage", s[-1].usage and s[-1].usage.completion_tokens == 3, s[-1])
    r = create(model="coder", messages=MESSAGES, tools=TOOLS)
    ok("chat with tools", r.choices[0].message.tool_calls[0].function.name == "weather", r)
    with client.chat.completions.stream(model="coder", messages=MESSAGES, tools=TOOLS) as stream:
        last = stream.get_final_completion()
    call = last.choices[0].message.tool_calls[0].function
    ok("chat streamed with tools", call.arguments == '{"city": "Ulm"}', last)


def responses(client):
    r = client.responses.create(model="coder", input="Say hello.")
    ok("responses", r.output_text == "Hello world" and r.usage.output_tokens == 3, r)
    with client.responses.stream(model="coder", input="Say hello.") as stream:
        events = [event.type for event in stream]
        last = stream.get_final_response()
    ok("responses streamed", last.output_text == "Hello world" and "response.completed" in events, events)
    tools = [{"type": "function", "name": "weather", "parameters": CITY, "strict": False}]
    r = client.responses.create(model="coder", input="w?", tools=tools)
    call = next(item for item in r.output if item.type == "function_call")
    ok("responses with tools", call.name == "weather", r)
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    history = [MESSAGES[0], call.model_dump(exclude_none=True), told]
    r = client.responses.create(model="coder", tools=tools, input=history)
    ok("responses with a tool's result", r.output_text == "Hello world", r)


def messages(client):
    tools = [{"name": "weather", "description": "w", "input_schema": CITY}]
    create = client.messages.create
    m = create(model="coder", max_tokens=50, messages=MESSAGES, system="Be brief.")
    ok("messages", m.content[0].text == "Hello world" and m.model == "coder" and m.usage.output_tokens == 3, m)
    with client.messages.stream(model="coder", max_tokens=50, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    ok("messages streamed", text == "Hello world" and last.stop_reason == "end_turn", last)
    m = create(model="coder", max_tokens=50, messages=MESSAGES, tools=tools)
    use = next(block for block in m.content if block.type == "tool_use")
    ok("messages with tools", m.stop_reason == "tool_use" and use.input == {"city": "Ulm"}, m)
    with client.messages.stream(model="coder", max_tokens=50, messages=MESSAGES, tools=tools) as stream:
        last = stream.get_final_message()
    use = next(block for block in last.content if block.type == "tool_use")
    ok("messages streamed with tools", last.stop_reason == "tool_use" and use.input == {"city": "Ulm"}, last)
    told = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Rain"}]}
    history = MESSAGES + [{"role": "assistant", "content": [use.model_dump(exclude_none=True)]}, told]
    m = create(model="coder", max_tokens=50, tools=tools, messages=history)
    ok("messages with a tool's result", m.content[0].text == "Hello world", m)
    n = client.messages.count_tokens(model="coder", messages=MESSAGES)
    ok("tokens counted", n.input_tokens > 0, n)


def ollamas(client):
    r = client.chat(model="coder", messages=MESSAGES)
    ok("ollama", r.message.content == "Hello world", r)
    s = list(client.chat(model="coder", messages=MESSAGES, stream=True))
    ok("ollama streamed", "".join(x.message.content for x in s) == "Hello world" and s[-1].done, s)
    r = client.chat(model="coder", messages=MESSAGES, tools=TOOLS)
    ok("ollama with tools", r.message.tool_calls[0].function.name == "weather", r)
    ok("ollama's list", client.list().models[0].model.startswith("coder"))
    ok("ollama's running models", len(client.ps().models) == 1)


open_ai = openai.OpenAI(base_url=BASE + "/v1", api_key="sesame", max_retries=0)
chat(open_ai)
responses(open_ai)
ok("models", [model.id for model in open_ai.models.list()] == ["coder"])
ok("model", open_ai.models.retrieve("coder").id == "coder")
unknown = lambda: open_ai.chat.completions.create(model="nobody", messages=MESSAGES)
refused("an unknown model", openai.NotFoundError, unknown, lambda e: e.code == "model_not_found" and e.request_id)
wrong = openai.OpenAI(base_url=BASE + "/v1", api_key="wrong", max_retries=0)
refused("a wrong key", openai.AuthenticationError, wrong.models.list, lambda e: e.code == "invalid_api_key")

claude = anthropic.Anthropic(base_url=BASE, api_key="sesame", max_retries=0)
messages(claude)
ok("anthropic's models", [model.id for model in claude.models.list()] == ["coder"])
unknown = lambda: claude.messages.create(model="nobody", max_tokens=5, messages=MESSAGES)
refused("anthropic: an unknown model", anthropic.NotFoundError, unknown, lambda e: e.body["error"]["type"] == "not_found_error")
wrong = anthropic.Anthropic(base_url=BASE, api_key="wrong", max_retries=0)
refused("anthropic: a wrong key", anthropic.AuthenticationError, wrong.models.list, lambda e: True)

ollamas(ollama.Client(host=BASE, headers={"Authorization": "Bearer sesame"}))
