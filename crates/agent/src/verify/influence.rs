//! Files that change what a green run means: how tests are found and run, and what they run with.

/// Files that are nothing but configuration of builds and test runners.
const RUNNER_FILES: &[&str] = &[
    ".clippy.toml",
    ".fettle.toml",
    ".mypy.ini",
    ".npmrc",
    ".pytest.ini",
    ".pytest.toml",
    ".ruff.toml",
    ".rustfmt.toml",
    ".yarnrc.yml",
    "GNUmakefile",
    "Makefile",
    "build.rs",
    "clippy.toml",
    "conftest.py",
    "makefile",
    "mypy.ini",
    "noxfile.py",
    "nextest.toml",
    "pytest.ini",
    "pytest.toml",
    "ruff.toml",
    "rust-toolchain",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "sitecustomize.py",
    "tox.ini",
    "usercustomize.py",
];

/// The same in families: `jest.config.mjs`, `.mocharc.cjs`, `tsconfig.test.json`.
const RUNNER_FILE_STARTS: &[&str] = &[
    ".babelrc",
    ".eslintrc",
    ".mocharc",
    ".swcrc",
    "babel.config.",
    "eslint.config.",
    "jest.config.",
    "jest.setup.",
    "tsconfig.",
    "vite.config.",
    "vitest.config.",
    "vitest.setup.",
    "vitest.workspace.",
];

const LOCKFILES: &[&str] = &[
    "Cargo.lock",
    "Pipfile.lock",
    "go.sum",
    "npm-shrinkwrap.json",
    "package-lock.json",
    "pnpm-lock.yaml",
    "poetry.lock",
    "uv.lock",
    "yarn.lock",
];

/// Modules that `python3 -m pytest` loads while it starts. A new file of such a name at the root, or where `PYTHONPATH` leads,
/// is loaded in their place and can say of the tests whatever it likes.
const PYTEST_MODULES: &str = "\
    _pytest argparse ast atexit bdb bisect builtins calendar code codeop collections contextlib copy csv \
    dataclasses datetime difflib dis doctest enum errno faulthandler fnmatch functools gc getpass gettext \
    glob hashlib heapq html importlib iniconfig inspect io itertools json keyword linecache locale logging \
    math numbers opcode operator os packaging pathlib pdb platform pluggy pprint py pygments pyexpat pytest \
    queue random re readline reprlib runpy select selectors shlex shutil signal site socket socketserver \
    sre_compile sre_parse stat string struct subprocess sys sysconfig tempfile textwrap threading time \
    timeit token tokenize tomllib traceback types typing unittest urllib uuid warnings weakref xml zipfile \
    zipimport zlib";

/// Keys of `package.json` that decide what `npm test` does.
const NPM_RUNNER_KEYS: &[&str] = &["scripts", "jest", "vitest", "mocha", "ava", "tap", "type", "babel", "imports"];
const NPM_DEPENDENCY_KEYS: &[&str] =
    &["dependencies", "devDependencies", "optionalDependencies", "peerDependencies", "overrides", "workspaces"];
/// Tables of `Cargo.toml` that decide which tests are built, and how.
const CARGO_RUNNER_KEYS: &[&str] = &["lib", "bin", "test", "bench", "example", "profile"];
const CARGO_DEPENDENCY_KEYS: &[&str] =
    &["dependencies", "dev-dependencies", "build-dependencies", "target", "patch", "replace", "features"];

/// The change touches which tests run, or how. `None` for a side: the file is absent there.
pub(super) fn is_runner_configuration(path: &str, before: Option<&str>, after: Option<&str>) -> bool {
    let file = file_of(path);
    if RUNNER_FILES.contains(&file) || path.starts_with(".cargo/") || path.contains("/.cargo/") {
        return true;
    }
    if before.is_none() && after.is_some() && takes_the_place_of_a_pytest_module(path) {
        return true;
    }
    if RUNNER_FILE_STARTS.iter().any(|start| file.starts_with(start)) {
        return true;
    }
    match file {
        "package.json" => differ(json(before), json(after), NPM_RUNNER_KEYS),
        "Cargo.toml" => {
            let (old, new) = (toml(before), toml(after));
            let package = |table: &Option<toml::Table>, key: &str| {
                table.as_ref().and_then(|table| table.get("package")).and_then(|package| package.get(key)).cloned()
            };
            let of_package = ["autotests", "autobins", "autobenches", "build", "edition", "default-run"];
            let of_workspace = |table: &Option<toml::Table>| {
                let workspace = table.as_ref().and_then(|table| table.get("workspace")).cloned();
                workspace
                    .map(|workspace| ["members", "exclude", "default-members"].map(|key| workspace.get(key).cloned()))
            };
            differ(old.clone(), new.clone(), CARGO_RUNNER_KEYS)
                || of_package.iter().any(|key| package(&old, key) != package(&new, key))
                || of_workspace(&old) != of_workspace(&new)
        }
        "pyproject.toml" => {
            let tools = |text: Option<&str>| {
                let tool = toml(text).and_then(|table| table.get("tool").cloned());
                tool.map(|tool| {
                    ["pytest", "coverage", "tox", "hatch", "mypy", "ruff"].map(|key| tool.get(key).cloned())
                })
            };
            tools(before).unwrap_or_default() != tools(after).unwrap_or_default()
        }
        "setup.cfg" => section(before, "[tool:pytest]") != section(after, "[tool:pytest]"),
        _ => false,
    }
}

