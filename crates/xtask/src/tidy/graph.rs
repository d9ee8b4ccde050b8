//! Which libraries must be used, and which must not come in with others.

use std::collections::BTreeSet;

use anyhow::Context;
use serde::Deserialize;

use super::Findings;
use super::layers::Member;

/// A library that the owner chose, and the crate whose work it does.
pub(super) struct OwnerNamed {
    library: &'static str,
    user: &'static str,
    since: Since,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    Now,
    /// Its crate is still to be written.
    ItsCrate,
}

pub(super) const OWNER_NAMED: &[OwnerNamed] = &[
    OwnerNamed { library: "tokio", user: "runtime", since: Since::Now },
    OwnerNamed { library: "axum", user: "api", since: Since::Now },
    OwnerNamed { library: "octocrab", user: "github", since: Since::Now },
    OwnerNamed { library: "git2", user: "git", since: Since::Now },
    OwnerNamed { library: "sysinfo", user: "runtime", since: Since::Now },
    OwnerNamed { library: "serde", user: "domain", since: Since::Now },
    OwnerNamed { library: "tracing", user: "runtime", since: Since::Now },
    OwnerNamed { library: "prometheus", user: "api", since: Since::Now },
    OwnerNamed { library: "redis", user: "broker-redis", since: Since::ItsCrate },
    OwnerNamed { library: "lapin", user: "broker-rabbitmq", since: Since::ItsCrate },
    OwnerNamed { library: "nvml-wrapper", user: "gpu", since: Since::ItsCrate },
];

pub(super) fn check_owner_named(members: &[Member], table: &[OwnerNamed]) -> Findings {
    let mut findings = Findings::new();
    for OwnerNamed { library, user, since } in table {
        match members.iter().find(|member| member.name == *user) {
            Some(member) if member.others.contains(*library) => {}
            Some(_) => findings.push(format!("crate `{user}` must use `{library}`, as the owner chose")),
            None if *since == Since::ItsCrate => {}
            None => findings.push(format!("no crate `{user}`, so nothing uses `{library}`, as the owner chose")),
        }
    }
    findings
}

pub(super) struct Banned {
    name: String,
    reason: String,
}

/// What `.deny.toml` bans.
pub(super) fn banned(deny: &str) -> anyhow::Result<Vec<Banned>> {
    #[derive(Deserialize)]
    struct Deny {
        bans: Bans,
    }
    #[derive(Deserialize)]
    struct Bans {
        deny: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "crate")]
        name: String,
        reason: String,
    }
    let deny: Deny = toml::from_str(deny).context("while reading .deny.toml")?;
    Ok(deny.bans.deny.into_iter().map(|Entry { name, reason }| Banned { name, reason }).collect())
}

pub(super) fn check_banned(graph: &BTreeSet<String>, banned: &[Banned]) -> Findings {
    let found = banned.iter().filter(|one| graph.contains(&one.name));
    found
        .map(|Banned { name, reason }| format!("`{name}` is in the graph ({reason}); see `cargo tree --invert {name}`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::member;
    use super::*;

    #[test]
    fn a_chosen_library_is_used_as_soon_as_its_crate_exists() {
        let table = [
            OwnerNamed { library: "git2", user: "git", since: Since::Now },
            OwnerNamed { library: "redis", user: "broker-redis", since: Since::ItsCrate },
        ];
        assert_eq!(check_owner_named(&[member("git", &[], &["git2"])], &table), Findings::new());
        assert_eq!(check_owner_named(&[member("git", &[], &[]), member("broker-redis", &[], &[])], &table).len(), 2);
        assert_eq!(check_owner_named(&[], &table).len(), 1);
    }

    #[test]
    fn a_banned_package_is_found_with_the_reason() {
        let banned = banned("[bans]\ndeny = [{ crate = \"ring\", reason = \"two providers\" }]").unwrap();
        let graph = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<String>>();
        assert_eq!(check_banned(&graph(&["aws-lc-rs"]), &banned), Findings::new());
        let found = check_banned(&graph(&["aws-lc-rs", "ring"]), &banned);
        assert!(found.len() == 1 && found[0].contains("two providers"), "{found:?}");
    }
}
