use std::time::Duration;

use fettle_domain::event::EventBody;
use fettle_domain::id::TaskId;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use crate::contract;
use crate::world::{ADMIN_KEY, World};

/// No feed in these tests is silent for this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

struct Feed {
    answer: Response,
    text: String,
}

#[derive(Debug, PartialEq)]
enum Message {
    Event { id: u64, kind: String },
    End,
}

impl Feed {
    async fn open(world: &World, path: &str, last: Option<u64>) -> Self {
        let request = world.http.get(format!("{}{path}", world.public)).bearer_auth(ADMIN_KEY);
        let request = last.iter().fold(request, |request, last| request.header("last-event-id", *last));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, text: String::new() }
    }

    /// The next message; `None` when the feed is closed.
    async fn next(&mut self) -> Option<Message> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (message, rest) = (parse(block), rest.to_owned());
                self.text = rest;
                if message.is_some() {
                    return message;
                }
            }
            let chunk = timeout(PATIENCE, self.answer.chunk()).await.expect("the feed is not silent").unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

fn parse(block: &str) -> Option<Message> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    if field("event") == Some("end") {
        return Some(Message::End);
    }
    let data: Value = serde_json::from_str(field("data")?).unwrap();
    contract::check_component("TaskEvent", &data);
    let id = field("id").unwrap().parse().unwrap();
    assert_eq!(data["seq"], id);
    Some(Message::Event { id, kind: data["what"]["type"].as_str().unwrap().to_owned() })
}

fn event(id: u64, kind: &str) -> Option<Message> {
    Some(Message::Event { id, kind: kind.to_owned() })
}

fn lapsed() -> EventBody {
    EventBody::RunLapsed { ordinal: 1, again: true }
}

fn done() -> EventBody {
    EventBody::TaskDone { outcome: "ready_pr".to_owned(), pull_request: Some(1) }
}

fn feed_of(task: TaskId) -> String {
    format!("/api/v1/tasks/{task}/events")
}

#[tokio::test]
async fn a_task_is_followed_live_to_its_end() {
    let world = World::start().await;
    let (task, other) = (world.task().await, world.task().await);
    let mut feed = Feed::open(&world, &feed_of(task), None).await;
    assert_eq!(feed.next().await, event(1, "task_created"));
    world.ledger.tell(task, lapsed());
    world.ledger.tell(other, lapsed());
    world.ledger.tell(task, done());
    assert_eq!(feed.next().await, event(3, "run_lapsed"));
    assert_eq!(feed.next().await, event(5, "task_done"));
    assert_eq!(feed.next().await, Some(Message::End));
    assert_eq!(feed.next().await, None);
}

#[tokio::test]
async fn a_feed_resumes_after_the_last_event_seen() {
    let world = World::start().await;
    let task = world.task().await;
    world.ledger.tell(task, lapsed());
    world.ledger.tell(task, done());
    let mut feed = Feed::open(&world, &feed_of(task), Some(2)).await;
    assert_eq!(feed.next().await, event(3, "task_done"));
    assert_eq!(feed.next().await, Some(Message::End));
    let mut told = Feed::open(&world, &feed_of(task), Some(3)).await;
    assert_eq!(told.next().await, Some(Message::End), "nothing is left to tell");
    let mut by_query = Feed::open(&world, &format!("{}?after=1", feed_of(task)), None).await;
    assert_eq!(by_query.next().await, event(2, "run_lapsed"));
}

// A dead Task that was started over has told its end once already.
#[tokio::test]
async fn a_feed_goes_on_when_the_task_was_started_over() {
    let world = World::start().await;
    let task = world.task().await;
    world.ledger.tell(task, EventBody::TaskCancelled);
    let mut feed = Feed::open(&world, &feed_of(task), Some(1)).await;
    assert_eq!(feed.next().await, event(2, "task_cancelled"));
    world.ledger.tell(task, EventBody::Redriven { by: "admin".to_owned() });
    assert_eq!(feed.next().await, event(3, "redriven"));
}

#[tokio::test]
async fn a_long_history_is_told_in_order_and_whole() {
    let world = World::start().await;
    let task = world.task().await;
    for _ in 0..450 {
        world.ledger.tell(task, lapsed());
    }
    world.ledger.tell(task, done());
    let mut feed = Feed::open(&world, &feed_of(task), None).await;
    assert_eq!(feed.next().await, event(1, "task_created"));
    for id in 2..=451 {
        assert_eq!(feed.next().await, event(id, "run_lapsed"));
    }
    assert_eq!(feed.next().await, event(452, "task_done"));
    assert_eq!(feed.next().await, Some(Message::End));
}

#[tokio::test]
async fn the_feed_of_all_tasks_ends_with_the_server_and_lets_it_drain() {
    let world = World::start().await;
    let mut feed = Feed::open(&world, "/api/v1/events", None).await;
    let (task, other) = (world.task().await, world.task().await);
    world.ledger.tell(task, done());
    assert_eq!(feed.next().await, event(1, "task_created"));
    assert_eq!(feed.next().await, event(2, "task_created"));
    assert_eq!(feed.next().await, event(3, "task_done"));
    world.ledger.tell(other, lapsed());
    assert_eq!(feed.next().await, event(4, "run_lapsed"));
    world.shutdown.cancel();
    assert_eq!(feed.next().await, None);
    timeout(PATIENCE, world.tracker.wait()).await.expect("both servers and the probe end");
}

#[tokio::test]
async fn a_feed_needs_a_task_and_a_number() {
    let world = World::start().await;
    let seen = world.get("/api/v1/tasks/task_00000000000000000000000000000099/events").await;
    assert_eq!(seen.problem(), (404, "not_found".to_owned()));
    let key = format!("Bearer {ADMIN_KEY}");
    let headers = [("authorization", key.as_str()), ("last-event-id", "x")];
    let seen = world.ask(reqwest::Method::GET, "/api/v1/events", &headers, None).await;
    assert_eq!(seen.problem(), (400, "bad_request".to_owned()));
}
