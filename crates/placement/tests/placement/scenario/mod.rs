//! Runs every file of `scenarios/`: the facts above the line `plan:`, what is expected below it. `scenarios/README.md` says how
//! to write one.

mod parse;
mod show;

use std::path::Path;

use fettle_placement::plan;

/// Set to `1`, the files are written anew with what the planner says; read the difference before it is committed.
const REWRITE: &str = "REWRITE_SCENARIOS";

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");

#[test]
fn every_scenario_has_the_plan_that_its_file_expects() {
    #[expect(clippy::disallowed_methods, reason = "no setting of Fettle: it changes files of the tree")]
    let rewrite = std::env::var(REWRITE).is_ok_and(|value| value == "1");
    let mut failures = Vec::new();
    let mut seen = 0;
    let mut files: Vec<_> = fs_err::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "txt")) {
        seen += 1;
        if let Err(failure) = check(file, rewrite) {
            failures.push(failure);
        }
    }
    assert!(seen > 0, "no scenario in {FOLDER}");
    let hint = format!("\nIf the new plans are right, run this again with {REWRITE}=1.");
    assert!(failures.is_empty(), "{} of {seen} scenarios:\n\n{}{hint}", failures.len(), failures.join("\n\n"));
}

fn check(file: &Path, rewrite: bool) -> Result<(), String> {
    let name = file.file_name().unwrap().to_string_lossy();
    let text = fs_err::read_to_string(file).unwrap();
    let scenario = parse::scenario(&text).map_err(|error| format!("{name}:{error}"))?;
    let placement = plan(&scenario.view, &scenario.demand, &scenario.policy);
    let shown = show::placement(&placement);
    if shown == scenario.expected {
        return Ok(());
    }
    if rewrite {
        let facts = &text[..scenario.expected_at];
        fs_err::write(file, format!("{facts}{shown}")).unwrap();
        return Ok(());
    }
    Err(format!(
        "{name}:{}: the plan is another one\n{}",
        scenario.plan_line,
        show::difference(&scenario.expected, &shown)
    ))
}

#[test]
fn a_mistake_in_a_scenario_is_named_with_its_line() {
    for (text, error) in [
        ("gpu g0 80 GiB\nwnat coder\nplan:\n", "2: `wnat` is nothing that a scenario has; known are"),
        ("gpu g0 80 GB\nplan:\n", "1: `80 GB` is not a size such as `80 GiB`"),
        ("gpu g0 80 GiB, isle nvl0\nplan:\n", "1: a gpu has no `isle`; it has foreign, "),
        ("gpu g0 80 GiB\nengine coder.1 on g0\nplan:\n", "2: no model `coder`"),
        ("model coder 4 GiB\nengine coder.1 on g7\nplan:\n", "2: no device `g7`"),
        ("gpu g0 80 GiB\n", "2: the line `plan:` is missing"),
        ("gpu g0 80 GiB\ngpu g0 80 GiB\nplan:\n", "2: there is a device `g0` already"),
    ] {
        let found = parse::scenario(text).map(|_| ()).unwrap_err().to_string();
        assert!(found.starts_with(error), "{found}");
    }
}
