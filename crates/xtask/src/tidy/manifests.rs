//! What every member's `Cargo.toml` inherits from the workspace.

use anyhow::Context;

use super::Findings;

pub(super) fn check(package: &str, manifest: &str) -> anyhow::Result<Findings> {
    let manifest: toml::Table =
        toml::from_str(manifest).with_context(|| format!("while reading the manifest of {package}"))?;
    let mut findings = Findings::new();
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
    if inherits != Some(true) {
        findings.push(format!("{package} does not inherit the workspace's lints (`[lints] workspace = true`)"));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lints_must_be_those_of_the_workspace() {
        assert_eq!(check("a", "[lints]\nworkspace = true").unwrap(), Findings::new());
        assert_eq!(check("a", "[lints]\nworkspace = false").unwrap().len(), 1);
        assert_eq!(check("a", "[lints.clippy]\ntodo = \"allow\"").unwrap().len(), 1);
        assert_eq!(check("a", "[package]\nname = \"a\"").unwrap().len(), 1);
    }
}
