//! Pins the wire's form: an old worker meets a new dashboard in every rolling upgrade. A change here needs a new `v`.

use fettle_domain::budget::Spent;
use fettle_domain::id::{RunId, TaskId};
use fettle_domain::issue::{CommentSnapshot, IssueSnapshot};
use fettle_domain::object::{CommitId, ObjectId, TreeId};
use fettle_domain::patch::{Change, Entry, FileMode, Patch};
use fettle_domain::path::RepoPath;
use fettle_domain::proof::{
    Check, CommandSource, Environment, Executed, FailureKind, Granularity, Level, NewTest, Outcome, Proof, Reason,
    ReasonCode, SuiteCounts, SuiteDelta, Touch, TouchedTest,
};
use fettle_domain::repo::Repo;
use fettle_domain::run::{ProvenChange, RunOutcome};
use fettle_domain::step::{StepBody as Content, StepKind, WorkspaceState};
use fettle_domain::task::Mode;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json, to_value};
use uuid::Uuid;

use super::*;

const SPENT: Spent = Spent { calls: 1, generated_tokens: 2, prompt_tokens: 3, wall_s: 4 };

fn lease() -> LeaseBody {
    LeaseBody { job: JobId::from_uuid(Uuid::from_u128(1)), fence: Fence::new(7) }
}

/// The pinned text is written, and read back to what is written again.
fn pinned<T: Serialize + DeserializeOwned>(body: &T, expected: Value) {
    assert_eq!(to_value(body).unwrap(), expected);
    let read: T = serde_json::from_value(expected.clone()).unwrap();
    assert_eq!(to_value(&read).unwrap(), expected);
}

#[test]
fn the_small_verbs_keep_their_form() {
    let job = "job_00000000000000000000000000000001";
    let request = LeaseRequest {
        worker: WorkerId::from_uuid(Uuid::from_u128(2)),
        name: "host:1".to_owned(),
        versions: vec![1],
        labels: "arm64,gpu".parse().unwrap(),
        max: 3,
        wait_ms: 20_000,
        request: RequestId::from_uuid(Uuid::from_u128(3)),
    };
    pinned(
        &request,
        json!({
            "worker": "worker_00000000000000000000000000000002", "name": "host:1", "versions": [1], "labels": ["arm64", "gpu"], "max": 3,
            "wait_ms": 20000, "request": "request_00000000000000000000000000000003",
        }),
    );
    pinned(&BeatBody { lease: lease(), progress: 9, received: None }, json!({"job": job, "fence": 7, "progress": 9}));
    let renewed = BeatAnswerBody::Renewed { time_left_ms: 30_000, messages: vec!["hi".to_owned()], received: Some(1) };
    let answers = vec![renewed, BeatAnswerBody::Cancel { reason: "r".to_owned() }, BeatAnswerBody::Lost];
    pinned(
        &RenewBody { answers },
        json!({"answers": [
            {"answer": "renewed", "time_left_ms": 30000, "messages": ["hi"], "received": 1},
            {"answer": "cancel", "reason": "r"},
            {"answer": "lost"},
        ]}),
    );
    let fail = FailRequest { lease: lease(), why: "w".to_owned(), then: ThenBody::AfterMs(10) };
    pinned(&fail, json!({"job": job, "fence": 7, "why": "w", "then": {"after_ms": 10}}));
    pinned(&ThenBody::Never, json!("never"));
    let defer = DeferRequest { lease: lease(), until: WakeBody::AfterMs(10), why: "w".to_owned() };
    pinned(&defer, json!({"job": job, "fence": 7, "until": {"after_ms": 10}, "why": "w"}));
    pinned(&WakeBody::Event, json!("event"));
    pinned(&FencedBody { fenced: FencedWord::AlreadyApplied }, json!({"fenced": "already_applied"}));
    let nothing = AdmissionBody::Go { read_token: None, run_token: None, model: None };
    pinned(&nothing, json!({"admission": "go", "read_token": null}));
    let both = AdmissionBody::Go { read_token: Some("r".into()), run_token: Some("t".into()), model: None };
    pinned(&both, json!({"admission": "go", "read_token": "r", "run_token": "t"}));
    let reason = "the issue was closed meanwhile";
    pinned(&AdmissionBody::Withdrawn { reason: reason.into() }, json!({"admission": "withdrawn", "reason": reason}));
    let later = AdmissionBody::Later { wait_ms: 1500, why: "away".into() };
    pinned(&later, json!({"admission": "later", "wait_ms": 1500, "why": "away"}));
    pinned(&AdmissionBody::Refused { why: "no".into() }, json!({"admission": "refused", "why": "no"}));
}

