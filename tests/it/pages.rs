//! The pages in a real browser, in front of the real programs: from the terminal's link to a pull request and a session that somebody
//! else ends, and every page looked at in both themes, wide and on a phone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fettle_tests::downloads;
use fettle_tests::skip::skip;
use fettle_tests::world::{PATIENCE, Process, program, toolchains};

const PACKAGES: [&str; 2] = ["axe-core@4.14.1", "playwright-core@1.65.1"];
/// Where distributions put it.
const CHROMIUM: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
/// A Task's life, and every page four times.
const LOOKED_AT: Duration = Duration::from_secs(240);

/// Pictures of all pages are left in `target/pages`, to be looked at.
#[tokio::test]
async fn every_page_is_whole_accessible_and_without_an_error_in_both_themes_and_sizes() {
    let Some(chromium) = CHROMIUM.into_iter().find(|path| Path::new(path).exists()) else {
        return skip("what needs Chromium: it is not installed");
    };
    let Some(packages) = downloads::npm_packages("pages", &PACKAGES) else { return };
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("fettle-demo").unwrap());
    command.arg("--keep").env_clear().envs(toolchains()).env("TMPDIR", home.path());
    let mut demo = Process::start("fettle-demo", &mut command).unwrap();
    let named = |name: &'static str| move |line: &str| Some(line.trim().strip_prefix(name)?.trim().to_owned());
    let link = demo.logged("where the first admin is made", PATIENCE, named("account ")).await.unwrap();

    // A module looks for its packages above itself, wherever it is run from.
    let work = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/web/ui/e2e/main.mjs");
    let copy = work.path().join("main.mjs");
    fs_err::copy(script, &copy).unwrap();
    std::os::unix::fs::symlink(packages.join("node_modules"), work.path().join("node_modules")).unwrap();
    let mut browser = Command::new("node");
    browser.arg(copy).arg(link).env("CHROMIUM", chromium);
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pages");
    fs_err::create_dir_all(&pictures).unwrap();
    browser.arg(pictures);
    let mut browser = Process::start("the browser", &mut browser).unwrap();
    let status = browser.ended(LOOKED_AT).await.unwrap();
    assert!(status.success(), "{}", browser.log().join("\n"));
    assert!(demo.stop().unwrap().success(), "{}", demo.tail());
}
