//! Proofs of small repositories by their real toolchains: each way to be right, wrong or dishonest, and what it is called.

#[cfg(test)]
mod world;

use std::time::Duration;

use fettle_agent::tools::TestRunner;
use fettle_agent::verify::{SUITE_TIME, declined};
use fettle_domain::proof::{FailureKind, Granularity, Level, Outcome, ReasonCode, Touch};
use tokio_util::sync::CancellationToken;

use world::{World, verdict};

const PACKAGE: (&str, &str) = ("package.json", r#"{"name":"calc","scripts":{"test":"node --test"}}"#);
const CALC: (&str, &str) = ("calc.js", "exports.half = (n) => n;\nexports.twice = (n) => 2 * n;\n");
const FIXED: &str = "exports.half = (n) => n / 2;\nexports.twice = (n) => 2 * n;\n";
const TEST: (&str, &str) = (
    "test/calc.test.js",
    "const test = require('node:test');\nconst assert = require('node:assert');\nconst { half, twice } = require('../calc.js');\n\
     test('zero', () => assert.equal(half(0), 0));\ntest('twice', () => assert.equal(twice(2), 4));\n",
);
const NEW_TEST: &str = "test('four', () => assert.equal(half(4), 2));\n";

fn extended() -> String {
    format!("{}{NEW_TEST}", TEST.1)
}

async fn calc() -> World {
    World::new(&[PACKAGE, CALC, TEST]).await
}

#[tokio::test]
async fn a_right_fix_with_its_test_is_proven_in_javascript() {
    let world = calc().await;
    let proof = world.prove(&[("calc.js", Some(FIXED)), ("test/calc.test.js", Some(&extended()))]).await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    let test = &proof.new_tests[0];
    assert_eq!((test.id.as_str(), test.base_failure), ("four", Some(FailureKind::Assertion)));
    assert_eq!((test.base.as_slice(), test.head.as_slice()), (&[Outcome::Failed; 3][..], &[Outcome::Passed; 3][..]));
    let suite = proof.suite.unwrap();
    assert_eq!((suite.base.passed, suite.head.passed, suite.granularity), (2, 3, Granularity::Test));
    assert_eq!(
        (proof.touched_tests[0].how, proof.touched_tests[0].base_version_on_head),
        (Touch::Extended, Outcome::Passed)
    );
    assert!(proof.commands.iter().any(|c| c.purpose == "tests on base" && c.tree == world.base.tree));
}

#[tokio::test]
async fn a_right_fix_with_its_test_is_proven_in_python() {
    let test = "from calc import half\n\ndef test_zero():\n    assert half(0) == 0\n";
    let files = [
        ("calc.py", "def half(n):\n    return n\n"),
        ("tests/test_calc.py", test),
        ("pytest.ini", "[pytest]\npythonpath = .\n"),
    ];
    let world = World::new(&files).await;
    let new = "from calc import half\n\ndef test_four():\n    assert half(4) == 2\n";
    let fix = ("calc.py", Some("def half(n):\n    return n // 2\n"));
    let proof = world.prove(&[fix, ("tests/test_more.py", Some(new))]).await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    assert_eq!(proof.new_tests[0].id, "tests/test_more.py::test_four");
    assert!(proof.touched_tests.is_empty());

    // An import that the base lacks counts, because the test names what the patch adds; without its name it would not.
    let third = "import calc\nfrom calc import third\n\ndef test_third():\n    assert third(9) == 3\n";
    let adds = ("calc.py", Some("def half(n):\n    return n\n\ndef third(n):\n    return n // 3\n"));
    let proof = world.prove(&[adds, ("tests/test_third.py", Some(third))]).await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    assert_eq!(proof.new_tests[0].base_failure, Some(FailureKind::Build));
}

#[tokio::test]
async fn a_right_fix_with_an_inline_test_is_proven_in_rust() {
    let manifest = "[package]\nname = \"calc\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    let lock = "version = 4\n\n[[package]]\nname = \"calc\"\nversion = \"0.1.0\"\n";
    let source = |half: &str, test: &str| {
        format!(
            "pub fn half(n: u32) -> u32 {{\n    {half}\n}}\n\n#[cfg(test)]\nmod tests {{\n    use super::*;\n\n    #[test]\n    fn zero() {{\n        assert_eq!(half(0), 0);\n    }}\n{test}}}\n"
        )
    };
    let base = source("n", "");
    let world = World::new(&[("Cargo.toml", manifest), ("Cargo.lock", lock), ("src/lib.rs", &base)]).await;
    let four = "\n    #[test]\n    fn four() {\n        assert_eq!(half(4), 2);\n    }\n";
    let proof = world.prove(&[("src/lib.rs", Some(&source("n / 2", four)))]).await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    assert_eq!(proof.new_tests[0].id, "calc::tests::four");
    assert_eq!(proof.new_tests[0].base_failure, Some(FailureKind::Assertion));
    assert_eq!((proof.checks[0].base_exit, proof.checks[0].head_exit), (Some(0), Some(0)));

    let proof = world.prove(&[("src/lib.rs", Some(&source("n /", "")))]).await;
    let (level, codes) = verdict(&proof);
    assert_eq!(level, Level::Unproven);
    assert!(codes.contains(&ReasonCode::CheckWorse) && codes.contains(&ReasonCode::SuiteBroken), "{codes:?}");
}

#[tokio::test]
async fn a_fix_without_a_test_is_weak_and_a_test_that_passes_before_proves_nothing() {
    let world = calc().await;
    let proof = world.prove(&[("calc.js", Some(FIXED))]).await;
    assert_eq!(verdict(&proof), (Level::Weak, vec![ReasonCode::NoNewTest]));

    let idle = format!("{}test('idle', () => assert.equal(half(0), 0));\n", TEST.1);
    let proof = world.prove(&[("calc.js", Some(FIXED)), ("test/calc.test.js", Some(&idle))]).await;
    assert_eq!(verdict(&proof), (Level::Weak, vec![ReasonCode::NewTestPassesOnBase]));

    let proof = world.prove(&[]).await;
    assert_eq!(verdict(&proof), (Level::Unproven, vec![ReasonCode::NoChange]));
}

#[tokio::test]
async fn a_new_test_that_still_fails_is_unproven() {
    let world = calc().await;
    let wrong = CALC.1.replace("=> n;", "=> n - 1;");
    let proof = world
        .prove(&[("calc.js", Some(&wrong)), ("test/more.test.js", Some(&extended().replace("'zero'", "'nil'")))])
        .await;
    let (level, codes) = verdict(&proof);
    assert_eq!(level, Level::Unproven);
    assert!(codes.contains(&ReasonCode::NewTestFailsOnHead), "{codes:?}");
}

#[tokio::test]
async fn breaking_deleting_skipping_or_rewriting_existing_tests_is_seen() {
    let world = calc().await;
    let breaks = FIXED.replace("2 * n", "3 * n");
    let new = (
        "test/new.test.js",
        extended().replace("'zero'", "'nil'").replace("test('twice', () => assert.equal(twice(2), 4));\n", ""),
    );
    let proof = world.prove(&[("calc.js", Some(&breaks)), (new.0, Some(&new.1))]).await;
    assert_eq!(verdict(&proof), (Level::Unproven, vec![ReasonCode::SuiteBroken]));
    assert_eq!(proof.suite.unwrap().broken, ["twice"]);

    let skipping = extended().replace("test('twice'", "test.skip('twice'");
    let proof = world.prove(&[("calc.js", Some(&breaks)), ("test/calc.test.js", Some(&skipping))]).await;
    let (level, codes) = verdict(&proof);
    assert_eq!(level, Level::Weak);
    assert_eq!(codes, [ReasonCode::SuiteVanished, ReasonCode::TouchedTestFailsInBaseVersion]);

    let proof = world.prove(&[("calc.js", Some(FIXED)), (new.0, Some(&new.1)), ("test/calc.test.js", None)]).await;
    assert_eq!(verdict(&proof), (Level::Weak, vec![ReasonCode::SuiteVanished]));
    assert_eq!(proof.touched_tests[0].how, Touch::Deleted);

    let rewritten = TEST.1.replace("twice(2), 4", "twice(2), 6");
    let proof = world.prove(&[("calc.js", Some(&breaks)), ("test/calc.test.js", Some(&rewritten))]).await;
    assert_eq!(verdict(&proof), (Level::Weak, vec![ReasonCode::TouchedTestFailsInBaseVersion]));
}

#[tokio::test]
async fn a_changed_runner_is_at_most_weak() {
    let world = calc().await;
    let package = PACKAGE.1.replace("node --test", "node --test --test-concurrency=1");
    let edits =
        [("package.json", Some(package.as_str())), ("calc.js", Some(FIXED)), ("test/calc.test.js", Some(&extended()))];
    assert_eq!(verdict(&world.prove(&edits).await), (Level::Weak, vec![ReasonCode::TestConfigurationChanged]));
}

#[tokio::test]
async fn a_red_test_of_the_base_is_a_known_failure_and_a_mostly_red_base_is_declined() {
    let red = format!("{}test('red', () => assert.fail());\n", TEST.1);
    let world = World::new(&[PACKAGE, CALC, ("test/calc.test.js", &red)]).await;
    assert_eq!(declined(&world.report, &world.commands), None);
    let proof = world
        .prove(&[("calc.js", Some(FIXED)), ("test/new.test.js", Some(&extended().replace("'zero'", "'nil'")))])
        .await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    assert_eq!(proof.suite.unwrap().known_failures, ["red"]);

    let redder = format!("{red}test('redder', () => assert.fail());\ntest('reddest', () => assert.fail());\n");
    let world = World::new(&[PACKAGE, CALC, ("test/calc.test.js", &redder)]).await;
    assert!(declined(&world.report, &world.commands).unwrap().contains("3 of 5"));
}

// Passes on odd runs and fails on even ones: the base sees it pass, the head sees it fail and then pass.
#[tokio::test]
async fn a_flaky_test_is_named_and_breaks_nothing() {
    let flaky = "const test = require('node:test');\nconst fs = require('node:fs');\nconst file = process.env.HOME + '/runs';\n\
        const runs = fs.existsSync(file) ? Number(fs.readFileSync(file)) + 1 : 1;\nfs.writeFileSync(file, String(runs));\n\
        test('moody', () => { if (runs % 2 === 0) throw new Error('again'); });\n";
    let world = World::new(&[PACKAGE, CALC, TEST, ("test/moody.test.js", flaky)]).await;
    let proof = world.prove(&[("calc.js", Some(FIXED)), ("test/calc.test.js", Some(&extended()))]).await;
    let suite = proof.suite.as_ref().unwrap();
    assert_eq!((suite.flaky.as_slice(), suite.broken.len()), (&["moody".to_owned()][..], 0));
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
}

#[tokio::test]
async fn a_suite_that_does_not_end_is_weak_for_that_reason() {
    let world = World::with(&[PACKAGE, CALC, TEST], None, Duration::from_secs(3)).await;
    let endless = "require('node:test')('endless', () => { for (;;) {} });\n";
    let proof = world.prove(&[("calc.js", Some(FIXED)), ("endless.test.js", Some(endless))]).await;
    assert!(proof.suite.as_ref().unwrap().timed_out);
    let (level, codes) = verdict(&proof);
    assert!(level <= Level::Weak && codes.contains(&ReasonCode::SuiteTimeout), "{codes:?}");
}

#[tokio::test]
async fn the_operators_command_proves_by_its_exit_status_alone() {
    let files = [("value", "1\n"), ("tests/check.sh", "grep -q . value\n")];
    let world = World::with(&files, Some("sh tests/check.sh"), SUITE_TIME).await;
    let check = "grep -q . value && grep -q 2 value\n";
    let proof = world.prove(&[("value", Some("2\n")), ("tests/check.sh", Some(check))]).await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    assert_eq!(proof.suite.unwrap().granularity, Granularity::Command);

    // The command is red as it stands: turning it green is what was asked for.
    let red = [("value", "1\n"), ("tests/check.sh", check)];
    let world = World::with(&red, Some("sh tests/check.sh"), SUITE_TIME).await;
    assert_eq!(declined(&world.report, &world.commands), None);
    let proof = world.prove(&[("value", Some("2\n"))]).await;
    assert_eq!(verdict(&proof), (Level::Proven, vec![]), "{:#?}", proof.reasons);
    assert_eq!(proof.suite.as_ref().unwrap().fixed, [proof.new_tests[0].id.clone()]);

    // The same by make, which nobody chose, stays weak.
    let make = ("Makefile", "all:\ntest:\n\tsh tests/check.sh\n");
    let world = World::new(&[files[0], files[1], make]).await;
    let proof = world.prove(&[("value", Some("2\n")), ("tests/check.sh", Some(check))]).await;
    assert_eq!(verdict(&proof), (Level::Weak, vec![ReasonCode::CommandGranularity]));
}

#[tokio::test]
async fn phase_two_tells_a_test_that_fails_on_the_base_from_one_that_does_not() {
    let world = calc().await;
    // A change of code beside the test is dropped: the base alone is asked.
    let found = world.reproduces(&[("calc.js", Some(FIXED)), ("test/calc.test.js", Some(&extended()))]).await;
    assert_eq!((found.failure, found.failing.as_slice()), (Some(FailureKind::Assertion), &["four".to_owned()][..]));
    let idle = format!("{}test('idle', () => {{}});\n", TEST.1);
    let found = world.reproduces(&[("test/calc.test.js", Some(&idle))]).await;
    assert!(!found.fails() && found.text.contains("passes on the base: idle"), "{}", found.text);
    let found = world.reproduces(&[("calc.js", Some(FIXED))]).await;
    assert_eq!((found.tree, found.fails()), (None, false));
}

#[tokio::test]
async fn the_base_is_observed_once_and_then_remembered() {
    let world = calc().await;
    assert!(!world.report.cached);
    let again = world.base_green().await;
    assert!(again.cached);
    assert_eq!((again.suites, again.checks), (world.report.suites.clone(), world.report.checks.clone()));
}

#[tokio::test]
async fn the_workspace_shows_counts_failing_names_and_messages() {
    let world = calc().await;
    let (workspace, tests) = world.workspace(&[("test/calc.test.js", Some(&extended()))]).await;
    let text = tests.run(&workspace, Some("test/calc.test.js"), &CancellationToken::new()).await.unwrap();
    let counts = text.counts.unwrap();
    assert_eq!((counts.passed, counts.failed), (2, 1));
    assert_eq!(text.failing, ["four"]);
    assert!(text.messages[0].contains("4 == 2"), "{}", text.messages[0]);
}
