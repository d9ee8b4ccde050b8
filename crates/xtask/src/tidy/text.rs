//! What no file may hold: where a package registry lives, and where somebody's checkout lay.

use cargo_metadata::camino::Utf8Path;

use super::Findings;

/// The one source of a locked crate; anything else is a mirror or a git dependency.
const CRATES_INDEX: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Registry hosts, cut so that this file is none of its own findings.
const HOSTS: &[[&str; 2]] = &[
    ["registry.npmjs", "org"],
    ["registry.yarnpkg", "com"],
    ["files.pythonhosted", "org"],
    ["pypi", "org"],
    ["index.crates", "io"],
    ["static.crates", "io"],
    ["proxy.golang", "org"],
];
/// Its examples are hosts that a sandbox is opened to.
const HOSTS_ARE_DATA: &[&str] = &["crates/sandbox/src/proxy/"];

/// Folders at the root of a machine under which checkouts and caches lie.
const MACHINE_FOLDERS: &[&str] = &["work", "root", "home", "Users"];
/// The home that every sandbox shows inside, whatever the machine.
const SANDBOX_HOME: &str = "/home/fettle";

pub(super) fn check(file: &Utf8Path, content: &str) -> Findings {
    let mut findings = Findings::new();
    let hosts_are_data = HOSTS_ARE_DATA.iter().any(|folder| file.as_str().starts_with(folder));
    for (number, line) in (1..).zip(content.lines()) {
        let mut tell = |what: String| findings.push(format!("{file}:{number}: {what}"));
        match file.file_name() {
            Some("Cargo.lock") => {
                if let Some(source) = line.strip_prefix("source = ").map(|source| source.trim_matches('"'))
                    && source != CRATES_INDEX
                {
                    tell(format!("a crate is locked to `{source}`"));
                }
            }
            Some("package-lock.json") if line.trim_start().starts_with("\"resolved\"") => {
                tell("`resolved` names a registry host; keep `integrity` alone".to_owned());
            }
            _ => {}
        }
        let hosts = HOSTS.iter().map(|parts| parts.join("."));
        for host in hosts.filter(|host| !hosts_are_data && line.contains(host)) {
            tell(format!("names the registry host `{host}`"));
        }
        if let Some(path) = machine_path(line) {
            tell(format!("names a path of one machine, `{path}`"));
        }
    }
    findings
}

/// An absolute path below one of the folders; a longer path or an address that merely contains the name is not one.
fn machine_path(line: &str) -> Option<&str> {
    MACHINE_FOLDERS.iter().find_map(|folder| {
        let prefix = format!("/{folder}/");
        line.match_indices(&prefix).find_map(|(start, _)| {
            let begins = line[..start].chars().next_back().is_none_or(|before| " \"'`=(:,[<>".contains(before));
            let rest = &line[start..];
            let named = rest[prefix.len()..].starts_with(|first: char| first.is_ascii_alphanumeric() || first == '.');
            (begins && named && !rest.starts_with(SANDBOX_HOME))
                .then(|| rest.split(['"', '\'', '`', ' ', ')']).next())
                .flatten()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, content: &str) -> usize {
        check(Utf8Path::new(file), content).len()
    }

    #[test]
    fn a_crate_from_elsewhere_is_found_in_the_lock_file() {
        assert_eq!(found("Cargo.lock", &format!("source = \"{CRATES_INDEX}\"")), 0);
        assert_eq!(found("Cargo.lock", "source = \"registry+https://mirror.example/index\""), 1);
        assert_eq!(found("Cargo.lock", "source = \"git+https://github.com/a/b#0123\""), 1);
    }

    #[test]
    fn a_package_lock_keeps_no_host() {
        assert_eq!(found("ui/package-lock.json", "  \"integrity\": \"sha512-x\","), 0);
        assert_eq!(found("ui/package-lock.json", "  \"resolved\": \"https://mirror.example/a.tgz\","), 1);
    }

    #[test]
    fn registry_hosts_are_found_except_where_they_are_data() {
        let line = HOSTS[0].join(".");
        assert_eq!(found("crates/app/src/lib.rs", &line), 1);
        assert_eq!(found("crates/sandbox/src/proxy/policy.rs", &line), 0);
    }

    #[test]
    fn paths_of_a_machine_are_found_but_not_those_inside_a_sandbox_or_an_address() {
        let (work, home) = (MACHINE_FOLDERS[0], MACHINE_FOLDERS[2]);
        for line in [format!("cd /{work}/main"), format!("at \"/{home}/ada/src\"")] {
            assert_eq!(found("a.md", &line), 1, "{line}");
        }
        let inside = format!("HOME={SANDBOX_HOME}/x");
        for line in
            [inside, format!("https://example.org/{work}/a"), format!("cat /proc/self/{}/etc", MACHINE_FOLDERS[1])]
        {
            assert_eq!(found("a.md", &line), 0, "{line}");
        }
    }
}
