//! Arguments that people add, and which of them they may not.

use super::Refused;

/// How an engine reads its command line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Whole names.
    Exactly,
    /// Python's argparse: the beginning of a name is the name.
    Abbreviated,
}

/// `added`, if none of them is among `dictated`. Names are compared as the engines do: `--a_b=1` is `--a-b 1`.
pub(super) fn check<'a>(
    engine: &str,
    reads: Reads,
    dictated: &[&str],
    added: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<String>, Refused> {
    added
        .into_iter()
        .map(|argument| match taken(reads, dictated, argument) {
            None => Ok(argument.clone()),
            Some(flag) => {
                let shown = argument.split('=').next().unwrap_or_default();
                let why = format!("`{shown}` must not be set for {engine}: the planner dictates `{flag}`");
                Err(Refused::flag(why))
            }
        })
        .collect()
}

fn taken<'d>(reads: Reads, dictated: &[&'d str], argument: &str) -> Option<&'d str> {
    if !argument.starts_with('-') {
        return None;
    }
    let name = argument.split('=').next().unwrap_or_default();
    let name = if name.starts_with("--") { name.replace('_', "-") } else { name.to_owned() };
    dictated.iter().copied().find(|flag| {
        // argparse also takes a short option with its value behind it: `-tp4`.
        let abbreviated = reads == Reads::Abbreviated
            && match name.strip_prefix("--") {
                Some(rest) => !rest.is_empty() && flag.starts_with(&name),
                None => {
                    !flag.starts_with("--") && name.strip_prefix(flag).is_some_and(|rest| rest.parse::<f64>().is_ok())
                }
            };
        *flag == name || abbreviated
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reads: Reads, argument: &str) -> bool {
        let dictated = ["--max-model-len", "-tp", "--tensor-parallel-size"];
        check("it", reads, &dictated, &[argument.to_owned()]).is_err()
    }

    #[test]
    fn a_dictated_flag_is_refused_however_it_is_written() {
        for argument in ["--max-model-len", "--max-model-len=8", "--max_model_len", "-tp", "-tp=2"] {
            assert!(refused(Reads::Exactly, argument), "{argument}");
        }
        for argument in ["--max-model", "--tensor-p=2", "-tp4"] {
            assert!(refused(Reads::Abbreviated, argument), "{argument}");
            assert!(!refused(Reads::Exactly, argument), "{argument}");
        }
        for argument in ["--max-model-lens", "8", "--enable-lora", "--", "-t"] {
            assert!(!refused(Reads::Abbreviated, argument), "{argument}");
        }
    }

    #[test]
    fn the_refusal_names_the_flag_and_not_its_value() {
        let refused = check("vLLM", Reads::Abbreviated, &["--api-key"], &["--api-key=hunter2".to_owned()]).unwrap_err();
        assert_eq!(refused.why, "`--api-key` must not be set for vLLM: the planner dictates `--api-key`");
    }
}
