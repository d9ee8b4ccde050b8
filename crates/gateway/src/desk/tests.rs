use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn local(model: &str) -> Source {
    Source::Local(ModelId::new(model))
}

fn target(id: u64, parallel: u32) -> TargetFacts {
    TargetFacts { id: TargetId(id), parallel, draining: false }
}

fn facts(targets: &[TargetFacts]) -> SourceFacts {
    SourceFacts { targets: targets.to_vec(), unserved: None }
}

fn supply(sources: &[(Source, SourceFacts)]) -> BTreeMap<Source, SourceFacts> {
    sources.iter().cloned().collect()
}

fn desk(sources: &[(Source, SourceFacts)], now: Instant) -> Desk {
    let rules = Rules { queue_limit: 4, interactive_weight: 8, sticky_ttl: SECOND * 600 };
    let mut desk = Desk::new(rules);
    desk.supply(supply(sources), now);
    desk
}

fn ask(source: &str, owner: &str, session: u64) -> Ask {
    Ask {
        sources: vec![local(source)],
        owner: OwnerId::new(owner),
        class: Class::Interactive,
        session,
        prompt_tokens: 100,
        output_tokens: 100,
        avoid: None,
        knocks: false,
    }
}

fn went(outcome: Outcome) -> Went {
    Went { outcome, said: None, rest: None, measured: None }
}

fn granted(arrival: Arrival) -> Grant {
    match arrival {
        Arrival::Go(grant) => grant,
        other => panic!("{other:?}"),
    }
}

fn waiting(arrival: Arrival) -> u64 {
    match arrival {
        Arrival::Waits(waiter) => waiter,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_engine_gets_what_it_works_on_and_a_little_more_and_the_rest_waits() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 2)]))], now);
    let grants: Vec<_> = (0..4).map(|nth| granted(desk.arrive(ask("m", "ada", nth), now))).collect();
    let waiter = waiting(desk.arrive(ask("m", "ada", 9), now));
    let called = desk.release(&local("m"), &grants[0], went(Outcome::Good), now);
    assert!(matches!(&*called, [Called { waiter: one, to: Ok(_) }] if *one == waiter), "{called:?}");
}

#[test]
fn a_full_queue_refuses_and_whoever_leaves_makes_room() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[]))], now);
    let waiters: Vec<_> = (0..4).map(|nth| waiting(desk.arrive(ask("m", "ada", nth), now))).collect();
    assert_eq!(desk.arrive(ask("m", "ada", 5), now), Arrival::Refused(Refusal::QueueFull));
    assert!(desk.leave(waiters[0]));
    assert!(!desk.leave(waiters[0]));
    waiting(desk.arrive(ask("m", "ada", 5), now));
}

#[test]
fn an_owner_that_fills_the_queue_makes_room_for_others_as_far_as_they_have_less() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[]))], now);
    let ada: Vec<_> = (0..4).map(|nth| waiting(desk.arrive(ask("m", "ada", nth), now))).collect();
    for (nth, owner) in [(3, "ben"), (2, "ben")] {
        waiting(desk.arrive(ask("m", owner, 5), now));
        assert_eq!(desk.turned_away(), [Called { waiter: ada[nth], to: Err(Refusal::QueueFull) }]);
    }
    for owner in ["ben", "ada"] {
        assert_eq!(desk.arrive(ask("m", owner, 5), now), Arrival::Refused(Refusal::QueueFull), "each has half");
    }
    waiting(desk.arrive(ask("m", "eve", 5), now));
    assert_eq!((desk.turned_away().len(), desk.queue_depth()), (1, 4));
}

