//! Figures with their targets, as a table for people and as JSON.

use std::fmt::Write as _;

use camino::Utf8Path;
use serde::Serialize;

use super::process::load_average;

/// One measured thing: a value per round.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    name: &'static str,
    unit: &'static str,
    target: Option<Target>,
    rounds: Vec<f64>,
    median: f64,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Met,
    Missed,
    /// Nothing was aimed at.
    Told,
}

impl Figure {
    /// `rounds` holds a value per round, at least one. The median is judged.
    pub(super) fn new(name: &'static str, unit: &'static str, target: Option<Target>, rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        let median = low.midpoint(high);
        let verdict = match target {
            None => Verdict::Told,
            Some(Target::AtLeast(bound)) if median >= bound => Verdict::Met,
            Some(Target::AtMost(bound)) if median <= bound => Verdict::Met,
            Some(_) => Verdict::Missed,
        };
        Self { name, unit, target, rounds, median, verdict }
    }
}

/// What a benchmark found.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    cores: usize,
    /// Load average of the last minute, before and after: others' work is in the figures too.
    load: [f64; 2],
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(
        bench: &'static str,
        load_before: f64,
        figures: Vec<Figure>,
        notes: Vec<String>,
    ) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self { bench, cores, load: [load_before, load_average()?], figures, notes })
    }

    pub fn table(&self) -> String {
        let [before, after] = self.load;
        let mut text = format!(
            "{} on {} cores, load average {before:.1} before and {after:.1} after\n\n{:<44} {:>10} {:>12} {:>23}  {}\n",
            self.bench, self.cores, "", "target", "measured", "lowest to highest", "verdict",
        );
        for Figure { name, unit, target, rounds, median, verdict } in &self.figures {
            let target = match target {
                None => String::new(),
                Some(Target::AtLeast(bound)) => format!("≥ {}", short(*bound)),
                Some(Target::AtMost(bound)) => format!("≤ {}", short(*bound)),
            };
            let lowest = rounds.iter().copied().fold(f64::INFINITY, f64::min);
            let highest = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let spread = format!("{} to {}", short(lowest), short(highest));
            let verdict = match verdict {
                Verdict::Met => "met",
                Verdict::Missed => "missed",
                Verdict::Told => "",
            };
            let named = if unit.is_empty() { (*name).to_owned() } else { format!("{name}, {unit}") };
            let line = format!("{named:<44} {target:>10} {:>12} {spread:>23}  {verdict}", short(*median));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for note in &self.notes {
            let _ = write!(text, "\n- {note}");
        }
        text
    }

    /// Errors when the file cannot be written.
    pub fn write(&self, file: &Utf8Path) -> anyhow::Result<()> {
        Ok(fs_err::write(file, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

/// Three digits that count, and no more than are there.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_judged_and_a_missed_target_says_so() {
        let figure = |target| Figure::new("speed", "", Some(target), vec![9.0, 1.0, 4.0, 2.0]);
        assert_eq!(figure(Target::AtLeast(3.0)).median, 3.0);
        assert_eq!(figure(Target::AtLeast(3.0)).verdict, Verdict::Met);
        assert_eq!(figure(Target::AtLeast(3.1)).verdict, Verdict::Missed);
        assert_eq!(figure(Target::AtMost(3.0)).verdict, Verdict::Met);
        assert_eq!(figure(Target::AtMost(2.9)).verdict, Verdict::Missed);
        let table = Report::new("b", 0.0, vec![figure(Target::AtMost(2.9))], Vec::new()).unwrap().table();
        assert!(table.contains("≤ 2.90         3.00            1.00 to 9.00  missed"), "{table}");
    }
}
