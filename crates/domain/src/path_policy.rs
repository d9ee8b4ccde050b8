//! Which paths a patch may touch. Asked early by the tools, to save calls, and finally by [`crate::proposal::validate`].
//!
//! Names are compared as the most forgiving file system would: `.GIT`, `.g\u{200c}it`, `git~1`, `.git.` and `.git::$DATA`
//! are all `.git`.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::path::RepoPath;
use crate::unseen::is_ignorable;

/// What the policy says of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum PathVerdict {
    Allowed,
    /// A person with the right to approve protected files must look.
    NeedsHuman {
        rule: String,
    },
    /// Never.
    Forbidden {
        rule: String,
    },
}

/// The operator's exceptions and the repository's additions to the built-in rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PathPolicy {
    /// Exact paths that the operator allows although a built-in rule forbids them (`credentials.rs` is a fair name).
    pub exceptions: Vec<String>,
    /// Further forbidden globs, from the repository's base or the operator. They can only add.
    pub forbidden: Vec<String>,
}

/// Files, in any folder, that steer continuous integration, ownership, agents, shells or git itself. Globs over the
/// name, in small letters as all names are compared.
const HUMAN_FILES: &[&str] = &[
    "codeowners",
    ".gitmodules",
    ".gitattributes",
    ".fettle.toml",
    "agents.md",
    "agents.override.md",
    "claude.md",
    "claude.local.md",
    "gemini.md",
    "copilot-instructions.md",
    ".cursorrules",
    ".windsurfrules",
    ".mcp.json",
    ".aider.conf.y*ml",
    ".gitlab-ci.y*ml",
    ".travis.y*ml",
    ".cirrus.y*ml",
    ".cirrus.star",
    "appveyor.y*ml",
    ".appveyor.y*ml",
    "cloudbuild.y*ml",
    "jenkinsfile",
    "azure-pipelines*.y*ml",
    "bitbucket-pipelines.y*ml",
    ".drone.y*ml",
    ".drone.star",
    ".woodpecker.y*ml",
    "dependabot.y*ml",
    "renovate.json*",
    ".renovaterc*",
    ".pre-commit-config.y*ml",
    "lefthook.y*ml",
    ".lefthook.y*ml",
    ".envrc",
];

/// Folders, and files in their place, that instruct agents. Agents read the nearest, so they count wherever they are.
const HUMAN_ANYWHERE: &[&str] =
    &[".claude", ".clinerules", ".codex", ".cursor", ".gemini", ".roo", ".roorules", ".windsurf"];

/// Folders, from the root, with the same power.
const HUMAN_FOLDERS: &[&str] = &[
    ".github/workflows",
    ".github/actions",
    ".github/instructions",
    ".github/prompts",
    ".github/agents",
    ".github/chatmodes",
    ".gitlab",
    ".gitea",
    ".forgejo",
    ".circleci",
    ".buildkite",
    ".woodpecker",
    ".semaphore",
    ".tekton",
    ".husky",
    ".githooks",
    ".devcontainer",
    ".vscode",
];

impl PathPolicy {
    /// The strictest rule that `path` meets.
    pub fn judge(&self, path: &RepoPath) -> PathVerdict {
        let lossy = path.lossy();
        let plain = normalise_path(path);
        if self.exceptions.iter().any(|allowed| allowed.as_bytes() == path.as_bytes()) {
            return human(&plain).map_or(PathVerdict::Allowed, |rule| PathVerdict::NeedsHuman { rule });
        }
        if let Some(rule) = plain.iter().find_map(|part| forbidden_component(part)) {
            return PathVerdict::Forbidden { rule };
        }
        if let Some(glob) =
            self.forbidden.iter().find(|glob| glob_matches(glob, &lossy) || glob_matches(glob, &plain.join("/")))
        {
            return PathVerdict::Forbidden { rule: glob.clone() };
        }
        if std::str::from_utf8(path.as_bytes()).is_err() {
            return PathVerdict::NeedsHuman { rule: "a name that is not UTF-8".into() };
        }
        human(&plain).map_or(PathVerdict::Allowed, |rule| PathVerdict::NeedsHuman { rule })
    }

    /// The rule that makes the tools refuse to write `path`, if any. Protected paths are refused as well: a patch that
    /// touches one could not be published without a person.
    pub fn refuses_write(&self, path: &RepoPath) -> Option<String> {
        match self.judge(path) {
            PathVerdict::Allowed => None,
            PathVerdict::NeedsHuman { rule } | PathVerdict::Forbidden { rule } => Some(rule),
        }
    }
}