fn takes_the_place_of_a_pytest_module(path: &str) -> bool {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let (module, below) = path.split_once('/').map_or((path, None), |(module, below)| (module, Some(below)));
    let name = match below {
        None => module.strip_suffix(".py").or_else(|| module.strip_suffix(".so")),
        Some(below) => below.ends_with(".py").then_some(module),
    };
    let name = name.map(|name| name.split('.').next().unwrap_or(name));
    PYTEST_MODULES.split(' ').any(|module| Some(module) == name)
}

/// The change touches what the code is built and run with.
pub(super) fn is_dependency_change(path: &str, before: Option<&str>, after: Option<&str>) -> bool {
    let file = file_of(path);
    if LOCKFILES.contains(&file) || crate::ecosystem::is_requirements(path) {
        return true;
    }
    match file {
        "package.json" => differ(json(before), json(after), NPM_DEPENDENCY_KEYS),
        "Cargo.toml" => {
            let workspace =
                |text: Option<&str>| toml(text).and_then(|table| table.get("workspace")?.get("dependencies").cloned());
            differ(toml(before), toml(after), CARGO_DEPENDENCY_KEYS) || workspace(before) != workspace(after)
        }
        "pyproject.toml" => {
            let lists = |text: Option<&str>| {
                let table = toml(text);
                let project = table.as_ref().and_then(|table| table.get("project")).cloned();
                let of_project = |key: &str| project.as_ref().and_then(|project| project.get(key)).cloned();
                let top = |key: &str| table.as_ref().and_then(|table| table.get(key)).cloned();
                [
                    of_project("dependencies"),
                    of_project("optional-dependencies"),
                    top("dependency-groups"),
                    top("build-system"),
                ]
            };
            lists(before) != lists(after)
        }
        "setup.py" => true,
        _ => false,
    }
}

/// Something that can be asked for a key.
trait Keyed {
    type Value: PartialEq;
    fn value(&self, key: &str) -> Option<Self::Value>;
}

impl Keyed for serde_json::Value {
    type Value = serde_json::Value;
    fn value(&self, key: &str) -> Option<Self::Value> {
        self.get(key).cloned()
    }
}

impl Keyed for toml::Table {
    type Value = toml::Value;
    fn value(&self, key: &str) -> Option<Self::Value> {
        self.get(key).cloned()
    }
}

fn differ<K: Keyed>(before: Option<K>, after: Option<K>, keys: &[&str]) -> bool {
    let of = |side: &Option<K>, key: &str| side.as_ref().and_then(|side| side.value(key));
    keys.iter().any(|key| of(&before, key) != of(&after, key))
}

fn json(text: Option<&str>) -> Option<serde_json::Value> {
    serde_json::from_str(text?).ok()
}

fn toml(text: Option<&str>) -> Option<toml::Table> {
    text?.parse().ok()
}

fn section<'a>(text: Option<&'a str>, heading: &str) -> Option<Vec<&'a str>> {
    let lines = text?.lines().skip_while(|line| line.trim() != heading).skip(1);
    Some(lines.take_while(|line| !line.starts_with('[')).collect())
}

fn file_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_decides_about_tests_counts_as_configuration() {
        let package =
            |scripts: &str, version: &str| format!(r#"{{"version":"{version}","scripts":{{"test":"{scripts}"}}}}"#);
        let npm = |a: &str, b: &str| is_runner_configuration("package.json", Some(a), Some(b));
        assert!(npm(&package("node --test", "1"), &package("exit 0", "1")));
        assert!(!npm(&package("node --test", "1"), &package("node --test", "2")));
        let cargo = |a: &str, b: &str| is_runner_configuration("Cargo.toml", Some(a), Some(b));
        assert!(cargo("[lib]\n", "[lib]\ntest = false\n"));
        assert!(cargo("[package]\n", "[package]\nautotests = false\n"));
        assert!(cargo("[package]\n", "[package]\n[[test]]\nname = \"a\"\nharness = false\n"));
        assert!(!cargo("[package]\nversion = \"1\"\n", "[package]\nversion = \"2\"\n[dependencies]\na = \"1\"\n"));
        let python = |a: &str, b: &str| is_runner_configuration("pyproject.toml", Some(a), Some(b));
        assert!(python("", "[tool.pytest.ini_options]\naddopts = \"-k nothing\"\n"));
        assert!(!python("", "[tool.black]\n"));
        for path in [
            "conftest.py",
            "tests/conftest.py",
            ".pytest.ini",
            "a/jest.config.mjs",
            ".mocharc.cjs",
            ".npmrc",
            ".cargo/config.toml",
            "Makefile",
        ] {
            assert!(is_runner_configuration(path, None, Some("")), "{path}");
        }
        assert!(!is_runner_configuration("src/lib.rs", None, Some("")));
        for path in ["pytest.py", "src/re.py", "xml/__init__.py", "json/decoder.py"] {
            assert!(is_runner_configuration(path, None, Some("")), "{path}");
        }
        assert!(!is_runner_configuration("types.py", Some(""), Some("x = 1")));
        assert!(!is_runner_configuration("app/types.py", None, Some("")));
    }

    #[test]
    fn lockfiles_and_dependency_lists_count_as_dependencies() {
        assert!(is_dependency_change("a/Cargo.toml", Some("[dependencies]\n"), Some("[dependencies]\na = \"1\"\n")));
        assert!(!is_dependency_change("Cargo.toml", Some("[lib]\n"), Some("[lib]\ntest = false\n")));
        assert!(is_dependency_change("package.json", Some("{}"), Some(r#"{"dependencies":{"a":"1"}}"#)));
        assert!(is_dependency_change("pyproject.toml", Some(""), Some("[project]\ndependencies = [\"a\"]\n")));
        for path in ["Cargo.lock", "web/package-lock.json", "requirements-dev.txt"] {
            assert!(is_dependency_change(path, Some("a"), Some("b")), "{path}");
        }
    }
}
