//! The cases. Brokers are real, so time is: each wait ends by itself, and what should come has a limit.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::transport::{
    Announcement, ForeignInbox, ForeignMessage, Hint, MAX_FOREIGN_BYTES, Transport, TransportError,
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{Client, Subject};

/// Long enough for what comes at once on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing must come before a case believes that nothing comes.
const SILENCE: Duration = Duration::from_millis(700);
/// What a wait may take beyond its time, on a busy machine.
const LATE: Duration = Duration::from_secs(2);
/// A client notices that its broker is back, or that it was emptied.
const MEND: Duration = Duration::from_secs(40);
/// Between two looks at something that has no event to wait for.
const LOOK: Duration = Duration::from_millis(50);

/// Asks until the answer is `wanted`.
async fn becomes<T, F>(what: &str, wanted: T, limit: Duration, mut ask: impl FnMut() -> F)
where
    T: PartialEq + std::fmt::Debug,
    F: Future<Output = T>,
{
    let until = Instant::now() + limit;
    loop {
        let found = ask().await;
        if found == wanted {
            return;
        }
        assert!(Instant::now() < until, "{what} should become {wanted:?} and is {found:?} after {limit:?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn depth_becomes(transport: &dyn Transport, wanted: u64, limit: Duration) {
    becomes("the depth", Some(wanted), limit, async || transport.depth().await.ok()).await;
}

/// The next hint, asking again when a fault has ended a wait early.
async fn hint_within(transport: &dyn Transport, limit: Duration) -> Option<Hint> {
    let until = Instant::now() + limit;
    loop {
        let hint = transport.wait(until.saturating_duration_since(Instant::now())).await;
        if hint.is_some() || Instant::now() >= until {
            return hint;
        }
    }
}

async fn message_within(inbox: &dyn ForeignInbox, limit: Duration) -> Option<ForeignMessage> {
    let until = Instant::now() + limit;
    loop {
        let message = inbox.next(until.saturating_duration_since(Instant::now())).await;
        if message.is_some() || Instant::now() >= until {
            return message;
        }
    }
}

/// Takes hints, each done at once, until there are none for a while.
async fn take_all(transport: &dyn Transport) -> u64 {
    let mut taken = 0;
    while let Some(hint) = hint_within(transport, if taken == 0 { SOON } else { SILENCE }).await {
        transport.done(hint).await.unwrap();
        taken += 1;
    }
    taken
}

async fn ring_until_it_works(transport: &dyn Transport, count: u32) {
    becomes("ringing", true, MEND, async || transport.ring(count).await.is_ok()).await;
}

fn is_unreachable<T>(answer: Result<T, TransportError>) -> bool {
    matches!(answer, Err(TransportError::Unreachable(_)))
}

pub async fn each_hint_goes_to_one_reader(subject: &impl Subject) {
    let (one, other) = (subject.client().await, subject.client().await);
    one.transport.ring(8).await.unwrap();
    let (of_one, of_other) = tokio::join!(take_all(&*one.transport), take_all(&*other.transport));
    assert_eq!(of_one + of_other, 8, "{of_one} and {of_other}");
    depth_becomes(&*one.transport, 0, SOON).await;
}

pub async fn depth_counts_the_hints_that_nobody_has_taken(subject: &impl Subject) {
    let Client { transport, .. } = subject.client().await;
    assert_eq!(transport.depth().await.unwrap(), 0, "nobody has rung yet");
    transport.ring(0).await.unwrap();
    transport.ring(3).await.unwrap();
    depth_becomes(&*transport, 3, SOON).await;
    let hint = hint_within(&*transport, SOON).await.unwrap();
    let held = transport.depth().await.unwrap();
    assert!((2..=3).contains(&held), "{held}: a hint in a reader's hand may count or not");
    transport.done(hint).await.unwrap();
    depth_becomes(&*subject.client().await.transport, 2, SOON).await;
    transport.ring(200).await.unwrap();
    depth_becomes(&*transport, 202, SOON).await;
}

pub async fn wait_ends_after_its_time(subject: &impl Subject) {
    let Client { transport, inbox, .. } = subject.client().await;
    for max in [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(2)] {
        let began = Instant::now();
        assert_eq!(transport.wait(max).await, None);
        assert!(began.elapsed() >= max && began.elapsed() < max + LATE, "{:?} for {max:?}", began.elapsed());
        let began = Instant::now();
        assert_eq!(inbox.next(max).await, None);
        assert!(began.elapsed() >= max && began.elapsed() < max + LATE, "{:?} for {max:?}", began.elapsed());
    }
}

pub async fn a_waiting_reader_is_woken(subject: &impl Subject) {
    let (reader, ringer) = (subject.client().await, subject.client().await);
    let waiting = async {
        let hint = hint_within(&*reader.transport, SOON * 3).await.unwrap();
        (Instant::now(), hint)
    };
    let ringing = async {
        assert_eq!(ringer.transport.wait(SILENCE).await, None, "nobody has rung yet");
        ringer.transport.ring(1).await.unwrap();
        Instant::now()
    };
    let ((woken, hint), rung) = tokio::join!(waiting, ringing);
    reader.transport.done(hint).await.unwrap();
    assert!(woken.saturating_duration_since(rung) < LATE, "a bell is heard at once");
}

pub async fn many_waiters_get_at_most_one_hint_each(subject: &impl Subject) {
    let clients = [subject.client().await, subject.client().await];
    clients[0].transport.ring(10).await.unwrap();
    let take = async |client: &Client| {
        let hint = client.transport.wait(LATE * 2).await?;
        client.transport.done(hint.clone()).await.unwrap();
        Some(hint)
    };
    let hints = join_all((0..16).map(|n| take(&clients[n % 2]))).await;
    let found: Vec<Hint> = hints.into_iter().flatten().collect();
    assert_eq!(found.len(), 10, "{found:?}");
    for client in &clients {
        assert_eq!(client.transport.wait(Duration::ZERO).await, None);
    }
}

pub async fn a_hint_of_a_dead_reader_comes_again(subject: &impl Subject) {
    let (dies, lives) = (subject.client().await, subject.client().await);
    dies.transport.ring(1).await.unwrap();
    hint_within(&*dies.transport, SOON).await.unwrap();
    drop(dies);
    let hint = hint_within(&*lives.transport, subject.comes_again_within()).await.unwrap();
    lives.transport.done(hint).await.unwrap();
    depth_becomes(&*lives.transport, 0, SOON).await;
    assert_eq!(hint_within(&*lives.transport, subject.comes_again_within()).await, None, "it is done");
}

pub async fn a_hint_that_its_reader_forgot_comes_again(subject: &impl Subject) {
    let Client { transport, .. } = subject.client().await;
    transport.ring(1).await.unwrap();
    hint_within(&*transport, SOON).await.unwrap();
    let hint = hint_within(&*transport, subject.comes_again_within()).await.unwrap();
    transport.done(hint).await.unwrap();
    depth_becomes(&*transport, 0, SOON).await;
}

// A wait is dropped at its start, while it asks, while an answer is on its way, and with the answer in hand.
pub async fn a_dropped_wait_loses_no_hint_for_good(subject: &impl Subject) {
    const ROUNDS: u64 = 60;
    let Client { transport, .. } = subject.client().await;
    transport.wait(Duration::ZERO).await;
    let mut found = 0;
    for round in 0..ROUNDS {
        let ringing = async {
            tokio::time::sleep(Duration::from_micros(round % 7 * 300)).await;
            ring_until_it_works(&*transport, 1).await;
        };
        let patience = Duration::from_micros(round * 97 % 5000);
        let (waited, ()) = tokio::join!(tokio::time::timeout(patience, transport.wait(SOON)), ringing);
        if let Ok(Some(hint)) = waited {
            transport.done(hint).await.unwrap();
            found += 1;
        }
    }
    let until = Instant::now() + subject.comes_again_within() + SOON;
    while found < ROUNDS {
        let left = until.saturating_duration_since(Instant::now());
        let hint = hint_within(&*transport, left).await;
        let hint = hint.unwrap_or_else(|| panic!("{} of {ROUNDS} hints are gone", ROUNDS - found));
        transport.done(hint).await.unwrap();
        found += 1;
    }
}

pub async fn a_broker_that_is_away_costs_time_and_nothing_else(subject: &impl Subject) {
    let Some(power) = subject.power() else { return };
    let Client { transport, inbox, announcer } = subject.client().await;
    transport.ring(1).await.unwrap();
    let hint = hint_within(&*transport, SOON).await.unwrap();
    transport.done(hint).await.unwrap();
    assert_eq!(inbox.next(Duration::ZERO).await, None);

    for _ in 0..2 {
        // The broker goes while somebody waits.
        let began = Instant::now();
        let (waited, ()) = tokio::join!(transport.wait(SILENCE * 2), power.off());
        assert_eq!(waited, None);
        assert!(began.elapsed() < SILENCE * 2 + SOON, "{:?}", began.elapsed());
        assert!(is_unreachable(transport.ring(1).await));
        assert!(is_unreachable(transport.depth().await));
        assert!(is_unreachable(inbox.depth().await));
        assert!(is_unreachable(inbox.bury(&Bytes::from_static(b"x"), "not_json").await));
        assert!(is_unreachable(announcer.announce(&[announcement(1)]).await));
        let began = Instant::now();
        assert_eq!(transport.wait(SILENCE).await, None);
        assert_eq!(inbox.next(SILENCE).await, None);
        assert!(began.elapsed() < SILENCE * 2 + LATE, "{:?}", began.elapsed());
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(transport.wait(SOON).await, None);
        }
        assert!(began.elapsed() >= SILENCE, "a reader that is told of a fault at once would spin");

        power.on().await;
        ring_until_it_works(&*transport, 1).await;
        let hint = hint_within(&*transport, MEND).await.unwrap();
        transport.done(hint).await.unwrap();
        let body = Bytes::from_static(b"{}");
        subject.leave(&body).await;
        let message = message_within(&*inbox, MEND).await.unwrap();
        assert_eq!(message.body, body);
        inbox.taken(&message).await.unwrap();
        announcer.announce(&[announcement(1)]).await.unwrap();
    }
}

pub async fn a_client_may_be_older_than_its_broker(subject: &impl Subject) {
    let Some(power) = subject.power() else { return };
    power.off().await;
    let Client { transport, inbox, .. } = subject.client().await;
    assert!(is_unreachable(transport.ring(1).await));
    assert_eq!(transport.wait(SILENCE).await, None);
    assert_eq!(inbox.next(SILENCE).await, None);
    power.on().await;
    ring_until_it_works(&*transport, 1).await;
    let hint = hint_within(&*transport, MEND).await.unwrap();
    transport.done(hint).await.unwrap();
}

pub async fn a_wiped_broker_works_again(subject: &impl Subject) {
    let Client { transport, inbox, announcer } = subject.client().await;
    transport.ring(3).await.unwrap();
    let held = hint_within(&*transport, SOON).await.unwrap();
    subject.leave(&Bytes::from_static(b"1")).await;
    let message = message_within(&*inbox, SOON).await.unwrap();

    subject.wipe().await;
    // What was held is nobody's now; whether that is an error is the broker's to say.
    transport.done(held).await.ok();
    inbox.taken(&message).await.ok();
    depth_becomes(&*transport, 0, MEND).await;
    becomes("the inbox's depth", Some(0), MEND, async || inbox.depth().await.ok()).await;
    ring_until_it_works(&*transport, 2).await;
    depth_becomes(&*transport, 2, SOON).await;
    for _ in 0..2 {
        let hint = hint_within(&*transport, MEND).await.unwrap();
        transport.done(hint).await.unwrap();
    }

    // And beneath somebody who waits.
    let wiping = async {
        assert_eq!(transport.wait(SILENCE).await, None);
        subject.wipe().await;
        ring_until_it_works(&*transport, 1).await;
    };
    let (hint, ()) = tokio::join!(hint_within(&*transport, MEND), wiping);
    transport.done(hint.unwrap()).await.unwrap();

    let body = Bytes::from_static(b"2");
    subject.leave(&body).await;
    let message = message_within(&*inbox, MEND).await.unwrap();
    assert_eq!(message.body, body);
    inbox.taken(&message).await.unwrap();
    inbox.bury(&body, "not_json").await.unwrap();
    assert_eq!(subject.buried().await, [(body, "not_json".to_owned())]);
    announcer.announce(&[announcement(1)]).await.unwrap();
}

pub async fn a_foreign_message_comes_once_as_it_was_left(subject: &impl Subject) {
    let Client { inbox, .. } = subject.client().await;
    let bodies = [&b"{\"issue_id\": 7}"[..], b"", b"\xff\xfe not UTF-8 \0 \r\n", "öäü".as_bytes()];
    for body in bodies.map(Bytes::from_static) {
        let id = subject.leave(&body).await;
        becomes("the inbox's depth", Some(1), SOON, async || inbox.depth().await.ok()).await;
        let message = message_within(&*inbox, SOON).await.unwrap();
        assert_eq!((&message.body, &message.id, message.redelivered), (&body, &id, false));
        inbox.taken(&message).await.unwrap();
        becomes("the inbox's depth", Some(0), SOON, async || inbox.depth().await.ok()).await;
    }
    assert_eq!(inbox.next(subject.comes_again_within()).await, None, "taken is taken");
}

pub async fn foreign_messages_come_in_order(subject: &impl Subject) {
    let Client { inbox, .. } = subject.client().await;
    let bodies: Vec<Bytes> = (0..20).map(|n| Bytes::from(format!("{{\"issue_id\": {n}}}"))).collect();
    for body in &bodies {
        subject.leave(body).await;
    }
    for body in &bodies {
        let message = message_within(&*inbox, SOON).await.unwrap();
        assert_eq!(message.body, *body);
        inbox.taken(&message).await.unwrap();
    }
}

pub async fn an_untaken_message_comes_again_and_says_so(subject: &impl Subject) {
    let body = Bytes::from_static(b"{\"issue_id\": 8}");
    let id = subject.leave(&body).await;
    let dies = subject.client().await;
    assert!(!message_within(&*dies.inbox, SOON).await.unwrap().redelivered);
    drop(dies);
    let lives = subject.client().await;
    let again = message_within(&*lives.inbox, subject.comes_again_within()).await.unwrap();
    assert_eq!((&again.body, &again.id, again.redelivered), (&body, &id, true));
    lives.inbox.taken(&again).await.unwrap();
    assert_eq!(lives.inbox.next(subject.comes_again_within()).await, None);
}

pub async fn a_dropped_next_loses_no_message(subject: &impl Subject) {
    const ROUNDS: u64 = 20;
    let Client { inbox, .. } = subject.client().await;
    inbox.next(Duration::ZERO).await;
    let mut found = std::collections::BTreeSet::new();
    for round in 0..ROUNDS {
        let body = Bytes::from(round.to_string());
        let patience = Duration::from_micros(round * 397 % 5000);
        let (next, _) = tokio::join!(tokio::time::timeout(patience, inbox.next(SOON)), subject.leave(&body));
        if let Ok(Some(message)) = next {
            inbox.taken(&message).await.unwrap();
            assert!(found.insert(message.body), "twice");
        }
    }
    let until = Instant::now() + subject.comes_again_within() + SOON;
    while found.len() < usize::try_from(ROUNDS).unwrap() {
        let message = message_within(&*inbox, until.saturating_duration_since(Instant::now())).await;
        let message = message.unwrap_or_else(|| panic!("of {ROUNDS} messages came {found:?}"));
        inbox.taken(&message).await.unwrap();
        assert!(found.insert(message.body), "twice");
    }
}

pub async fn a_message_that_is_too_large_is_cut(subject: &impl Subject) {
    let Client { inbox, .. } = subject.client().await;
    for (left, comes) in [
        (MAX_FOREIGN_BYTES, MAX_FOREIGN_BYTES),
        (MAX_FOREIGN_BYTES + 1, MAX_FOREIGN_BYTES + 1),
        (MAX_FOREIGN_BYTES * 8, MAX_FOREIGN_BYTES + 1),
    ] {
        subject.leave(&Bytes::from(vec![b'x'; left])).await;
        let message = message_within(&*inbox, SOON).await.unwrap();
        assert_eq!(message.body.len(), comes);
        inbox.taken(&message).await.unwrap();
    }
}

pub async fn a_message_outlives_its_broker(subject: &impl Subject) {
    let Some(power) = subject.power() else { return };
    let Client { inbox, .. } = subject.client().await;
    let (first, second) = (Bytes::from_static(b"1"), Bytes::from_static(b"2"));
    subject.leave(&first).await;
    let in_hand = message_within(&*inbox, SOON).await.unwrap();
    let id = subject.leave(&second).await;
    power.off().await;
    power.on().await;

    // The first was in hand: either it is taken now, or it comes again and says so.
    let mut awaited = vec![(second, id)];
    if inbox.taken(&in_hand).await.is_err() {
        awaited.insert(0, (first.clone(), in_hand.id.clone()));
    }
    while !awaited.is_empty() {
        let message = message_within(&*inbox, MEND + subject.comes_again_within()).await.unwrap();
        assert!(message.redelivered || message.body != first);
        let known = awaited.iter().position(|(body, id)| *body == message.body && *id == message.id);
        awaited.remove(known.unwrap_or_else(|| panic!("{message:?} is not among {awaited:?}")));
        inbox.taken(&message).await.unwrap();
    }
    assert_eq!(inbox.next(SILENCE).await, None);
}

pub async fn what_is_buried_carries_its_reason(subject: &impl Subject) {
    let Client { inbox, .. } = subject.client().await;
    let dead = [
        (Bytes::from_static(b"{"), "not_json".to_owned()),
        (Bytes::from_static(b"\xff\0"), "not_utf8".to_owned()),
        (Bytes::new(), "missing_field:repo_url".to_owned()),
        (Bytes::from(vec![b'x'; MAX_FOREIGN_BYTES + 1]), "too_large".to_owned()),
    ];
    for (body, reason) in &dead {
        inbox.bury(body, reason).await.unwrap();
    }
    becomes("what is buried", dead.to_vec(), SOON, async || subject.buried().await).await;
    assert_eq!(inbox.next(SILENCE).await, None, "what is buried does not come back");
}

fn announcement(number: usize) -> Announcement {
    Announcement {
        kind: if number.is_multiple_of(2) { "TaskCreated" } else { "TaskFinished" }.to_owned(),
        id: format!("event_{number}"),
        correlation: format!("correlation_{}", number / 2),
        body: format!("{{\"number\":{number},\"said\":\"ü\"}}"),
    }
}

pub async fn announcements_arrive_in_order(subject: &impl Subject) {
    let Client { announcer, .. } = subject.client().await;
    announcer.announce(&[]).await.unwrap();
    announcer.announce(&[announcement(1000)]).await.unwrap();
    subject.listen().await;
    let all: Vec<Announcement> = (0..120).map(announcement).collect();
    let (first, rest) = all.split_at(100);
    announcer.announce(first).await.unwrap();
    for one in rest {
        announcer.announce(std::slice::from_ref(one)).await.unwrap();
    }
    becomes("what is heard", all, SOON, async || subject.heard().await).await;
}