#[test]
fn an_order_keeps_its_form() {
    let run = RunOrder {
        task: TaskId::from_uuid(Uuid::from_u128(4)),
        run: RunId::from_uuid(Uuid::from_u128(5)),
        correlation: fettle_domain::id::CorrelationId::from_uuid(Uuid::from_u128(6)),
        mode: Mode::Refine,
        repo: Some(Repo {
            forge_id: 8,
            name: "acme/widget".parse().unwrap(),
            clone_url: "https://forge.example/acme/widget.git".to_owned(),
            default_branch: "main".to_owned(),
            private: true,
            installation: None,
        }),
        issue: IssueSnapshot {
            number: Some(9),
            title: "t".to_owned(),
            body: "b".to_owned(),
            author: "ada".to_owned(),
            url: None,
            comments: vec![CommentSnapshot { author: "bob".to_owned(), body: "c".to_owned() }],
            taken_at: Timestamp::from_second(1_763_600_000).unwrap(),
        },
        model: None,
        instruction: None,
        base: Some("next".to_owned()),
        generation: 2,
        spent: SPENT,
        last_failure: None,
    };
    let order = OrderBody::V1 { run: Box::new(run) };
    insta::assert_json_snapshot!(LeasedBody { lease: lease(), time_left_ms: 29_000, attempts: 2, order });
}

#[test]
fn a_step_keeps_its_form() {
    let record = StepRecord {
        seq: 3,
        kind: StepKind::ModelCall,
        phase: "fix".to_owned(),
        title: "t".to_owned(),
        input: BlobId::from_bytes([1; 32]),
        body: Content::Inline(json!({"a": [1, null]})),
        workspace: Some(WorkspaceState { tree: TreeId::from_bytes([2; 20]), bundle: BlobId::from_bytes([3; 32]) }),
        spent: SPENT,
        took_ms: 12,
    };
    let blob = StepRecord { body: Content::Blob(BlobId::from_bytes([4; 32])), workspace: None, ..record.clone() };
    let steps = vec![StepBody::V1 { record }, StepBody::V1 { record: blob }];
    insta::assert_json_snapshot!(StepsBody { steps });
}

#[test]
fn a_result_with_its_proof_keeps_its_form() {
    let (base, tree) = (CommitId::from_bytes([5; 20]), TreeId::from_bytes([6; 20]));
    let path = RepoPath::parse("src/lib.rs").unwrap();
    let counts = SuiteCounts { passed: 3, failed: 1, skipped: 0 };
    let proof = Proof {
        version: 1,
        run: RunId::from_uuid(Uuid::from_u128(5)),
        base,
        head_tree: tree,
        env: Environment {
            architecture: "aarch64".to_owned(),
            sandbox_level: "full".to_owned(),
            toolchain: vec!["rustc 1.95.0".to_owned()],
            digest: BlobId::from_bytes([7; 32]),
        },
        level: Level::Weak,
        reasons: vec![Reason { code: ReasonCode::NoNewTest, text: "no new test".to_owned() }],
        new_tests: vec![NewTest {
            id: "it::works".to_owned(),
            base: vec![Outcome::Failed],
            base_failure: Some(FailureKind::Assertion),
            names_added_symbol: false,
            head: vec![Outcome::Passed],
        }],
        suite: Some(SuiteDelta {
            granularity: Granularity::Test,
            base: counts,
            head: counts,
            fixed: vec!["a".to_owned()],
            broken: Vec::new(),
            vanished: Vec::new(),
            known_failures: Vec::new(),
            flaky: Vec::new(),
            timed_out: false,
        }),
        checks: vec![Check { name: "build".to_owned(), base_exit: Some(0), head_exit: None }],
        touched_tests: vec![TouchedTest {
            path: path.clone(),
            how: Touch::Extended,
            base_version_on_head: Outcome::Passed,
        }],
        commands: vec![Executed {
            purpose: "suite".to_owned(),
            command: "cargo test".to_owned(),
            source: CommandSource::Ecosystem,
            tree,
            exit: Some(0),
            signal: None,
            timed_out: false,
            took_ms: 5,
            log: None,
            truncated: false,
        }],
    };
    let entry = Entry { mode: FileMode::Regular, object: ObjectId::from_bytes([8; 20]), size_bytes: 10 };
    let change = Change { path, before: None, after: Some(entry), lines_added: 1, lines_removed: 0, binary: false };
    let patch = Patch { base, base_tree: tree, head_tree: tree, changes: vec![change] };
    let run = RunResult {
        outcome: RunOutcome::DraftPr { reasons: vec!["no new test".to_owned()] },
        base: Some(base),
        change: Some(ProvenChange {
            patch,
            bundle: BlobId::from_bytes([9; 32]),
            proof,
            title: "t".to_owned(),
            summary: "s".to_owned(),
        }),
        spent: SPENT,
        model: "coder".to_owned(),
    };
    let body = CompleteRequest { lease: lease(), result: ResultBody::V1 { run: Box::new(run) } };
    insta::assert_json_snapshot!(body);
    let read: CompleteRequest = serde_json::from_value(to_value(&body).unwrap()).unwrap();
    assert_eq!(to_value(&read).unwrap(), to_value(&body).unwrap());
}