#[test]
fn those_who_wait_go_to_an_engine_that_comes_and_are_told_when_none_ever_will() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[])), (local("n"), facts(&[]))], now);
    let (first, second) =
        (waiting(desk.arrive(ask("m", "ada", 1), now)), waiting(desk.arrive(ask("n", "ben", 2), now)));
    let never = NotNow { why: "It needs 90 GiB.".to_owned(), when: When::Never };
    let refused = SourceFacts { targets: Vec::new(), unserved: Some(never) };
    let called = desk.supply(supply(&[(local("m"), facts(&[target(1, 1)])), (local("n"), refused)]), now);
    assert_eq!(called.len(), 2);
    assert!(called.iter().any(|one| one.waiter == first && one.to.as_ref().is_ok_and(|to| to.target == TargetId(1))));
    let sentence = Err(Refusal::Never("It needs 90 GiB.".to_owned()));
    assert!(called.iter().any(|one| one.waiter == second && one.to == sentence));
    assert!(matches!(desk.arrive(ask("n", "ben", 3), now), Arrival::Refused(Refusal::Never(_))));
}

#[test]
fn a_model_that_leaves_the_configuration_is_unknown_also_to_those_who_wait() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[]))], now);
    let waiter = waiting(desk.arrive(ask("m", "ada", 1), now));
    let called = desk.supply(BTreeMap::new(), now);
    assert_eq!(called, [Called { waiter, to: Err(Refusal::Unknown) }]);
    assert_eq!(desk.arrive(ask("m", "ada", 1), now), Arrival::Refused(Refusal::Unknown));
}

#[test]
fn nobody_waits_for_what_does_not_start_and_whoever_has_a_choice_takes_the_next() {
    let now = Instant::now();
    let cloud = |draining| (Source::Provider(0), facts(&[TargetFacts { draining, ..target(1, 1) }]));
    let failing = NotNow { why: "It is not installed.".to_owned(), when: When::Mended(SECOND * 9) };
    let failing = (local("m"), SourceFacts { targets: Vec::new(), unserved: Some(failing) });
    let mut desk = desk(&[cloud(true), (local("m"), facts(&[]))], now);
    let alone = waiting(desk.arrive(ask("m", "ada", 2), now));
    let profile = Ask { sources: vec![local("m"), Source::Provider(0)], ..ask("m", "ben", 3) };
    let choosy = waiting(desk.arrive(profile, now));
    let refusal = Refusal::Failing { why: "It is not installed.".to_owned(), retry_after: SECOND * 9 };
    let called = desk.supply(supply(&[cloud(true), failing.clone()]), now);
    assert_eq!(called, [Called { waiter: alone, to: Err(refusal.clone()) }]);
    assert_eq!(desk.arrive(ask("m", "ada", 4), now), Arrival::Refused(refusal));
    let called = desk.supply(supply(&[cloud(false), failing]), now);
    assert!(matches!(&called[..], [Called { waiter, to: Ok(_) }] if *waiter == choosy), "{called:?}");
}

#[test]
fn what_is_refused_for_now_waits() {
    let now = Instant::now();
    let unserved = Some(NotNow { why: "busy".to_owned(), when: When::Waiting(SECOND * 9) });
    let mut desk = desk(&[(local("m"), SourceFacts { targets: Vec::new(), unserved: unserved.clone() })], now);
    waiting(desk.arrive(ask("m", "ada", 1), now));
    assert_eq!(desk.why_waiting(&ask("m", "ada", 1)), unserved);
}

#[test]
fn a_draining_engine_gets_nothing_new_and_gives_back_what_it_has() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 4)]))], now);
    let grant = granted(desk.arrive(ask("m", "ada", 1), now));
    let draining = TargetFacts { draining: true, ..target(1, 4) };
    desk.supply(supply(&[(local("m"), facts(&[draining]))]), now);
    waiting(desk.arrive(ask("m", "ada", 1), now));
    assert_eq!(desk.loads(now)[&TargetId(1)].inflight, 1);
    assert!(desk.release(&local("m"), &grant, went(Outcome::Good), now).is_empty());
    assert_eq!(desk.loads(now)[&TargetId(1)].inflight, 0);
}

