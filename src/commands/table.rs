//! Text in columns and times in words, for people.

use std::time::Duration;

use humantime_serde::re::humantime::format_duration;

/// The rows below each other, with columns as wide as their widest cell and two spaces between.
pub(super) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// In whole seconds, as in `1m 5s`.
pub(super) fn time(seconds: f64) -> String {
    // The cast saturates, and what is shown is never negative.
    format_duration(Duration::from_secs(seconds as u64)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["tier", "used"], ["a", "1 GiB"], ["longest", ""]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(String::from).into()).collect();
        assert_eq!(align(&rows), "tier     used\na        1 GiB\nlongest\n");
        assert_eq!(align(&[]), "");
    }
}
