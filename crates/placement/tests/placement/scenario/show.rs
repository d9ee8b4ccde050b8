//! A placement as the lines below `plan:`.

use fettle_placement::placement::Placement;

pub(super) fn placement(placement: &Placement) -> String {
    let mut lines: Vec<String> = placement.intents.iter().map(|intent| format!("  {intent}\n")).collect();
    if lines.is_empty() {
        lines.push("  nothing to do\n".to_owned());
    }
    if !placement.reasons.is_empty() {
        lines.push("because:\n".to_owned());
        lines.extend(placement.reasons.iter().map(|reason| format!("  {reason}\n")));
    }
    if !placement.refusals.is_empty() {
        lines.push("refused:\n".to_owned());
        let refusals = placement.refusals.iter();
        lines.extend(refusals.map(|unmet| {
            let last = if unmet.refusal.is_final() { " (final)" } else { "" };
            format!("  {} of {}: {}{last}\n", unmet.model, unmet.owner, unmet.refusal)
        }));
    }
    lines.concat()
}

/// Line by line: `-` expected, `+` planned.
pub(super) fn difference(expected: &str, shown: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), shown.lines().collect());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let same_end = old[same..].iter().rev().zip(new[same..].iter().rev()).take_while(|(old, new)| old == new).count();
    let line = |sign: &'static str| move |line: &&str| format!("{sign} {line}");
    let lines = old[..same].iter().map(line(" "));
    let lines = lines.chain(old[same..old.len() - same_end].iter().map(line("-")));
    let lines = lines.chain(new[same..new.len() - same_end].iter().map(line("+")));
    let lines: Vec<String> = lines.chain(old[old.len() - same_end..].iter().map(line(" "))).collect();
    lines.join("\n")
}