#[test]
fn an_engine_that_is_gone_takes_its_books_with_it() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 4)]))], now);
    let grant = granted(desk.arrive(ask("m", "ada", 1), now));
    desk.supply(supply(&[(local("m"), facts(&[target(2, 4)]))]), now);
    desk.release(&local("m"), &grant, went(Outcome::Failed), now);
    assert_eq!(granted(desk.arrive(ask("m", "ada", 1), now)).target, TargetId(2));
}

#[test]
fn a_session_comes_back_to_its_engine_and_a_failed_one_is_avoided() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 8), target(2, 8)]))], now);
    let first = granted(desk.arrive(ask("m", "ada", 7), now));
    let again = granted(desk.arrive(ask("m", "ada", 7), now));
    assert_eq!((again.target, again.policy), (first.target, Policy::Sticky));
    let failed = Ask { avoid: Some(first.target), ..ask("m", "ada", 7) };
    let third = granted(desk.arrive(failed, now));
    assert_ne!(third.target, first.target);
    let moved = granted(desk.arrive(ask("m", "ada", 7), now));
    assert_eq!(moved.target, third.target, "the session has moved");
}

#[test]
fn a_retry_goes_elsewhere_if_somebody_is_free_and_keeps_its_turn_otherwise() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 1)]))], now);
    let grants: Vec<_> = (0..3).map(|nth| granted(desk.arrive(ask("m", "ada", nth), now))).collect();
    let late = waiting(desk.arrive(ask("m", "ada", 8), now));
    let failed = Failed { worth_retrying: true, wait: None, attempts: 1, elsewhere: false, patience: None };
    assert!(matches!(desk.retry(&ask("m", "ada", 0), failed, TargetId(1), now), Verdict::SameAfter(_)));
    let called = desk.release(&local("m"), &grants[0], went(Outcome::Failed), now);
    assert_eq!(called[0].waiter, late);
    let retried = waiting(desk.arrive(Ask { avoid: Some(TargetId(1)), ..ask("m", "ada", 0) }, now));
    waiting(desk.arrive(ask("m", "ada", 9), now));
    let called = desk.release(&local("m"), &grants[1], went(Outcome::Good), now);
    assert_eq!(called[0].waiter, retried, "it stands before those who came later");
}

#[test]
fn a_provider_that_is_down_is_refused_at_once_and_the_next_of_a_profile_taken_instead() {
    let now = Instant::now();
    let provider = Source::Provider(0);
    let mut desk = desk(&[(provider.clone(), facts(&[target(1, 8)])), (local("m"), facts(&[target(2, 8)]))], now);
    let remote = Ask { sources: vec![provider.clone()], ..ask("m", "ada", 1) };
    for _ in 0..5 {
        let grant = granted(desk.arrive(remote.clone(), now));
        desk.release(&provider, &grant, went(Outcome::Failed), now);
    }
    assert!(matches!(desk.arrive(remote.clone(), now), Arrival::Refused(Refusal::Broken { last: None, .. })));
    let profile = Ask { sources: vec![provider, local("m")], ..remote };
    let grant = granted(desk.arrive(profile, now));
    assert_eq!((grant.target, grant.source), (TargetId(2), 1));
}

#[test]
fn whoever_is_refused_hears_what_failed_last_and_whoever_knocks_finds_out_for_all() {
    let now = Instant::now();
    let provider = Source::Provider(0);
    let mut desk = desk(&[(provider.clone(), facts(&[target(1, 8)]))], now);
    let remote = Ask { sources: vec![provider.clone()], ..ask("m", "ada", 1) };
    let failed = |sentence: &str| Went { said: Some(sentence.to_owned()), ..went(Outcome::Failed) };
    for sentence in ["It broke.", "It broke.", "It broke.", "It broke.", "It cannot be reached."] {
        let grant = granted(desk.arrive(remote.clone(), now));
        desk.release(&provider, &grant, failed(sentence), now);
    }
    let later = now + SECOND * 3;
    let Arrival::Refused(Refusal::Broken { last: Some(last), .. }) = desk.arrive(remote.clone(), later) else {
        panic!("the target is left alone");
    };
    assert_eq!((last.sentence.as_str(), last.ago), ("It cannot be reached.", SECOND * 3));

    let knocking = Ask { knocks: true, ..remote.clone() };
    for (outcome, left_alone) in [(Outcome::Neutral, true), (Outcome::Failed, true), (Outcome::Good, false)] {
        let grant = granted(desk.arrive(knocking.clone(), later));
        desk.release(&provider, &grant, went(outcome), later);
        let refused = matches!(desk.arrive(remote.clone(), later), Arrival::Refused(_));
        assert_eq!(refused, left_alone, "{outcome:?}");
    }
}

