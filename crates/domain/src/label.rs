//! What some workers have and others have not, and which repositories' Runs need it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::repo::RepoName;

/// Longer ones are a mistake.
const MAX_LABEL_CHARS: usize = 40;
/// Of one worker or one repository.
const MAX_LABELS: usize = 16;

/// `gpu`, `arm64`, `rust-1.95`: lower-case letters, digits and `.-_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLabel {
    #[error("`{0}` is no label: write 1 to {MAX_LABEL_CHARS} lower-case letters, digits, `.`, `-` or `_`")]
    Unfit(String),
    #[error("more than {MAX_LABELS} labels")]
    TooMany,
}

impl FromStr for Label {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > MAX_LABEL_CHARS || !text.chars().all(is_fit) {
            return Err(BadLabel::Unfit(text.chars().take(MAX_LABEL_CHARS).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Label {
    type Error = BadLabel;

    fn try_from(text: String) -> Result<Self, BadLabel> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

/// Written in order, with commas between: `arm64,gpu`. Equal sets are equal texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Label>", into = "Vec<Label>")]
pub struct Labels(BTreeSet<Label>);

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a worker with these can do what needs those.
    pub fn meet(&self, needs: &Self) -> bool {
        needs.0.is_subset(&self.0)
    }
}

impl TryFrom<Vec<Label>> for Labels {
    type Error = BadLabel;

    fn try_from(labels: Vec<Label>) -> Result<Self, BadLabel> {
        let labels: BTreeSet<Label> = labels.into_iter().collect();
        if labels.len() > MAX_LABELS { Err(BadLabel::TooMany) } else { Ok(Self(labels)) }
    }
}

impl From<Labels> for Vec<Label> {
    fn from(labels: Labels) -> Self {
        labels.0.into_iter().collect()
    }
}

impl FromStr for Labels {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let labels = text.split(',').filter(|label| !label.is_empty()).map(str::parse);
        Self::try_from(labels.collect::<Result<Vec<Label>, _>>()?)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, label) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            write!(f, "{comma}{}", label.0)?;
        }
        Ok(())
    }
}

/// Whose Runs need what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    pub repositories: Repositories,
    pub labels: Labels,
}

/// `octo/hello`, or `octo/*` for all of an owner's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Repositories {
    One(RepoName),
    OwnedBy(String),
}

impl Repositories {
    fn include(&self, repo: &RepoName) -> bool {
        match self {
            Self::One(name) => {
                name.owner().eq_ignore_ascii_case(repo.owner()) && name.name().eq_ignore_ascii_case(repo.name())
            }
            Self::OwnedBy(owner) => owner.eq_ignore_ascii_case(repo.owner()),
        }
    }
}

impl TryFrom<String> for Repositories {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let unfit = || format!("`{text}` is neither `owner/name` nor `owner/*`");
        if let Some(owner) = text.strip_suffix("/*") {
            // The forge's own rule for owners, asked of a repository that has this one.
            let of_owner: RepoName = format!("{owner}/any").parse().map_err(|_| unfit())?;
            return Ok(Self::OwnedBy(of_owner.owner().to_owned()));
        }
        text.parse().map(Self::One).map_err(|_| unfit())
    }
}

impl From<Repositories> for String {
    fn from(repositories: Repositories) -> Self {
        match repositories {
            Repositories::One(name) => name.to_string(),
            Repositories::OwnedBy(owner) => format!("{owner}/*"),
        }
    }
}

/// All that is needed for Runs of `repo`. What has no repository needs nothing.
pub fn needs_of(needs: &[Need], repo: Option<&RepoName>) -> Labels {
    let Some(repo) = repo else { return Labels::default() };
    let applying = needs.iter().filter(|need| need.repositories.include(repo));
    Labels(applying.flat_map(|need| need.labels.0.iter().cloned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.parse().unwrap()
    }

    #[test]
    fn a_worker_meets_needs_that_are_among_its_labels() {
        assert!(labels("arm64,gpu").meet(&labels("gpu")));
        assert!(labels("gpu").meet(&labels("")));
        assert!(!labels("").meet(&labels("gpu")));
        assert!(!labels("arm64").meet(&labels("arm64,gpu")));
    }

    #[test]
    fn equal_sets_are_equal_texts() {
        assert_eq!(labels("gpu,arm64,gpu").to_string(), "arm64,gpu");
        assert_eq!(labels("").to_string(), "");
        for bad in ["GPU", "a b", "größe", &"x".repeat(41)] {
            assert!(bad.parse::<Labels>().is_err(), "{bad}");
        }
        let many: Vec<String> = (0..17).map(|n| format!("l{n}")).collect();
        assert_eq!(many.join(",").parse::<Labels>(), Err(BadLabel::TooMany));
    }

    #[test]
    fn every_rule_that_names_a_repository_applies_to_it() {
        let of = |text: &str| Repositories::try_from(text.to_owned()).unwrap();
        let needs = [
            Need { repositories: of("octo/*"), labels: labels("arm64") },
            Need { repositories: of("Octo/Hello"), labels: labels("gpu") },
            Need { repositories: of("other/*"), labels: labels("big") },
        ];
        let hello: RepoName = "octo/hello".parse().unwrap();
        assert_eq!(needs_of(&needs, Some(&hello)).to_string(), "arm64,gpu");
        assert!(needs_of(&needs, None).is_empty());
        for bad in ["octo", "*/*", "octo/**", "/x", "oc to/*"] {
            assert!(Repositories::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
