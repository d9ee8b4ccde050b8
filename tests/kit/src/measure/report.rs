//! Figures with their targets, as a table for people and as JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::process::load_average;

/// Names of figures are at least this wide in a table.
const NAME_WIDTH: usize = 44;

/// One measured thing: a value per round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    name: Cow<'static, str>,
    unit: Cow<'static, str>,
    target: Option<Target>,
    rounds: Vec<f64>,
    /// Absent when there was nothing to measure.
    median: Option<f64>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Met,
    Missed,
    /// Nothing was aimed at.
    Told,
    /// It could not be measured, so nothing is known of its target.
    Missing,
}

impl Figure {
    /// `rounds` holds a value per round, at least one. The median is judged.
    pub fn new(name: &'static str, unit: &'static str, target: Option<Target>, rounds: Vec<f64>) -> Self {
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
        Self { name: name.into(), unit: unit.into(), target, rounds, median: Some(median), verdict }
    }

    /// What could not be measured; a note of the report says why.
    pub fn missing(name: &'static str, unit: &'static str, target: Option<Target>) -> Self {
        let (name, unit) = (name.into(), unit.into());
        Self { name, unit, target, rounds: Vec::new(), median: None, verdict: Verdict::Missing }
    }

    /// `rounds` as for [`Figure::new`]; without any, it is missing.
    pub fn of(name: &'static str, unit: &'static str, target: Option<Target>, rounds: Vec<f64>) -> Self {
        if rounds.is_empty() { Self::missing(name, unit, target) } else { Self::new(name, unit, target, rounds) }
    }
}

/// What a benchmark found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    bench: Cow<'static, str>,
    cores: usize,
    /// Load average of the last minute, before and after: others' work is in the figures too.
    load: [f64; 2],
    figures: Vec<Figure>,
    notes: Vec<String>,
    /// Of what was measured beside Fettle.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    versions: BTreeMap<Cow<'static, str>, String>,
    /// Single measurements that figures were made of, round by round.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    samples: BTreeMap<String, Vec<Vec<f64>>>,
}

impl Report {
    pub fn new(
        bench: &'static str,
        load_before: f64,
        figures: Vec<Figure>,
        notes: Vec<String>,
    ) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let load = [load_before, load_average()?];
        let bench = bench.into();
        Ok(Self { bench, cores, load, figures, notes, versions: BTreeMap::new(), samples: BTreeMap::new() })
    }

    #[must_use]
    pub fn with_versions(mut self, versions: BTreeMap<&'static str, String>) -> Self {
        self.versions = versions.into_iter().map(|(name, version)| (name.into(), version)).collect();
        self
    }

    #[must_use]
    pub fn with_samples(mut self, samples: BTreeMap<String, Vec<Vec<f64>>>) -> Self {
        self.samples = samples;
        self
    }

    /// With the figures, notes and samples of another one after its own.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.figures.extend(other.figures);
        self.notes.extend(other.notes);
        self.samples.extend(other.samples);
        self
    }

    /// What [`Report::write`] wrote.
    pub fn read(file: &Utf8Path) -> anyhow::Result<Self> {
        Ok(serde_json::from_str(&fs_err::read_to_string(file)?)?)
    }

    pub fn table(&self) -> String {
        let [before, after] = self.load;
        let named = |figure: &Figure| match &*figure.unit {
            "" => figure.name.to_string(),
            unit => format!("{}, {unit}", figure.name),
        };
        let widest = self.figures.iter().map(|figure| named(figure).chars().count()).max();
        let width = widest.unwrap_or_default().max(NAME_WIDTH);
        let mut text = format!(
            "{} on {} cores, load average {before:.1} before and {after:.1} after\n\n{:<width$} {:>10} {:>12} {:>23}  {}\n",
            self.bench, self.cores, "", "target", "measured", "lowest to highest", "verdict",
        );
        for figure in &self.figures {
            let Figure { target, rounds, median, verdict, .. } = figure;
            let target = match target {
                None => String::new(),
                Some(Target::AtLeast(bound)) => format!("≥ {}", short(*bound)),
                Some(Target::AtMost(bound)) => format!("≤ {}", short(*bound)),
            };
            let lowest = rounds.iter().copied().fold(f64::INFINITY, f64::min);
            let highest = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let spread = median.map_or_else(String::new, |_| format!("{} to {}", short(lowest), short(highest)));
            let verdict = match verdict {
                Verdict::Met => "met",
                Verdict::Missed => "missed",
                Verdict::Told => "",
                Verdict::Missing => "missing",
            };
            let measured = median.map_or_else(String::new, short);
            let line = format!("{:<width$} {target:>10} {measured:>12} {spread:>23}  {verdict}", named(figure));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for note in &self.notes {
            let _ = write!(text, "\n- {note}");
        }
        if !self.versions.is_empty() {
            let versions = self.versions.iter().map(|(name, version)| format!("{name} {version}"));
            let _ = write!(text, "\n- {}", versions.collect::<Vec<_>>().join(", "));
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
        assert_eq!(figure(Target::AtLeast(3.0)).median, Some(3.0));
        assert_eq!(figure(Target::AtLeast(3.0)).verdict, Verdict::Met);
        assert_eq!(figure(Target::AtLeast(3.1)).verdict, Verdict::Missed);
        assert_eq!(figure(Target::AtMost(3.0)).verdict, Verdict::Met);
        assert_eq!(figure(Target::AtMost(2.9)).verdict, Verdict::Missed);
        let table = Report::new("b", 0.0, vec![figure(Target::AtMost(2.9))], Vec::new()).unwrap().table();
        assert!(table.contains("≤ 2.90         3.00            1.00 to 9.00  missed"), "{table}");
    }

    #[test]
    fn a_report_that_was_written_is_read_and_stands_in_another_one() {
        let report = |name| {
            let figure = Figure::new(name, "s", Some(Target::AtMost(2.0)), vec![1.0]);
            Report::new("b", 0.0, vec![figure], vec![format!("of {name}")]).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("report.json");
        report("slow").write(&file).unwrap();
        let table = report("quick").and(Report::read(&file).unwrap()).table();
        let (quick, slow) = (table.find("quick, s").unwrap(), table.find("slow, s").unwrap());
        assert!(quick < slow && table.contains("of slow"), "{table}");
    }

    #[test]
    fn what_could_not_be_measured_is_missing_and_never_met() {
        for target in [Target::AtLeast(0.0), Target::AtMost(f64::INFINITY)] {
            let figure = Figure::of("speed", "", Some(target), Vec::new());
            assert_eq!(figure.verdict, Verdict::Missing);
            let table = Report::new("b", 0.0, vec![figure], Vec::new()).unwrap().table();
            assert!(table.trim_end().ends_with("missing"), "{table}");
        }
    }
}