fn human(plain: &[String]) -> Option<String> {
    let joined = plain.join("/");
    let is_within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // A file or symlink in the place of the folder, or of one above it, decides what is found there.
    if let Some(folder) = HUMAN_FOLDERS.iter().find(|folder| is_within(&joined, folder) || is_within(folder, &joined)) {
        return Some(format!("{folder}/**"));
    }
    if let Some(folder) = HUMAN_ANYWHERE.iter().find(|folder| plain.iter().any(|part| part == *folder)) {
        return Some(format!("{folder}/**"));
    }
    if matches!(plain, [one] if one == "action.yml" || one == "action.yaml") {
        return Some("action.yml".into());
    }
    let name = plain.last()?;
    HUMAN_FILES.iter().find(|file| glob_matches(file, name)).map(|file| (*file).to_owned())
}

fn forbidden_component(part: &str) -> Option<String> {
    const TEMPLATES: [&str; 3] = [".example", ".sample", ".template"];
    let rule = match part {
        ".git" | "git~1" => ".git",
        ".env" => ".env",
        _ if part.starts_with(".env.") && !TEMPLATES.iter().any(|t| part.ends_with(t)) => ".env.*",
        _ if part.ends_with(".secret") => "*.secret",
        _ if part.ends_with(".key") => "*.key",
        _ if part.starts_with("credentials.") => "credentials.*",
        _ => return None,
    };
    Some(rule.to_owned())
}

/// The path's components as a forgiving file system would compare them.
fn normalise_path(path: &RepoPath) -> Vec<String> {
    // A backslash separates on some systems; treating it so can only forbid more.
    path.lossy().split(['/', '\\']).map(normalise_component).filter(|part| !part.is_empty()).collect()
}

fn normalise_component(part: &str) -> String {
    let folded: String = part.nfkc().filter(|c| !is_ignorable(*c)).flat_map(char::to_lowercase).nfkc().collect();
    let without_stream = match folded.find(':') {
        Some(at) if at > 0 => &folded[..at],
        _ => folded.as_str(),
    };
    without_stream.trim_end_matches(['.', ' ']).trim_start_matches(' ').to_owned()
}

/// `*` matches within a component, `**` over components, `?` one character. A glob without `/` matches any component.
///
/// A repository may bring its own globs, so the work is bounded by the product of both lengths.
pub fn glob_matches(glob: &str, path: &str) -> bool {
    let glob: Vec<char> = glob.trim_start_matches('/').chars().collect();
    if glob.contains(&'/') {
        matches(&glob, &path.chars().collect::<Vec<_>>())
    } else {
        path.split('/').any(|part| matches(&glob, &part.chars().collect::<Vec<_>>()))
    }
}

