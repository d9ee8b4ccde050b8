use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::Sender;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

use super::*;

impl Queue {
    pub(in super::super) fn for_tests(waiting: usize) -> (Self, Receiver<Span>) {
        let (sender, receiver) = sync_channel(waiting);
        (Self { sender: Arc::new(Mutex::new(Some(sender))), counts: SpanCounts::new().unwrap() }, receiver)
    }
}

fn span(name: &str) -> Span {
    Span { name: name.to_owned(), ..Span::default() }
}

/// A collector that answers `answers` requests, each with the next status and body, and hands on what came.
fn collector(answers: Vec<(u16, Vec<u8>)>) -> (String, std::sync::mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told): (Sender<_>, _) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (status, body) in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push_str(&line);
            }
            let mut request = vec![0; length];
            reader.read_exact(&mut request).unwrap();
            let mut stream = stream;
            write!(stream, "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())
                .unwrap();
            stream.write_all(&body).unwrap();
            tell.send((head, request)).unwrap();
        }
    });
    (address, told)
}

#[test]
fn what_is_queued_is_sent_before_the_end() {
    let (address, told) = collector(vec![(200, Vec::new())]);
    let exporter = Exporter::start(&address, "fettle-test").unwrap();
    exporter.queue.put(span("first"));
    exporter.queue.put(span("second"));
    let (queue, counts) = (exporter.queue.clone(), exporter.counts().clone());
    drop(exporter);
    let (head, body) = told.try_recv().expect("it was sent before the drop came back");
    assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/x-protobuf"), "{head}");
    let request = ExportTraceServiceRequest::decode(&*body).unwrap();
    let of = &request.resource_spans[0];
    let names: Vec<&str> = of.scope_spans[0].spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    assert!(format!("{:?}", of.resource).contains("fettle-test"));
    assert_eq!(counts.of(Outcome::Sent), 2);
    // Later ones are nobody's.
    queue.put(span("third"));
    assert_eq!(counts.of(Outcome::Dropped), 0);
}

#[test]
fn a_collector_that_is_away_refuses_or_takes_a_part_costs_spans_and_nothing_else() {
    let partial = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess { rejected_spans: 1, error_message: String::new() }),
    };
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = |address: &str| {
        let exporter = Exporter::start(address, "fettle-test").unwrap();
        exporter.queue.put(span("one"));
        exporter.queue.put(span("two"));
        let counts = exporter.counts().clone();
        drop(exporter);
        [Outcome::Sent, Outcome::Failed, Outcome::Refused, Outcome::Dropped].map(|outcome| counts.of(outcome))
    };
    assert_eq!(ended(&format!("http://{nobody}")), [0, 2, 0, 0]);
    assert_eq!(ended(&collector(vec![(503, Vec::new())]).0), [0, 2, 0, 0]);
    assert_eq!(ended(&collector(vec![(200, partial.encode_to_vec())]).0), [1, 0, 1, 0]);
}

#[test]
fn a_collector_that_says_nothing_holds_up_neither_the_work_nor_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let exporter = Exporter::start(&format!("http://{}", silent.local_addr().unwrap()), "fettle-test").unwrap();
    let begun = Instant::now();
    // The first batch is on its way when the rest comes.
    for nth in 0..WAITING + 2 * BATCH {
        exporter.queue.put(span(&nth.to_string()));
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    let dropped = exporter.counts().of(Outcome::Dropped);
    assert!(dropped > 0, "{dropped}");
    let counts = exporter.counts().clone();
    drop(exporter);
    assert!(begun.elapsed() < LAST_WORD + Duration::from_secs(2));
    assert_eq!(counts.of(Outcome::Sent), 0);
}

#[test]
fn traces_go_below_the_endpoint_and_a_secret_in_it_is_refused() {
    let url = |endpoint: &str| traces_url(endpoint).map(String::from);
    assert_eq!(url("http://127.0.0.1:4318").as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
    assert_eq!(url("https://collector/otlp/").as_deref(), Some("https://collector/otlp/v1/traces"));
    for wrong in ["collector:4318", "grpc://collector", "http://me@collector", "http://collector?key=1", ""] {
        assert_eq!(url(wrong), None, "{wrong}");
    }
}
