//! Tables for people.

use std::fmt::Write as _;

/// Enough to tell the devices of one machine apart.
const SHORT_ID: usize = 12;

pub(crate) fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

pub(crate) fn table<const N: usize>(text: &mut String, header: &[&str; N], rows: &[[String; N]]) {
    let width = |nth: usize| {
        let cells = rows.iter().map(|row| row[nth].chars().count());
        cells.chain([header[nth].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _never_fails = writeln!(text, "{}", padded.join("  ").trim_end());
    };
    line(&mut header.iter().copied());
    rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut text = String::new();
        table(&mut text, &["A", "B"], &[["long".into(), "x".into()], ["y".into(), "z".into()]]);
        assert_eq!(text, "A     B\nlong  x\ny     z\n");
    }
}
