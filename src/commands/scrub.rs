//! `croft scrub`: verifies all that a running farm keeps on its disks.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use super::table;
use crate::error::Result;
use crate::web::{ScrubReport, Status, TierStatus};

/// The exit code when something that was stored turned out to be damaged or lost.
const DAMAGED: u8 = 1;

/// How often the farm is asked how far it is.
const LOOK_EACH: Duration = Duration::from_millis(500);

/// What a terminal shows meanwhile; nothing is shown elsewhere.
const BAR: &str = "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

pub(super) fn run(farm: &RunningFarm) -> Result<ExitCode> {
    let ask = async {
        let admin = Admin::new(farm)?;
        let scrub = admin.ask(Method::POST, ["scrub"]);
        shown(&admin, scrub).await
    };
    let hint = "a scrub runs inside the farm that holds the disk";
    let body = admin::run(ask).map_err(|error| error.context(hint))?;
    let reports: Vec<ScrubReport> = admin::parse(&body)?;
    std::io::stdout().lock().write_all(render(&reports).as_bytes())?;
    let has_damage = reports.iter().any(ScrubReport::has_damage);
    Ok(if has_damage { ExitCode::from(DAMAGED) } else { ExitCode::SUCCESS })
}

/// Shows how far the farm is until `scrub` has ended.
async fn shown<T>(admin: &Admin, scrub: impl Future<Output = T>) -> T {
    tokio::select! {
        ended = scrub => ended,
        never = watch(admin) => match never {},
    }
}

async fn watch(admin: &Admin) -> Infallible {
    // A farm that does not tell is left alone.
    let Some((first, total)) = progress(admin).await else { return std::future::pending().await };
    let style = ProgressStyle::with_template(BAR).expect("its keys are those that there are");
    let bar = ProgressBar::new(total).with_style(style);
    loop {
        tokio::time::sleep(LOOK_EACH).await;
        if let Some((now, total)) = progress(admin).await {
            bar.set_length(total);
            bar.set_position(now.saturating_sub(first).min(total));
        }
    }
}

/// Bytes that were verified since the farm started, and those that there are, of all tiers that are scrubbed.
async fn progress(admin: &Admin) -> Option<(u64, u64)> {
    let status: Status = admin::parse(&admin.ask(Method::GET, ["status.json"]).await.ok()?).ok()?;
    let scrubbed = |tier: &TierStatus| Some((tier.scrubbed_bytes?, tier.used_bytes?));
    let all = status.storage.tiers.iter().filter_map(scrubbed);
    Some(all.fold((0, 0), |(done, all), (verified, used)| (done + verified, all + used)))
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
