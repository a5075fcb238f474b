//! `croft scrub`: verifies all that a running farm keeps on its disks.

use std::io::Write;
use std::process::ExitCode;

use bytesize::ByteSize;
use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use super::table;
use crate::error::Result;
use crate::web::ScrubReport;

/// The exit code when something that was stored turned out to be damaged or lost.
const DAMAGED: u8 = 1;

pub(super) fn run(farm: &RunningFarm) -> Result<ExitCode> {
    let ask = async { Admin::new(farm)?.ask(Method::POST, ["scrub"]).await };
    let hint = "a scrub runs inside the farm that holds the disk";
    let body = admin::run(ask).map_err(|error| error.context(hint))?;
    let reports: Vec<ScrubReport> = admin::parse(&body)?;
    std::io::stdout().lock().write_all(render(&reports).as_bytes())?;
    let has_damage = reports.iter().any(ScrubReport::has_damage);
    Ok(if has_damage { ExitCode::from(DAMAGED) } else { ExitCode::SUCCESS })
}

fn render(reports: &[ScrubReport]) -> String {
    let head = ["tier", "blobs", "bytes", "took", "damaged", "lost", "adopted", "temporary files removed"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(reports.iter().map(|report| {
        vec![
            report.tier.clone(),
            report.found.blobs.to_string(),
            ByteSize(report.found.bytes).display().iec().to_string(),
            format!("{:.1} s", report.found.seconds),
            report.found.damaged.to_string(),
            report.found.lost.to_string(),
            report.found.adopted.to_string(),
            report.found.removed_temporary.to_string(),
        ]
    }));
    table::align(&rows) + "\n" + verdict(reports) + "\n"
}

fn verdict(reports: &[ScrubReport]) -> &'static str {
    if reports.iter().any(ScrubReport::has_damage) {
        return "What was damaged is out of the way: builds make it again. Look at the disk's health.";
    }
    "All that is stored is what it should be."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ScrubReport as Found;

    #[test]
    fn damage_changes_the_verdict() {
        let report = |lost| {
            let found = Found { blobs: 5, bytes: 2048, seconds: 0.25, lost, ..Found::default() };
            ScrubReport { tier: "disk".into(), found }
        };
        let text = render(&[report(0)]);
        assert!(
            text.contains("disk  5      2.0 KiB  0.2 s") && text.contains("All that is stored"),
            "{text}"
        );
        assert!(render(&[report(1)]).contains("Look at the disk"));
    }
}
