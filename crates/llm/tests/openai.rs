//! The adapter against a server on loopback whose every byte the test chooses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::model::{Finish, Message, Model, ModelError, ModelInfo, ModelRequest, RawTurn};
use fettle_llm::{OpenAiCompatible, OpenAiOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const KEY: &str = "sk-canary-7";
/// No wait of these tests is meant to last; this ends one that does.
const PATIENCE: Duration = Duration::from_secs(20);

/// What follows the bytes of an answer.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    StayOpen,
}

/// Answers each connection with the same pieces. Tells what was requested and when the client has gone.
struct Server {
    address: SocketAddr,
    requests: mpsc::Receiver<String>,
    gone: mpsc::Receiver<()>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(pieces: Vec<Vec<u8>>, then: Then) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (requested, requests) = mpsc::channel(16);
        let (left, gone) = mpsc::channel(16);
        let pieces = Arc::new(pieces);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(request) = read_request(&mut stream).await else { continue };
                requested.send(request).await.expect("the test keeps the server");
                for piece in pieces.iter() {
                    // A client that has heard enough closes early.
                    if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
                        break;
                    }
                }
                if then == Then::StayOpen {
                    while stream.read(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0) {}
                    left.send(()).await.expect("the test keeps the server");
                }
            }
        });
        Self { address, requests, gone, _tasks: tasks }
    }

    async fn answering(status: &str, headers: &str, body: &str) -> Self {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n");
        Self::start(vec![head.into_bytes(), body.as_bytes().to_vec()], Then::Close).await
    }

    fn model(&self) -> OpenAiCompatible {
        model_at(self.address, Duration::from_secs(10))
    }
}

fn model_at(address: SocketAddr, stall_limit: Duration) -> OpenAiCompatible {
    let info = ModelInfo { name: "coder".into(), context_tokens: 32_768 };
    let mut options = OpenAiOptions::new(info, format!("http://{address}/v1"), "qwen");
    options.api_key = Some(KEY.into());
    options.stall_limit = stall_limit;
    OpenAiCompatible::new(options).expect("the options are right")
}

/// Head and body of one request; none if the client closes first.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(text);
        }
    }
}

fn request(stream: bool) -> ModelRequest {
    let messages = vec![Message::User { text: "fix it".into() }];
    ModelRequest { messages, tools: Vec::new(), max_tokens: 100, stream }
}

async fn ask(model: &OpenAiCompatible) -> Result<RawTurn, ModelError> {
    let cancel = CancellationToken::new();
    tokio::time::timeout(PATIENCE, model.call(&request(true), &|_, _| (), &cancel))
        .await
        .expect("the call ends in time")
}

fn event(text: &str) -> String {
    format!("data: {}\n\n", serde_json::json!({ "choices": [{ "delta": { "content": text } }] }))
}

const FINISHED: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunked(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| format!("{error}: ")).collect()
}

#[tokio::test]
async fn a_stream_gives_the_same_turn_in_pieces_of_any_size() {
    let body = format!("{}{}{FINISHED}data: [DONE]\n\n", event("Grüße "), event("😀"));
    for size in [1, 3, 64, body.len()] {
        let pieces = body.as_bytes().chunks(size).map(chunked);
        let pieces = [STREAM_HEAD.into()].into_iter().chain(pieces).chain([b"0\r\n\r\n".to_vec()]).collect();
        let mut server = Server::start(pieces, Then::Close).await;
        let turn = ask(&server.model()).await.unwrap();
        assert_eq!((turn.text.as_str(), turn.finish), ("Grüße 😀", Finish::Stop));
        let request = server.requests.recv().await.unwrap();
        assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("authorization: Bearer {KEY}\r\n")), "{request}");
        assert!(request.contains(r#""stream_options":{"include_usage":true}"#), "{request}");
    }
}