#[test]
fn a_pause_that_a_provider_wants_is_kept_though_somebody_knocks_and_is_answered() {
    let now = Instant::now();
    let provider = Source::Provider(0);
    let mut desk = desk(&[(provider.clone(), facts(&[target(1, 8)]))], now);
    let remote = Ask { sources: vec![provider.clone()], ..ask("m", "ada", 1) };
    let grant = granted(desk.arrive(remote.clone(), now));
    desk.release(&provider, &grant, Went { rest: Some(SECOND * 100), ..went(Outcome::Neutral) }, now);
    let grant = granted(desk.arrive(Ask { knocks: true, ..remote.clone() }, now + SECOND));
    desk.release(&provider, &grant, went(Outcome::Good), now + SECOND);
    assert!(matches!(desk.arrive(remote, now + SECOND * 3), Arrival::Refused(Refusal::Broken { last: None, .. })));
}

#[test]
fn a_model_on_its_way_is_waited_for_and_one_that_is_refused_for_now_gives_way_to_the_next() {
    let now = Instant::now();
    let cloud = (Source::Provider(0), facts(&[target(1, 8)]));
    let profile = Ask { sources: vec![local("m"), Source::Provider(0)], ..ask("m", "ada", 1) };
    let mut coming = desk(&[cloud.clone(), (local("m"), facts(&[]))], now);
    waiting(coming.arrive(profile.clone(), now));
    let not_now = Some(NotNow { why: "busy".to_owned(), when: When::Waiting(SECOND) });
    let refused = (local("m"), SourceFacts { targets: Vec::new(), unserved: not_now });
    let called = coming.supply(supply(&[cloud.clone(), refused.clone()]), now);
    assert_eq!(called.len(), 1, "{called:?}");
    assert_eq!(granted(desk(&[cloud, refused], now).arrive(profile, now)).source, 1);
}

#[test]
fn a_retry_prefers_the_next_of_a_profile_to_the_target_that_failed() {
    let now = Instant::now();
    let mut desk = desk(&[(Source::Provider(0), facts(&[target(1, 8)])), (local("m"), facts(&[target(2, 8)]))], now);
    let profile = Ask { sources: vec![local("m"), Source::Provider(0)], ..ask("m", "ada", 1) };
    assert_eq!(granted(desk.arrive(profile.clone(), now)).target, TargetId(2));
    let again = Ask { avoid: Some(TargetId(2)), ..profile };
    assert_eq!(granted(desk.arrive(again, now)).target, TargetId(1));
}

#[test]
fn an_engine_that_failed_is_waited_for_and_asked_again_after_its_pause() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 8)]))], now);
    for _ in 0..5 {
        let grant = granted(desk.arrive(ask("m", "ada", 1), now));
        desk.release(&local("m"), &grant, went(Outcome::Failed), now);
    }
    let waiter = waiting(desk.arrive(ask("m", "ada", 1), now));
    waiting(desk.arrive(ask("m", "ada", 2), now));
    assert!(desk.call(now + SECOND * 9).is_empty());
    let called = desk.call(now + SECOND * 10);
    assert_eq!(called.len(), 1, "one probe");
    assert_eq!(called[0].waiter, waiter);
}

