//! The parts of a file that a model may have meant when its `old` does not fit, found in time linear in the file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use super::numbered;

/// Regions shown, and lines of each: enough to copy from, small enough to read.
const SHOWN_REGIONS: usize = 3;
const REGION_LINES: usize = 15;
const LINE_CHARS: usize = 500;

/// Lines of the file and of `old` that are compared; a source file seldom has more, and each costs a pass over its letters.
const COMPARED_LINES: usize = 20_000;
const COMPARED_OLD_LINES: usize = 400;

/// Candidates whose letters are compared in full.
const SCORED_CANDIDATES: usize = 24;

/// Letters of one line that count for likeness.
const COMPARED_CHARS: usize = 200;

/// Below this likeness a region is noise.
const LEAST_LIKENESS: f64 = 0.35;

/// The regions at the given 1-based lines.
pub(super) fn at_lines(text: &str, lines: &[usize], length: usize) -> String {
    let mut out = String::new();
    let last = text.lines().count();
    for (number, &line) in lines.iter().take(SHOWN_REGIONS).enumerate() {
        // Two lines around show what would make the anchor unique.
        let first = line.saturating_sub(2).max(1);
        let end = (line + length.max(1) + 1).min(first + REGION_LINES - 1).min(last);
        push_region(&mut out, number + 1, text, first, end);
    }
    out
}

/// Up to three regions most like `old`, with a hint when the first differs in blanks only; empty when nothing is like it.
pub(super) fn closest(text: &str, old: &str) -> String {
    let file: Vec<&str> = text.lines().take(COMPARED_LINES).collect();
    let wanted: Vec<&str> = trim_blank_ends(old.lines().take(COMPARED_OLD_LINES).collect());
    if wanted.is_empty() || file.is_empty() {
        return String::new();
    }
    let blanks_only = blanks_only_match(&file, &wanted);
    let mut starts: Vec<usize> = blanks_only.into_iter().collect();
    for start in likely_starts(&file, &wanted) {
        let overlaps = starts.iter().any(|&other| start.abs_diff(other) < wanted.len().min(REGION_LINES));
        if !overlaps && starts.len() < SHOWN_REGIONS {
            starts.push(start);
        }
    }
    let mut out = String::new();
    for (number, &start) in starts.iter().enumerate() {
        let length = wanted.len().min(REGION_LINES);
        push_region(&mut out, number + 1, text, start + 1, (start + length).min(file.len()));
    }
    if blanks_only.is_some() {
        out.push_str("region 1 differs only in whitespace; copy it exactly.\n");
    }
    out
}

fn push_region(out: &mut String, number: usize, text: &str, first: usize, last: usize) {
    writeln!(out, "region {number}, lines {first}–{last}:").expect("writing to a string cannot fail");
    out.push_str(&numbered(text, first, last, LINE_CHARS));
}

fn trim_blank_ends(mut lines: Vec<&str>) -> Vec<&str> {
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    let leading = lines.iter().take_while(|line| line.trim().is_empty()).count();
    lines.drain(..leading);
    lines
}

fn without_blanks(line: &str) -> String {
    line.chars().filter(|c| !c.is_whitespace()).collect()
}

/// The first place where the lines are equal but for blanks; the first and last may be parts of longer lines.
fn blanks_only_match(file: &[&str], wanted: &[&str]) -> Option<usize> {
    let wanted: Vec<String> = wanted.iter().map(|line| without_blanks(line)).collect();
    let file: Vec<String> = file.iter().map(|line| without_blanks(line)).collect();
    if let [only] = wanted.as_slice() {
        return file.iter().position(|line| line.contains(only.as_str()));
    }
    let last = wanted.len() - 1;
    file.windows(wanted.len()).position(|window| {
        window[0].ends_with(wanted[0].as_str())
            && window[last].starts_with(wanted[last].as_str())
            && window[1..last] == wanted[1..last]
    })
}

/// Starts of windows by likeness, best first. Equal lines vote for the start they imply; where none is equal, the line
/// most like the longest wanted line votes.
fn likely_starts(file: &[&str], wanted: &[&str]) -> Vec<usize> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, line) in file.iter().enumerate() {
        let line = line.trim();
        if !line.is_empty() {
            places.entry(line).or_default().push(index);
        }
    }
    let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
    for (offset, line) in wanted.iter().enumerate() {
        let line = line.trim();
        let Some(found) = places.get(line) else { continue };
        // A line that stands everywhere (a brace) says nothing about the place.
        if found.len() > SCORED_CANDIDATES {
            continue;
        }
        for &at in found {
            *votes.entry(at.saturating_sub(offset)).or_default() += line.len();
        }
    }
    let longest = wanted.iter().enumerate().max_by_key(|(_, line)| line.trim().len());
    if let Some((offset, line)) = longest {
        let pairs = letter_pairs(line);
        let mut alike: Vec<(f64, usize)> = file
            .iter()
            .enumerate()
            .map(|(index, line)| (likeness(&pairs, &letter_pairs(line)), index))
            .filter(|(score, _)| *score >= LEAST_LIKENESS)
            .collect();
        alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, index) in alike.into_iter().take(SCORED_CANDIDATES / 2) {
            *votes.entry(index.saturating_sub(offset)).or_default() += 1;
        }
    }
    let mut candidates: Vec<(usize, usize)> = votes.into_iter().collect();
    candidates.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let whole: HashSet<(char, char)> = wanted.iter().flat_map(|line| letter_pairs(line)).collect();
    let mut scored: Vec<(f64, usize)> = candidates
        .into_iter()
        .take(SCORED_CANDIDATES)
        .map(|(start, _)| {
            let end = (start + wanted.len()).min(file.len());
            let window: HashSet<_> = file[start..end].iter().flat_map(|line| letter_pairs(line)).collect();
            (likeness(&whole, &window), start)
        })
        .filter(|(score, _)| *score >= LEAST_LIKENESS)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, start)| start).collect()
}

fn letter_pairs(line: &str) -> HashSet<(char, char)> {
    let letters: Vec<char> = line.chars().filter(|c| !c.is_whitespace()).take(COMPARED_CHARS).collect();
    letters.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Sørensen–Dice over pairs of letters, 0 to 1.
fn likeness(a: &HashSet<(char, char)>, b: &HashSet<(char, char)>) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    2.0 * a.intersection(b).count() as f64 / (a.len() + b.len()) as f64
}