#[tokio::test]
async fn every_failure_is_mapped_to_what_the_caller_can_do() {
    let said = r#"{"error":{"message":"no sk-canary-7 here","code":"x"}}"#;
    let too_long = r#"{"error":{"message":"…","code":"context_length_exceeded"}}"#;
    let wait = "retry-after: 7\r\n";
    let html = "<html><body>Bad gateway</body></html>";
    for (status, headers, body, expected) in [
        ("429 Too Many Requests", wait, said, "Busy(7s)"),
        ("429 Too Many Requests", "", said, "Busy"),
        ("429 Too Many Requests", "", r#"{"error":{"message":"pay","code":"insufficient_quota"}}"#, "Refused(pay)"),
        ("503 Service Unavailable", wait, said, "Busy(7s)"),
        ("503 Service Unavailable", "", said, "Unavailable(URL answered 503: no [key] here)"),
        ("500 Internal Server Error", wait, said, "Unavailable(URL answered 500: no [key] here)"),
        ("502 Bad Gateway", "", html, "Unavailable(URL answered 502: it gave no reason)"),
        ("400 Bad Request", "", too_long, "ContextExceeded"),
        ("400 Bad Request", "", said, "Refused(URL answered 400: no [key] here)"),
        (
            "401 Unauthorized",
            "",
            said,
            "Refused(URL answered 401: no [key] here; look at the file with its key (api_key_file, or --model-key-file))",
        ),
        (
            "403 Forbidden",
            "",
            r#"{"detail":"not you"}"#,
            "Refused(URL answered 403: not you; look at the file with its key (api_key_file, or --model-key-file))",
        ),
        (
            "404 Not Found",
            "",
            "no such\nmodel",
            "Refused(URL answered 404: no such model; does the URL end as the server documents it, mostly in /v1, and does the server have this model?)",
        ),
        ("200 OK", "", "data: {\"error\":{\"message\":\"slow\",\"code\":429}}\n\n", "Busy"),
        (
            "200 OK",
            "",
            "data: {\"error\":{\"message\":\"gone\",\"code\":500}}\n\n",
            "Unavailable(URL broke off with an error: gone)",
        ),
        ("200 OK", "", too_long, "ContextExceeded"),
        (
            "200 OK",
            "content-type: text/event-stream\r\n",
            "data: {\"choices\": [\n\n",
            "Unavailable(the server sent something that is no JSON)",
        ),
        (
            "200 OK",
            "content-type: text/html\r\n",
            "<html>\n<title>sk-canary-7 \u{1b}[1mPortal</title>",
            "Unavailable(what URL sent is no chat completion (200, text/html, `<html> <title>[key] [1mPortal</title>`); does the URL end as the server documents it, mostly in /v1?)",
        ),
    ] {
        let server = Server::answering(status, headers, body).await;
        let error = ask(&server.model()).await.expect_err(status);
        let seen = match &error {
            ModelError::Busy { retry_after: Some(time), .. } => format!("Busy({time:?})"),
            ModelError::Busy { retry_after: None, .. } => "Busy".into(),
            ModelError::Unavailable(cause) => format!("Unavailable({cause})"),
            ModelError::ContextExceeded => "ContextExceeded".into(),
            ModelError::Refused(sentence) => format!("Refused({sentence})"),
            ModelError::Cancelled => "Cancelled".into(),
        };
        let seen = seen.replace(&format!("http://{}/v1", server.address), "URL");
        assert_eq!(seen, expected, "{status} {body}");
        assert!(!chain(&error).contains(KEY) && !format!("{error:?}").contains(KEY));
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_the_key_stays_with_its_server() {
    let mut other = Server::answering("200 OK", "", "").await;
    let location = format!("location: http://{}/v1/chat/completions\r\n", other.address);
    let server = Server::answering("307 Temporary Redirect", &location, "").await;
    assert!(matches!(ask(&server.model()).await, Err(ModelError::Refused(sentence)) if sentence.contains("307")));
    assert!(other.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_server_that_is_gone_breaks_off_or_goes_silent_is_unavailable() {
    let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    assert!(matches!(ask(&model_at(closed, PATIENCE)).await, Err(ModelError::Unavailable(_))));

    let begun = || vec![STREAM_HEAD.into(), chunked(event("a").as_bytes())];
    let server = Server::start(begun(), Then::Close).await;
    assert!(matches!(ask(&server.model()).await, Err(ModelError::Unavailable(_))));

    for pieces in [begun(), Vec::new()] {
        let mut server = Server::start(pieces, Then::StayOpen).await;
        let error = ask(&model_at(server.address, Duration::from_millis(100))).await.unwrap_err();
        assert!(chain(&error).contains("sent nothing for 100ms"), "{error:?}");
        tokio::time::timeout(PATIENCE, server.gone.recv()).await.expect("the connection is closed").unwrap();
    }
}

#[tokio::test]
async fn a_finished_turn_does_not_wait_for_an_end_mark_that_never_comes() {
    let body = format!("{}{FINISHED}", event("whole"));
    for then in [Then::StayOpen, Then::Close] {
        let server = Server::start(vec![STREAM_HEAD.into(), chunked(body.as_bytes())], then).await;
        let turn = ask(&model_at(server.address, Duration::from_secs(1))).await.unwrap();
        assert_eq!((turn.text.as_str(), turn.finish, turn.usage), ("whole", Finish::Stop, None));
    }
}

#[tokio::test]
async fn cancelling_ends_the_call_at_once_and_closes_the_connection() {
    let mut server =
        Server::start(vec![STREAM_HEAD.into(), chunked(event("thinking").as_bytes())], Then::StayOpen).await;
    let cancel = CancellationToken::new();
    let model = server.model();
    // The first piece of text cancels, so the call is certainly in the middle of its stream.
    let stop = |_, _: &str| cancel.cancel();
    let request = request(true);
    let call = model.call(&request, &stop, &cancel);
    let result = tokio::time::timeout(PATIENCE, call).await.expect("cancelling ends the call");
    assert!(matches!(result, Err(ModelError::Cancelled)));
    tokio::time::timeout(PATIENCE, server.gone.recv()).await.expect("the connection is closed").unwrap();
}

#[tokio::test]
async fn endless_repetition_is_cut_and_the_engine_is_freed() {
    let again = chunked(event("I will look again.\n").as_bytes()).repeat(2_000);
    let mut server = Server::start(vec![STREAM_HEAD.into(), again], Then::StayOpen).await;
    let turn = ask(&server.model()).await.unwrap();
    assert!(matches!(&turn.finish, Finish::Cut(reason) if reason.contains("repeated")), "{:?}", turn.finish);
    assert_eq!(turn.text, "I will look again.\n");
    tokio::time::timeout(PATIENCE, server.gone.recv()).await.expect("the connection is closed").unwrap();
}
