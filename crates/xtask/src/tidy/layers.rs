//! Which crate may depend on which: the crate table of the design, arrows pointing down only.

use std::collections::BTreeSet;

use cargo_metadata::DependencyKind;

use super::Findings;
use crate::workspace::{Workspace, short};

pub(super) struct Row {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Depends on these and no others.
    Layer(&'static [&'static str]),
    /// As `Layer`, and nothing of its kind may ever be among them.
    Adapter(&'static [&'static str]),
    /// Depends on whatever its task needs.
    Free,
}

const USE_CASES: &[&str] = &["app", "domain"];
/// The installer reads a configuration as the processes do, and knows nothing of how they work.
const USE_CASES_AND_RUNTIME: &[&str] = &["app", "domain", "runtime"];
/// Everything below the binaries.
const BELOW_BINARIES: &[&str] = &[
    "agent",
    "api",
    "app",
    "broker",
    "domain",
    "git",
    "github",
    "kubernetes",
    "llm",
    "oidc",
    "runtime",
    "sandbox",
    "store-postgres",
    "store-sqlite",
];

/// One row for each member of the workspace. Dev-dependencies are free.
pub(super) const CRATES: &[Row] = &[
    Row { name: "domain", kind: Kind::Layer(&[]) },
    Row { name: "placement", kind: Kind::Layer(&[]) },
    Row { name: "protocols", kind: Kind::Layer(&[]) },
    Row { name: "app", kind: Kind::Layer(&["domain", "placement"]) },
    Row { name: "agent", kind: Kind::Layer(USE_CASES) },
    Row { name: "runtime", kind: Kind::Layer(&["app", "domain", "placement"]) },
    Row { name: "store-sqlite", kind: Kind::Adapter(USE_CASES) },
    Row { name: "broker-redis", kind: Kind::Adapter(USE_CASES) },
    Row { name: "store-postgres", kind: Kind::Adapter(USE_CASES) },
    Row { name: "github", kind: Kind::Adapter(USE_CASES) },
    Row { name: "git", kind: Kind::Adapter(USE_CASES) },
    Row { name: "sandbox", kind: Kind::Adapter(USE_CASES) },
    Row { name: "llm", kind: Kind::Adapter(USE_CASES) },
    Row { name: "oidc", kind: Kind::Adapter(USE_CASES) },
    Row { name: "kubernetes", kind: Kind::Adapter(USE_CASES) },
    // What it sees becomes values of placement.
    Row { name: "gpu", kind: Kind::Adapter(&["placement"]) },
    Row { name: "engines", kind: Kind::Adapter(&["app", "domain", "placement"]) },
    // What is local comes to it as values; which API says what is `protocols`' matter.
    Row { name: "gateway", kind: Kind::Layer(&["app", "domain", "placement", "protocols"]) },
    Row { name: "broker-rabbitmq", kind: Kind::Adapter(USE_CASES) },
    // Built pages as bytes; what they show comes from the API.
    Row { name: "web", kind: Kind::Layer(&[]) },
    Row { name: "api", kind: Kind::Layer(&["app", "domain", "web"]) },
    // Which adapter a configuration asks for is decided here, once for dashboard, worker and command line.
    Row { name: "broker", kind: Kind::Layer(&["app", "broker-rabbitmq", "broker-redis", "runtime"]) },
    Row { name: "dashboard", kind: Kind::Layer(BELOW_BINARIES) },
    Row { name: "worker", kind: Kind::Layer(BELOW_BINARIES) },
    // It examines models with the agent's own parser, as a client of its own gateway.
    Row {
        name: "inference",
        kind: Kind::Layer(&[
            "agent",
            "api",
            "app",
            "domain",
            "engines",
            "gateway",
            "gpu",
            "llm",
            "placement",
            "runtime",
        ]),
    },
    // It runs the other binaries' libraries in one process.
    Row { name: "cli", kind: Kind::Free },
    Row { name: "installer", kind: Kind::Layer(USE_CASES_AND_RUNTIME) },
    // It builds in seconds: the real use cases between simulated surroundings.
    Row { name: "simulation", kind: Kind::Layer(USE_CASES) },
    // What needs nothing of Fettle, so that a benchmark of one crate builds little.
    Row { name: "test-kit", kind: Kind::Layer(&[]) },
    // A stand-in for NVIDIA's library: it knows nothing of who loads it.
    Row { name: "fake-nvml", kind: Kind::Layer(&[]) },
    // A stand-in for inference servers, which hold memory of that library's GPUs.
    Row { name: "fake-engine", kind: Kind::Layer(&["fake-nvml"]) },
    Row { name: "bench-queue", kind: Kind::Free },
    // It starts the real gateway, and knows of it what callers know.
    Row { name: "bench-gateway", kind: Kind::Layer(&["test-kit"]) },
    Row { name: "bench-placement", kind: Kind::Layer(&["placement", "test-kit"]) },
    Row { name: "tests", kind: Kind::Free },
    Row { name: "xtask", kind: Kind::Free },
];

