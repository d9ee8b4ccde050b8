//! What is written is read back by the same protocol: streams of any legal events, and requests of what it can say.

use fettle_protocols::{
    AnswerReader, AnswerWriter, Event, Finish, Head, Input, Message, Part, Protocol, Request, Role, Sampling, Target,
    Thinking, Tool, ToolChoice, ToolKind, Usage, read_request, write_request,
};
use proptest::prelude::*;

const CALLERS: [Protocol; 4] =
    [Protocol::OpenAiChat, Protocol::OpenAiResponses, Protocol::AnthropicMessages, Protocol::OllamaChat];

/// A part of an answer with the deltas that it comes in.
#[derive(Debug, Clone)]
enum Told {
    Text(Vec<String>),
    Thinking(Vec<String>, Option<String>),
    Call(String, Vec<String>),
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-zA-Z ,.]{1,12}", 1 => "[\\n\\r\\t\"\\\\:{}\u{0}\u{2028}äß🦀]{1,6}", 1 => Just("data: [DONE]\n\n".to_owned())]
}

fn told() -> impl Strategy<Value = Told> {
    let call = (words(), any::<u16>()).prop_map(|(text, number)| {
        let json = serde_json::json!({ "text": text, "number": number }).to_string();
        let cut = json.char_indices().map(|(at, _)| at).nth(3).unwrap_or(0);
        vec![json[..cut].to_owned(), json[cut..].to_owned()]
    });
    prop_oneof![
        proptest::collection::vec(words(), 1..4).prop_map(Told::Text),
        (proptest::collection::vec(words(), 1..4), proptest::option::of("anthropic:[a-zA-Z0-9+/=]{4,12}"))
            .prop_map(|(deltas, signature)| Told::Thinking(deltas, signature)),
        ("[a-z_]{1,10}", call).prop_map(|(name, deltas)| Told::Call(name, deltas)),
    ]
}

fn events(parts: &[Told], usage: Usage, max_tokens: bool) -> Vec<Event> {
    let mut events = vec![Event::Started { id: None }];
    let mut calls = false;
    for (place, part) in parts.iter().enumerate() {
        match part {
            Told::Text(deltas) => events.extend(deltas.iter().cloned().map(Event::Text)),
            Told::Thinking(deltas, signature) => {
                events.extend(deltas.iter().cloned().map(Event::Thinking));
                events.extend(signature.clone().map(Event::ThinkingSignature));
            }
            Told::Call(name, deltas) => {
                calls = true;
                events.push(Event::CallBegun { id: format!("call_{place}"), name: name.clone() });
                events.extend(deltas.iter().cloned().map(Event::CallArguments));
                events.push(Event::CallEnded);
            }
        }
    }
    events.push(Event::Usage(usage));
    events.push(Event::Finished(match (max_tokens, calls) {
        (true, _) => Finish::MaxTokens,
        (false, true) => Finish::Calls,
        (false, false) => Finish::Stop,
    }));
    events
}

/// What the events come to, and nothing of how they were cut. A protocol may keep neither the order of kinds nor
/// signatures, where it says each kind in one place.
#[derive(Debug, PartialEq, Default)]
struct Sum {
    text: String,
    thinking: String,
    signatures: Vec<String>,
    calls: Vec<(String, String, serde_json::Value)>,
    usage: Usage,
    finish: Option<Finish>,
}

fn sum(events: &[Event], signatures: bool) -> Sum {
    let mut sum = Sum::default();
    let mut arguments = String::new();
    for event in events {
        match event {
            Event::Text(text) | Event::Refusal(text) => sum.text.push_str(text),
            Event::Thinking(text) => sum.thinking.push_str(text),
            Event::ThinkingSignature(signature) if signatures => sum.signatures.push(signature.clone()),
            Event::CallBegun { id, name } => {
                arguments.clear();
                sum.calls.push((id.clone(), name.clone(), serde_json::Value::Null));
            }
            Event::CallArguments(delta) => arguments.push_str(delta),
            Event::CallEnded => sum.calls.last_mut().unwrap().2 = serde_json::from_str(&arguments).unwrap(),
            Event::Usage(usage) => sum.usage = *usage,
            Event::Finished(finish) => sum.finish = Some(finish.clone()),
            Event::Started { .. } | Event::ThinkingSignature(_) => {}
            Event::Failed(failure) => panic!("{failure:?}"),
        }
    }
    sum
}

fn signs(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::AnthropicMessages | Protocol::OpenAiResponses)
}

