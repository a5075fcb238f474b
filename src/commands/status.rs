//! `croft status`: what a running farm tells of itself.

use std::io::Write;

use bytesize::ByteSize;
use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use super::{scheduler, table};
use crate::error::Result;
use crate::web::{Lately, Status, StorageStatus, TierStatus};

pub(super) fn run(farm: &RunningFarm, as_json: bool) -> Result<()> {
    let body = admin::run(async { Admin::new(farm)?.ask(Method::GET, ["status.json"]).await })?;
    let text = if as_json { body } else { render(&admin::parse(&body)?) };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn render(status: &Status) -> String {
    let tiers = render_tiers(&status.storage.tiers);
    let pending = render_pending(&status.storage);
    let scheduler = status.scheduler.as_ref().map_or_else(String::new, scheduler::render);
    let (head, lately) = (render_head(status), status.lately.map_or_else(String::new, render_lately));
    format!("{head}{lately}\n{tiers}{pending}\n{scheduler}")
}

fn render_head(status: &Status) -> String {
    if status.unready.is_empty() {
        return format!("croft {}, ready\n", status.version);
    }
    format!("croft {}, takes no requests: {}\n", status.version, status.unready.join("; "))
}

fn render_lately(lately: Lately) -> String {
    let hits = lately.action_cache_hit_rate.map_or_else(unknown, |rate| format!("{:.1} %", 100.0 * rate));
    format!("last minute: {:.1} actions a second, action cache hit rate {hits}\n", lately.actions_per_second)
}

fn render_tiers(tiers: &[TierStatus]) -> String {
    let head = ["tier", "kind", "used", "max", "hit rate", "read", "written", "evictions", "errors"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(tiers.iter().map(|tier| {
        vec![
            tier.name.clone(),
            tier.kind.clone(),
            tier.used_bytes.map_or_else(unknown, size),
            tier.max_bytes.map_or_else(unknown, size),
            hit_rate(tier),
            size(tier.read_bytes),
            size(tier.written_bytes),
            tier.evictions.map_or_else(unknown, |count| count.to_string()),
            tier.errors.to_string(),
        ]
    }));
    table::align(&rows)
}

fn render_pending(storage: &StorageStatus) -> String {
    let Some(writes) = storage.pending_writes else { return String::new() };
    format!("\npending writes to slower tiers: {writes} ({})\n", size(storage.pending_bytes.unwrap_or(0)))
}

/// Of the reads since the farm started; a tier that was never asked has none.
fn hit_rate(tier: &TierStatus) -> String {
    let reads = tier.hits + tier.misses;
    if reads == 0 {
        return unknown();
    }
    format!("{:.1} %", 100.0 * tier.hits as f64 / reads as f64)
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Overview;

    #[test]
    fn tiers_are_rows_with_units() {
        let disk = TierStatus {
            name: "cas".into(),
            kind: "disk".into(),
            used_bytes: Some(3 << 30),
            max_bytes: Some(200 << 30),
            hits: 2,
            misses: 1,
            errors: 0,
            read_bytes: 1 << 20,
            written_bytes: 512,
            evictions: None,
            scrubbed_bytes: None,
        };
        let idle = TierStatus {
            name: "s3".into(),
            kind: "s3".into(),
            used_bytes: None,
            hits: 0,
            misses: 0,
            ..disk.clone()
        };
        let storage =
            StorageStatus { tiers: vec![disk, idle], pending_writes: Some(7), pending_bytes: Some(2048) };
        let status = Status {
            version: "1.2.3".into(),
            unready: Vec::new(),
            lately: None,
            storage,
            scheduler: Some(Overview::default()),
        };
        let text = render(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "croft 1.2.3, ready");
        assert!(lines[2].starts_with("tier  kind  used     max        hit rate"), "{text}");
        assert!(
            lines[3].starts_with("cas   disk  3.0 GiB  200.0 GiB  66.7 %    1.0 MiB  512 B    -"),
            "{text}"
        );
        assert!(lines[4].starts_with("s3    s3    -        200.0 GiB  -"), "{text}");
        assert_eq!(lines[6], "pending writes to slower tiers: 7 (2.0 KiB)");
        let lately = Some(Lately { actions_per_second: 12.34, action_cache_hit_rate: Some(0.5) });
        let text = render(&Status { unready: vec!["it is starting".into()], lately, ..status });
        assert!(
            text.starts_with(
                "croft 1.2.3, takes no requests: it is starting\nlast minute: 12.3 actions a second, action cache hit rate 50.0 %\n"
            ),
            "{text}"
        );
    }
}