/// For each end of the glob, from its last sign to the whole: which ends of the text it matches.
fn matches(glob: &[char], text: &[char]) -> bool {
    let mut rest: Vec<bool> = (0..=text.len()).map(|at| at == text.len()).collect();
    let mut glob = glob;
    while let Some(last) = glob.last() {
        let here = |at: usize| text.get(at).copied();
        let mut whole = vec![false; text.len() + 1];
        let (taken, mut later) = match glob {
            [.., '*', '*', '/'] => (3, false),
            [.., '*', '*'] => (2, false),
            _ => (1, false),
        };
        for at in (0..=text.len()).rev() {
            let goes_on = at < text.len() && here(at) != Some('/');
            whole[at] = match (taken, last) {
                (3, _) => {
                    later |= here(at) == Some('/') && rest[at + 1];
                    rest[at] || later
                }
                (2, _) => {
                    later |= rest[at];
                    later
                }
                (_, '*') => rest[at] || (goes_on && whole[at + 1]),
                (_, '?') => goes_on && rest[at + 1],
                (_, sign) => here(at) == Some(*sign) && rest[at + 1],
            };
        }
        rest = whole;
        glob = &glob[..glob.len() - taken];
    }
    rest[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(path: &str) -> PathVerdict {
        PathPolicy::default().judge(&RepoPath::parse(path).expect("a path"))
    }

    #[test]
    fn disguised_names_of_forbidden_files_are_forbidden() {
        for path in [
            ".git/config",
            "a/.GIT/hooks/pre-commit",
            ".g\u{200c}it/x",
            "git~1/x",
            ".git./x",
            ".git /x",
            ".git::$DATA",
            ".env",
            ".ENV",
            "app/.env.production",
            "x.secret",
            "deploy/tls.key",
            "TLS.KEY",
            "credentials.json",
            "Credentials.YAML",
            "\u{ff0e}env",
            ".env\u{200b}",
            "a\\.git\\config",
        ] {
            assert!(matches!(judge(path), PathVerdict::Forbidden { .. }), "{path:?} must be forbidden");
        }
    }

    #[test]
    fn templates_and_ordinary_names_are_allowed() {
        for path in [
            ".env.example",
            ".env.sample",
            "src/main.rs",
            ".gitignore",
            "src/keyboard.rs",
            "docs/monkey.md",
            "a/git.rs",
        ] {
            assert_eq!(judge(path), PathVerdict::Allowed, "{path}");
        }
    }

    #[test]
    fn what_steers_ci_owners_or_agents_needs_a_human() {
        for path in [
            ".github/workflows/ci.yml",
            ".GitHub/Workflows/ci.yml",
            "CODEOWNERS",
            "docs/CODEOWNERS",
            ".gitmodules",
            "sub/.gitattributes",
            ".fettle.toml",
            "AGENTS.md",
            ".husky/pre-commit",
            "action.yml",
            ".github/copilot-instructions.md",
            ".github/instructions/rust.instructions.md",
            ".github/prompts/a.prompt.md",
            ".github/agents/a.agent.md",
            ".github/chatmodes/a.chatmode.md",
            ".github/dependabot.yml",
            ".github/Dependabot.YAML",
            ".github/renovate.json5",
            "renovate.json",
            ".renovaterc",
            ".renovaterc.json",
            ".mcp.json",
            ".cursorrules",
            ".cursor/rules/a.mdc",
            "web/.Cursor/rules/a.mdc",
            ".windsurfrules",
            ".windsurf/rules/a.md",
            ".clinerules",
            ".clinerules/a.md",
            ".roo/rules/a.md",
            ".aider.conf.yml",
            ".gemini/settings.json",
            "GEMINI.md",
            ".claude/settings.json",
            "api/CLAUDE.md",
            ".codex/config.toml",
            ".cirrus.yml",
            "appveyor.yml",
            ".appveyor.yml",
            ".semaphore/semaphore.yml",
            ".tekton/push.yaml",
            "cloudbuild.yaml",
            "azure-pipelines.yml",
            "azure-pipelines-release.yml",
            "bitbucket-pipelines.yml",
            ".buildkite/pipeline.yml",
            ".drone.yml",
            ".woodpecker/a.yml",
            ".woodpecker.yml",
            "Jenkinsfile",
            ".travis.yml",
            ".circleci/config.yml",
            ".gitlab-ci.yml",
            ".gitlab/ci/a.yml",
            ".gitea/workflows/a.yml",
            ".forgejo/workflows/a.yml",
            ".envrc",
            ".devcontainer/devcontainer.json",
            ".vscode/tasks.json",
            ".vscode/settings.json",
            ".pre-commit-config.yaml",
            ".husky/pre-push",
            ".githooks/pre-push",
            "lefthook.yml",
            ".mcp\u{2060}.json",
        ] {
            assert!(matches!(judge(path), PathVerdict::NeedsHuman { .. }), "{path} must need a human");
        }
        for path in [".github/ISSUE_TEMPLATE.md", "src/renovate.rs", "docs/cursor.md", "src/claude.rs"] {
            assert_eq!(judge(path), PathVerdict::Allowed, "{path}");
        }
    }

    #[test]
    fn what_stands_in_the_place_of_a_protected_folder_needs_a_human() {
        for path in [".github", ".GITHUB", ".github/workflows", ".cursor", ".gitlab", ".vscode", "a/.claude"] {
            assert!(matches!(judge(path), PathVerdict::NeedsHuman { .. }), "{path} must need a human");
        }
        assert_eq!(judge(".github-pages"), PathVerdict::Allowed);
    }

    #[test]
    fn an_exception_allows_one_path_and_an_added_glob_forbids() {
        let policy = PathPolicy {
            exceptions: vec!["src/credentials.rs".into()],
            forbidden: vec!["infra/**".into(), "*.pem".into()],
        };
        let judge = |path: &str| policy.judge(&RepoPath::parse(path).expect("a path"));
        assert_eq!(judge("src/credentials.rs"), PathVerdict::Allowed);
        assert!(matches!(judge("lib/credentials.rs"), PathVerdict::Forbidden { .. }));
        assert!(matches!(judge("infra/prod/main.tf"), PathVerdict::Forbidden { .. }));
        assert!(matches!(judge("certs/a.pem"), PathVerdict::Forbidden { .. }));
    }

    #[test]
    fn a_glob_matches_in_bounded_time() {
        for (glob, path, fits) in [
            ("infra/**", "infra/a/b", true),
            ("**/b", "b", true),
            ("**/b", "a/c/b", true),
            ("**/b", "ab", false),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("a/?", "a/b", true),
            ("a/?", "a//", false),
            ("*.pem", "x/a.pem", true),
            ("*.pem", "x.pem/a", true),
            ("/top/*", "top/a", true),
            ("a***b", "a1b", true),
            ("***/x", "a/x", true),
        ] {
            assert_eq!(glob_matches(glob, path), fits, "{glob} {path}");
        }
        assert!(!glob_matches(&"*a".repeat(30), &"a".repeat(29)));
        assert!(!glob_matches(&format!("{}b", "**/a*".repeat(20)), &"a/".repeat(1_000)));
    }
}
