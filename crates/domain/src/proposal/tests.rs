use uuid::Uuid;

use super::*;
use crate::id::{RunId, TaskId};
use crate::object::{BlobId, ObjectId};
use crate::patch::Entry;
use crate::proof::{Environment, Reason, ReasonCode};
use crate::task::Mode;

const BASE: CommitId = CommitId::from_bytes([1; 20]);
const TREE: TreeId = TreeId::from_bytes([2; 20]);

struct Case {
    patch: Patch,
    proof: Proof,
    branch: BranchName,
    texts: Vec<(&'static str, String)>,
    added: Vec<(RepoPath, FileMode, Vec<u8>)>,
    parent: CommitId,
    policy: PathPolicy,
    known: KnownSecrets,
}

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text).expect("a path")
}

fn change(at: &str, mode: FileMode, lines: u32) -> Change {
    let object = ObjectId::from_bytes([3; 20]);
    Change {
        path: path(at),
        before: None,
        after: Some(Entry { mode, object, size_bytes: 10 }),
        lines_added: lines,
        lines_removed: 0,
        binary: false,
    }
}

/// A proven two-line change that can be published as it is.
fn good() -> Case {
    let proof = Proof {
        version: 1,
        run: RunId::from_uuid(Uuid::nil()),
        base: BASE,
        head_tree: TREE,
        env: Environment {
            architecture: "x86_64".into(),
            sandbox_level: "full".into(),
            toolchain: Vec::new(),
            digest: BlobId::of(b""),
        },
        level: Level::Proven,
        reasons: Vec::new(),
        new_tests: Vec::new(),
        suite: None,
        checks: Vec::new(),
        touched_tests: Vec::new(),
        commands: Vec::new(),
    };
    let changes = vec![change("src/lib.rs", FileMode::Regular, 2)];
    Case {
        patch: Patch { base: BASE, base_tree: TREE, head_tree: TREE, changes },
        proof,
        branch: BranchName::of(Mode::Quickfix, Some(7), TaskId::from_uuid(Uuid::nil()), 1),
        texts: vec![("title", "Fix the parser".into()), ("body", "Why and how.".into())],
        added: vec![(path("src/lib.rs"), FileMode::Regular, b"fn a() {}\n".to_vec())],
        parent: BASE,
        policy: PathPolicy::default(),
        known: KnownSecrets::new([("webhook secret", "hunter2-hunter2")]),
    }
}

fn judge(case: &Case) -> Verdict {
    let texts: Vec<(&str, &str)> = case.texts.iter().map(|(place, text)| (*place, text.as_str())).collect();
    let proposal = Proposal {
        patch: &case.patch,
        proof: &case.proof,
        commit_parent: case.parent,
        commit_tree: case.patch.head_tree,
        branch: &case.branch,
        texts: &texts,
        added: &case.added,
    };
    validate(&proposal, &case.policy, &case.known)
}

fn rejected(case: &Case, why: &str) {
    match judge(case) {
        Verdict::Reject(reasons) => assert!(reasons.iter().any(|r| r.contains(why)), "{why} in {reasons:?}"),
        other => panic!("expected a rejection for {why}, got {other:?}"),
    }
}

#[test]
fn a_small_proven_change_is_published() {
    assert_eq!(judge(&good()), Verdict::Publish);
}

#[test]
fn a_proof_of_another_base_or_tree_is_worth_nothing() {
    let mut case = good();
    case.parent = CommitId::from_bytes([9; 20]);
    rejected(&case, "parent");
    let mut case = good();
    case.patch.head_tree = TreeId::from_bytes([9; 20]);
    rejected(&case, "tree");
    let mut case = good();
    case.patch.changes.clear();
    rejected(&case, "changes nothing");
}

#[test]
fn forbidden_paths_submodules_and_escaping_links_are_rejected() {
    let mut case = good();
    case.patch.changes.push(change("config/.env", FileMode::Regular, 1));
    rejected(&case, ".env");
    let mut case = good();
    case.patch.changes.push(change("vendor/x", FileMode::Submodule, 1));
    rejected(&case, "submodule");
    for target in ["/etc/passwd", "../../x"] {
        rejected(&linked("src/link", target), "leaves");
    }
    rejected(&linked("src/link", "../.git/config"), "forbidden file");
}

fn linked(at: &str, target: &str) -> Case {
    let mut case = good();
    case.added.push((path(at), FileMode::Symlink, target.as_bytes().to_vec()));
    case
}

#[test]
fn a_link_that_goes_up_behind_a_name_is_rejected_for_the_name_may_be_a_link() {
    for target in ["a/b/l/../../secret", "a/..", "./a//../b", "../src/../x", "a/../../../x"] {
        rejected(&linked("dir/x", target), "goes up again");
    }
    assert_eq!(judge(&linked("a/b/x", "../../src/lib.rs")), Verdict::Publish);
}

#[test]
fn a_link_to_a_protected_file_waits_for_a_person_like_a_change_of_it() {
    for target in [".github/workflows/ci.yml", "AGENTS.md", ".cursor", ".github"] {
        assert!(matches!(judge(&linked("x", target)), Verdict::NeedsHuman(_)), "{target}");
    }
}

#[test]
fn protected_files_wait_for_a_person_and_a_deletion_counts_too() {
    let mut case = good();
    let mut deletion = change(".github/workflows/ci.yml", FileMode::Regular, 0);
    deletion.before = deletion.after.take();
    case.patch.changes.push(deletion);
    assert!(matches!(judge(&case), Verdict::NeedsHuman(_)));
}

#[test]
fn size_makes_a_draft_and_then_a_rejection_but_lock_files_do_not_count() {
    let mut case = good();
    case.patch.changes = vec![change("src/lib.rs", FileMode::Regular, 401)];
    assert!(matches!(judge(&case), Verdict::Draft(_)));
    case.patch.changes = vec![change("src/lib.rs", FileMode::Regular, 2001)];
    rejected(&case, "2001 changed lines");
    case.patch.changes = vec![change("Cargo.lock", FileMode::Regular, 5000)];
    assert_eq!(judge(&case), Verdict::Publish);
}

#[test]
fn an_unproven_change_is_a_draft_that_says_why() {
    let mut case = good();
    case.proof.level = Level::Weak;
    case.proof.reasons = vec![Reason { code: ReasonCode::NoNewTest, text: "there is no new test".into() }];
    assert_eq!(judge(&case), Verdict::Draft(vec!["there is no new test".into()]));
}

#[test]
fn a_secret_anywhere_outgoing_is_rejected_and_not_repeated() {
    let disguised = [
        |case: &mut Case| case.texts[0].1 = "hunter2-hunter2".into(),
        |case: &mut Case| case.texts[1].1 = hex::encode("hunter2-hunter2"),
        |case: &mut Case| case.added[0].2 = b"let a = \"hunter2-\"\n + \"hunter2\";".to_vec(),
        |case: &mut Case| case.patch.changes.push(change("docs/hunter2-hunter2.md", FileMode::Regular, 1)),
    ];
    for plant in disguised {
        let mut case = good();
        plant(&mut case);
        rejected(&case, "known secret");
        assert!(!format!("{:?}", judge(&case)).contains("hunter2"));
    }
}