/// What each protocol counts.
fn counted(protocol: Protocol, usage: Usage) -> Usage {
    match protocol {
        Protocol::OllamaChat => Usage { prompt: usage.prompt, output: usage.output, ..Usage::default() },
        Protocol::OpenAiChat => Usage { cache_write: 0, ..usage },
        _ => usage,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn an_answer_of_any_legal_events_is_read_back(
        parts in proptest::collection::vec(told(), 0..6),
        counts in (0..1000_u64, 0..1000_u64, 0..1000_u64, 1..1000_u64, 0..500_u64),
        max_tokens: bool,
        streamed: bool,
    ) {
        let (fresh, cached, cache_write, output, thinking) = counts;
        let usage = Usage { prompt: fresh + cached + cache_write, cached, cache_write, output, thinking };
        let events = events(&parts, usage, max_tokens);
        for protocol in CALLERS {
            let head = Head { id: "1".to_owned(), model: "m".to_owned(), created: 0, streamed, usage: true, tools: Vec::new() };
            let mut writer = AnswerWriter::new(protocol, head);
            let mut bytes: Vec<u8> = events.iter().flat_map(|event| writer.write(event)).collect();
            bytes.extend(writer.finish().unwrap());
            let mut reader = AnswerReader::new(protocol, streamed);
            let mut back = reader.push(&bytes);
            back.extend(reader.finish());
            let mut expected = sum(&events, signs(protocol));
            expected.usage = counted(protocol, usage);
            prop_assert_eq!(expected, sum(&back, signs(protocol)), "{:?}\n{}", protocol, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_request_that_a_protocol_can_say_is_read_back(
        system in proptest::option::of("[a-z ]{1,10}[a-z]"),
        turns in proptest::collection::vec((words(), proptest::option::of(words()), words()), 1..4),
        temperature in proptest::option::of(0..=10_u8),
        max_tokens in 1..100_000_u64,
        tool_choice in prop_oneof![Just(ToolChoice::Auto), Just(ToolChoice::None)],
        effort in prop_oneof![Just(None), Just(Some(Thinking::Off)), Just(Some(Thinking::Effort(fettle_protocols::Effort::Low)))],
        stream: bool,
    ) {
        let request = request(system, &turns, temperature, max_tokens, tool_choice, effort, stream);
        for protocol in CALLERS {
            let target = Target { protocol, model: "m", takes_thoughts: true, default_max_tokens: 1 };
            let written = write_request(&request, &target).unwrap();
            let back = read_request(protocol, &written.body).unwrap();
            prop_assert_eq!(gist(&request, protocol), gist(&back, protocol), "{:?}\n{}", protocol, String::from_utf8_lossy(&written.body));
            prop_assert_eq!(written.dropped, Vec::<String>::new());
        }
    }
}

fn request(
    system: Option<String>,
    turns: &[(String, Option<String>, String)],
    temperature: Option<u8>,
    max_tokens: u64,
    tool_choice: ToolChoice,
    thinking: Option<Thinking>,
    stream: bool,
) -> Request {
    let mut messages: Vec<Message> =
        system.map(|text| Message { role: Role::System, parts: vec![Part::Text(text)] }).into_iter().collect();
    for (place, (asked, called, said)) in turns.iter().enumerate() {
        messages.push(Message { role: Role::User, parts: vec![Part::Text(format!("q{asked}"))] });
        let mut parts = vec![Part::Text(format!("a{said}"))];
        if let Some(argument) = called {
            let id = format!("call_{place}");
            let arguments = serde_json::json!({ "argument": argument }).to_string();
            parts.push(Part::Call { id: id.clone(), name: "read".to_owned(), arguments });
            messages.push(Message { role: Role::Assistant, parts });
            let result = Part::Result { call: id, parts: vec![Part::Text(format!("r{said}"))], failed: false };
            messages.push(Message { role: Role::User, parts: vec![result] });
            messages.push(Message { role: Role::Assistant, parts: vec![Part::Text("done".to_owned())] });
        } else {
            messages.push(Message { role: Role::Assistant, parts });
        }
    }
    let schema = serde_json::value::RawValue::from_string(r#"{"type":"object", "b":1,"a":2}"#.to_owned()).unwrap();
    Request {
        model: "m".to_owned(),
        stream,
        stream_usage: true,
        input: Input::Chat(messages),
        tools: vec![Tool {
            name: "read".to_owned(),
            description: Some("Reads".to_owned()),
            schema: Some(schema),
            strict: None,
            kind: ToolKind::Function,
        }],
        tool_choice,
        parallel_calls: None,
        sampling: Sampling { temperature: temperature.map(|t| f64::from(t) / 10.0), ..Sampling::default() },
        stop: Vec::new(),
        max_tokens: Some(max_tokens),
        format: fettle_protocols::Format::Text,
        thinking,
        user: None,
        cache_key: None,
        unsaid: Vec::new(),
    }
}

/// All that every chat protocol can say, as text. Ollama has no way to forbid tools but to name none.
fn gist(request: &Request, protocol: Protocol) -> String {
    let Input::Chat(messages) = &request.input else { panic!("a conversation") };
    let no_tools = protocol == Protocol::OllamaChat && request.tool_choice == ToolChoice::None;
    let tools: Vec<String> = request
        .tools
        .iter()
        .filter(|_| !no_tools)
        .map(|tool| format!("{} {:?} {}", tool.name, tool.description, tool.schema.as_ref().unwrap().get()))
        .collect();
    let choice = if protocol == Protocol::OllamaChat { ToolChoice::Auto } else { request.tool_choice.clone() };
    let turns: Vec<String> = messages
        .iter()
        .flat_map(|message| message.parts.iter().map(move |part| format!("{:?} {part:?}", message.role)))
        .collect();
    format!(
        "{} {} {:?} {tools:?} {choice:?} {:?} {:?} {:?}",
        request.model, request.stream, turns, request.max_tokens, request.sampling, request.thinking
    )
}