#[test]
fn an_engine_that_answers_again_is_open_to_all_while_that_answer_still_runs() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 8)]))], now);
    for _ in 0..5 {
        let grant = granted(desk.arrive(ask("m", "ada", 1), now));
        desk.release(&local("m"), &grant, went(Outcome::Failed), now);
    }
    let later = now + SECOND * 10;
    let probe = granted(desk.arrive(ask("m", "ada", 1), later));
    waiting(desk.arrive(ask("m", "ada", 2), later));
    assert_eq!(desk.answers(probe.target, later).len(), 1);
    granted(desk.arrive(ask("m", "ada", 3), later));
}

#[test]
fn a_target_that_asked_for_a_pause_is_left_alone() {
    let now = Instant::now();
    let mut desk = desk(&[(local("m"), facts(&[target(1, 8)]))], now);
    let grant = granted(desk.arrive(ask("m", "ada", 1), now));
    desk.release(&local("m"), &grant, Went { rest: Some(SECOND * 5), ..went(Outcome::Neutral) }, now);
    waiting(desk.arrive(ask("m", "ada", 1), now));
    assert_eq!(desk.call(now + SECOND * 5).len(), 1);
}

proptest! {
    /// Every request ends once: granted and given back, refused, or gone of its own accord; and no target has more than it may.
    #[test]
    fn nobody_is_lost_or_served_twice(events in proptest::collection::vec((0..7u8, 0..4u64, 0..3u8), 0..400)) {
        let begin = Instant::now();
        let mut now = begin;
        let all = [target(1, 1), target(2, 3)];
        let mut desk = desk(&[(local("m"), facts(&all))], now);
        let mut held: Vec<Grant> = Vec::new();
        let mut inside: Vec<u64> = Vec::new();
        let called_for = |called: Vec<Called>, inside: &mut Vec<u64>, held: &mut Vec<Grant>| {
            for one in called {
                let place = inside.iter().position(|waiter| *waiter == one.waiter);
                prop_assert!(place.is_some(), "called twice or never came");
                inside.remove(place.unwrap());
                held.extend(one.to.ok());
            }
            Ok(())
        };
        for (event, session, what) in events {
            now += SECOND;
            match event {
                0..=2 => match desk.arrive(ask("m", &what.to_string(), session), now) {
                    Arrival::Go(grant) => held.push(grant),
                    Arrival::Waits(waiter) => inside.push(waiter),
                    Arrival::Refused(_) => {}
                },
                3 if !held.is_empty() => {
                    let grant = held.remove(usize::try_from(session).unwrap() % held.len());
                    let outcome = [Outcome::Good, Outcome::Failed, Outcome::Neutral][usize::from(what)];
                    let called = desk.release(&local("m"), &grant, went(outcome), now);
                    called_for(called, &mut inside, &mut held)?;
                }
                4 if !inside.is_empty() => {
                    let waiter = inside.remove(usize::try_from(session).unwrap() % inside.len());
                    prop_assert!(desk.leave(waiter));
                }
                5 => {
                    let some: Vec<_> = all.iter().enumerate().filter(|(nth, _)| what == 2 || usize::from(what) == *nth)
                        .map(|(_, one)| TargetFacts { draining: session == 0, ..*one }).collect();
                    let gone: Vec<_> = all.iter().filter(|one| some.iter().all(|kept| kept.id != one.id)).map(|one| one.id).collect();
                    held.retain(|grant| !gone.contains(&grant.target));
                    let called = desk.supply(supply(&[(local("m"), facts(&some))]), now);
                    called_for(called, &mut inside, &mut held)?;
                }
                _ => {
                    let called = desk.call(now);
                    called_for(called, &mut inside, &mut held)?;
                }
            }
            let called = desk.turned_away();
            called_for(called, &mut inside, &mut held)?;
            for (id, load) in desk.loads(now) {
                let mine = held.iter().filter(|grant| grant.target == id).count();
                let most = if id == TargetId(1) { 3 } else { 5 };
                prop_assert_eq!(usize::try_from(load.inflight).unwrap(), mine);
                prop_assert!(mine <= most);
            }
            prop_assert_eq!(desk.queue_depth(), inside.len());
        }
    }
}