/// A member of the workspace with what it depends on outside of its tests, members by their short names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) members: BTreeSet<String>,
    pub(super) others: BTreeSet<String>,
}

pub(super) fn members(workspace: &Workspace) -> Vec<Member> {
    workspace
        .members()
        .map(|package| {
            let (mut members, mut others) = (BTreeSet::new(), BTreeSet::new());
            for dependency in package.dependencies.iter().filter(|one| one.kind != DependencyKind::Development) {
                match dependency.path {
                    Some(_) => members.insert(short(&dependency.name).to_owned()),
                    None => others.insert(dependency.name.clone()),
                };
            }
            Member { name: short(&package.name).to_owned(), members, others }
        })
        .collect()
}

/// Where the members' dependencies and `table` differ.
pub(super) fn check(members: &[Member], table: &[Row]) -> Findings {
    let mut findings = Findings::new();
    for member in members {
        let Some(row) = table.iter().find(|row| row.name == member.name) else {
            findings.push(format!("crate `{}` has no row in the table of crates", member.name));
            continue;
        };
        let (Kind::Layer(allowed) | Kind::Adapter(allowed)) = row.kind else { continue };
        for dependency in member.members.iter().filter(|name| !allowed.contains(&name.as_str())) {
            findings.push(format!("crate `{}` must not depend on `{dependency}`", member.name));
        }
    }
    let absent = table.iter().filter(|row| members.iter().all(|member| member.name != row.name));
    findings
        .extend(absent.map(|row| format!("the table of crates has a row for `{}`, which does not exist", row.name)));
    findings
}

/// The table itself must not let an adapter depend on another.
pub(super) fn check_adapters(table: &[Row]) -> Findings {
    let is_adapter = |name: &str| table.iter().any(|row| row.name == name && matches!(row.kind, Kind::Adapter(_)));
    let mut findings = Findings::new();
    for row in table {
        if let Kind::Adapter(allowed) = row.kind {
            let wrong = allowed.iter().filter(|name| is_adapter(name));
            findings
                .extend(wrong.map(|name| format!("the table lets adapter `{}` depend on adapter `{name}`", row.name)));
        }
    }
    findings
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn member(name: &str, members: &[&str], others: &[&str]) -> Member {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Member { name: name.to_owned(), members: owned(members), others: owned(others) }
    }

    const TABLE: &[Row] = &[
        Row { name: "domain", kind: Kind::Layer(&[]) },
        Row { name: "git", kind: Kind::Adapter(&["domain"]) },
        Row { name: "github", kind: Kind::Adapter(&["domain", "git"]) },
        Row { name: "tests", kind: Kind::Free },
    ];

    #[test]
    fn arrows_that_the_table_has_not_are_found() {
        let held = [
            member("domain", &[], &[]),
            member("git", &["domain"], &[]),
            member("github", &[], &[]),
            member("tests", &["github"], &[]),
        ];
        assert_eq!(check(&held, TABLE), Findings::new());
        let mut upwards = held.clone();
        upwards[0] = member("domain", &["git"], &[]);
        assert_eq!(check(&upwards, TABLE), ["crate `domain` must not depend on `git`"]);
    }

    #[test]
    fn a_crate_without_row_and_a_row_without_crate_are_found() {
        let found = check(
            &[member("domain", &[], &[]), member("new", &[], &[]), member("git", &[], &[]), member("tests", &[], &[])],
            TABLE,
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].contains("`new` has no row") && found[1].contains("`github`, which does not exist"),
            "{found:?}"
        );
    }

    #[test]
    fn no_adapter_may_depend_on_another() {
        assert_eq!(check_adapters(TABLE), ["the table lets adapter `github` depend on adapter `git`"]);
        assert_eq!(check_adapters(CRATES), Findings::new());
    }
}
