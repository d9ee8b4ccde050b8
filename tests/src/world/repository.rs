//! A repository whose tests need no compiler, with a bug, and models that fix it or do not.

use serde_json::json;

use crate::model::{Answer, Phases, Script};

/// Clamps numbers, the upper limit wrongly.
pub const CLAMP: &[(&str, &str)] = &[
    ("README.md", "# clamp\n\nKeeps a number between two others. Tests: `sh tests/run`.\n"),
    (
        ".fettle.toml",
        "[test]\ncommand = \"sh tests/run\"\ntarget = \"sh tests/run {target}\"\nreport = \"report.xml\"\n",
    ),
    (".gitignore", "report.xml\n"),
    ("src/clamp.sh", WRONG),
    ("tests/run", RUN),
    (
        "tests/clamp_test.sh",
        ". ./src/clamp.sh\ntest_within() { [ \"$(clamp 5 1 9)\" = 5 ]; }\ntest_below() { [ \"$(clamp 0 1 9)\" = 1 ]; }\n",
    ),
];

const WRONG: &str = r#"# clamp VALUE LOW HIGH: VALUE, but not below LOW and not above HIGH.
clamp() {
  if [ "$1" -lt "$2" ]; then
    echo "$2"
  elif [ "$1" -gt "$3" ]; then
    echo "$2"
  else
    echo "$1"
  fi
}
"#;

/// Runs each `test_*` function of all files, or of the given `file` or `file::function`, and writes a JUnit report.
const RUN: &str = r#"#!/bin/sh
[ $# -gt 0 ] || set -- tests/*_test.sh
failed=0
{
  echo '<testsuites><testsuite name="clamp">'
  for target in "$@"; do
    file=${target%%::*}
    case $target in
      *::*) names=${target##*::} ;;
      *) names=$(sed -n 's/^\(test_[a-z_]*\)().*/\1/p' "$file") ;;
    esac
    for name in $names; do
      echo "<testcase classname=\"$file\" name=\"$name\">"
      if ! (. "./$file" && "$name") >&2; then
        failed=1
        echo "<failure message=\"$name returned false\"/>"
      fi
      echo '</testcase>'
    done
  done
  echo '</testsuite></testsuites>'
} > report.xml
exit $failed
"#;

pub const TITLE: &str = "clamp gives the lower limit for large numbers";
pub const BODY: &str = "`clamp 12 1 9` prints 1. I expected 9, because 12 is above the upper limit.";

/// Reads, reproduces with a new test, fixes.
pub fn solving() -> Phases {
    triage().phase("reproduce", reproduction()).phase("fix", fixing())
}

/// Goes, and nothing more yet.
pub fn triage() -> Phases {
    let look =
        Answer::call("view", json!({ "path": "src/clamp.sh" })).saying("The comparison with HIGH is suspicious.");
    let go = finish("verdict: go – src/clamp.sh prints LOW where it should print HIGH");
    Script::phases().unmarked([Answer::text("ready")]).phase("triage", [look, go])
}

/// A test that fails on the base.
pub fn reproduction() -> Vec<Answer> {
    let test = ". ./src/clamp.sh\ntest_above() { [ \"$(clamp 12 1 9)\" = 9 ]; }\n";
    vec![
        Answer::call("create", json!({ "path": "tests/above_test.sh", "content": test })),
        finish("tests/above_test.sh shows it"),
    ]
}

/// The right change.
pub fn fixing() -> Vec<Answer> {
    let (old, new) = ("-gt \"$3\" ]; then\n    echo \"$2\"", "-gt \"$3\" ]; then\n    echo \"$3\"");
    vec![
        Answer::call("str_replace", json!({ "path": "src/clamp.sh", "old": old, "new": new })),
        Answer::call("run_tests", json!({})),
        finish("Clamp to the upper limit\n\nA number above HIGH was replaced by LOW. It is HIGH now."),
    ]
}

pub fn finish(summary: &str) -> Answer {
    Answer::call("finish", json!({ "summary": summary }))
}
