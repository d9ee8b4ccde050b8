//! The pages in a real browser, in front of the real programs: from the terminal's link to a pull request and a session that somebody
//! else ends, and every page looked at in both themes, wide and on a phone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fettle_tests::downloads;
use fettle_tests::skip::skip;
use fettle_tests::world::{PATIENCE, Process, program, toolchains};

const PACKAGES: [&str; 2] = ["axe-core@4.14.1", "playwright-core@1.65.1"];
/// Where distributions put it.
const CHROMIUM: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
/// What every story begins with.
const BROWSER: &str = "browser.mjs";
/// A Task's life, and every page four times.
const LOOKED_AT: Duration = Duration::from_secs(240);

/// Types, bundling and styles, on a busy machine.
const BUILT: &str = "240";

fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs_err::read_dir(next).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => {
                    let name = entry.path().strip_prefix(folder).unwrap().to_owned();
                    files.insert(name, fs_err::read(entry.path()).unwrap());
                }
            }
        }
    }
    files
}

/// Built by npm alone, as whoever changes a page does.
#[test]
fn the_committed_pages_are_what_their_source_makes_of_the_committed_document() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let source = crates.join("web/ui");
    let Some(packages) = downloads::npm_locked(&source) else { return };
    let work = tempfile::tempdir().unwrap();
    let (ui, api) = (work.path().join("crates/web/ui"), work.path().join("crates/api"));
    fs_err::create_dir_all(&api).unwrap();
    fs_err::copy(crates.join("api/openapi.json"), api.join("openapi.json")).unwrap();
    let own = |name: &std::ffi::OsStr| name != "node_modules" && name != "e2e";
    for entry in fs_err::read_dir(&source).unwrap().map(Result::unwrap).filter(|entry| own(&entry.file_name())) {
        let (from, to) = (entry.path(), ui.join(entry.file_name()));
        let files =
            if from.is_dir() { tree(&from) } else { BTreeMap::from([(PathBuf::new(), fs_err::read(&from).unwrap())]) };
        for (name, content) in files {
            let to = if name.as_os_str().is_empty() { to.clone() } else { to.join(name) };
            fs_err::create_dir_all(to.parent().unwrap()).unwrap();
            fs_err::write(to, content).unwrap();
        }
    }
    std::os::unix::fs::symlink(packages.join("node_modules"), ui.join("node_modules")).unwrap();
    let built = Command::new("timeout").args([BUILT, "npm", "run", "build"]).current_dir(&ui).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let schema = "src/api/schema.ts";
    let same = fs_err::read(ui.join(schema)).unwrap() == fs_err::read(source.join(schema)).unwrap();
    assert!(same, "{schema} is not what openapi.json says; `npm run build` in crates/web/ui");
    let (now, committed) = (tree(&work.path().join("crates/web/dist")), tree(&crates.join("web/dist")));
    let names = now.keys().chain(committed.keys());
    let differ: BTreeSet<_> = names.filter(|name| now.get(*name) != committed.get(*name)).collect();
    assert!(differ.is_empty(), "these are not what crates/web/ui makes, so `npm run build` there: {differ:?}");
}

/// Where stories of `crates/web/ui/e2e` can be told.
pub(super) struct Browser {
    chromium: &'static str,
    packages: PathBuf,
}

impl Browser {
    /// `None`, told as a skip, where something is missing.
    pub(super) fn find() -> Option<Self> {
        let Some(chromium) = CHROMIUM.into_iter().find(|path| Path::new(path).exists()) else {
            skip("what needs Chromium: it is not installed");
            return None;
        };
        let packages = downloads::npm_packages("pages", &PACKAGES)?;
        Some(Self { chromium, packages })
    }

    /// Tells the story of one file, and fails with whatever is wrong in it.
    pub(super) async fn tells(&self, story: &str, link: &str, within: Duration) {
        // A module looks for its packages above itself, wherever it is run from.
        let work = tempfile::tempdir().unwrap();
        let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/web/ui/e2e");
        for file in [BROWSER, story] {
            fs_err::copy(stories.join(file), work.path().join(file)).unwrap();
        }
        std::os::unix::fs::symlink(self.packages.join("node_modules"), work.path().join("node_modules")).unwrap();
        let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pages");
        fs_err::create_dir_all(&pictures).unwrap();
        let mut command = Command::new("node");
        command.arg(work.path().join(story)).arg(link).arg(pictures).env("CHROMIUM", self.chromium);
        let mut browser = Process::start("the browser", &mut command).unwrap();
        let status = browser.ended(within).await.unwrap();
        assert!(status.success(), "{}", browser.log().join("\n"));
    }
}

/// Pictures of all pages are left in `target/pages`, to be looked at.
#[tokio::test]
async fn every_page_is_whole_accessible_and_without_an_error_in_both_themes_and_sizes() {
    let Some(browser) = Browser::find() else { return };
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("fettle-demo").unwrap());
    command.arg("--keep").env_clear().envs(toolchains()).env("TMPDIR", home.path());
    let mut demo = Process::start("fettle-demo", &mut command).unwrap();
    let named = |name: &'static str| move |line: &str| Some(line.trim().strip_prefix(name)?.trim().to_owned());
    let link = demo.logged("where the first admin is made", PATIENCE, named("account ")).await.unwrap();

    browser.tells("main.mjs", &link, LOOKED_AT).await;
    assert!(demo.stop().unwrap().success(), "{}", demo.tail());
}
