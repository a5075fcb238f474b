//! `croft why`: why an operation still waits, or what waits longest and why.

use std::io::Write;

use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use super::scheduler;
use crate::error::{Error, Kind, Result};
use crate::scheduler::view;
use crate::scheduler::{QueueView, Why};
use crate::web::Status;

/// Property sets whose oldest operation is explained when none is named: each is one more question.
const QUEUES_EXPLAINED_MAX: usize = 20;

/// With an operation, explains it. Without, explains the longest waiting one of each property set.
pub(super) fn run(farm: &RunningFarm, operation: Option<&str>, as_json: bool) -> Result<()> {
    let admin = Admin::new(farm)?;
    let text = admin::run(async {
        match operation {
            Some(operation) => one(&admin, operation, as_json).await,
            None => oldest(&admin, as_json).await,
        }
    })?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

async fn one(admin: &Admin, operation: &str, as_json: bool) -> Result<String> {
    let body = ask(admin, operation).await?;
    Ok(if as_json { body } else { render(&admin::parse(&body)?) })
}

async fn ask(admin: &Admin, operation: &str) -> Result<String> {
    let name = operation.split('/').filter(|segment| !segment.is_empty());
    admin.ask(Method::GET, ["operations"].into_iter().chain(name).chain(["why"])).await
}

async fn oldest(admin: &Admin, as_json: bool) -> Result<String> {
    let status: Status = admin::parse(&admin.ask(Method::GET, ["status.json"]).await?)?;
    let elsewhere = || {
        Error::new(Kind::Precondition, "this process schedules nothing; name the one that does with --admin")
    };
    let queues = status.scheduler.ok_or_else(elsewhere)?.queues;
    let mut found: Vec<(QueueView, Why)> = Vec::new();
    for queue in queues.into_iter().take(QUEUES_EXPLAINED_MAX) {
        let Some(operation) = &queue.oldest_operation else { continue };
        // What was waiting a moment ago may have ended and be forgotten.
        if let Ok(body) = ask(admin, operation).await {
            let why = admin::parse(&body)?;
            found.push((queue, why));
        }
    }
    if as_json {
        let whys: Vec<&Why> = found.iter().map(|(_, why)| why).collect();
        return Ok(admin::to_json(&whys));
    }
    if found.is_empty() {
        return Ok("Nothing waits.\n".to_owned());
    }
    let texts: Vec<String> =
        found.iter().map(|(queue, why)| format!("{}{}", head(queue), render(why))).collect();
    Ok(texts.join("\n"))
}

fn head(queue: &QueueView) -> String {
    let properties = scheduler::properties(&queue.properties);
    let oldest = view::time(queue.oldest_seconds);
    format!("{properties}: {} queued, the oldest for {oldest}\n", queue.queued)
}

fn render(why: &Why) -> String {
    let mut text = format!("operation {} is {}:\n", why.operation, why.stage);
    for reason in &why.reasons {
        text += &format!("  {reason}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_below_each_other_in_their_order() {
        let why = Why {
            operation: "abc".into(),
            stage: "queued".into(),
            reasons: vec!["all 4 workers that could run it are busy".into(), "it has waited 3s".into()],
        };
        let text =
            "operation abc is queued:\n  all 4 workers that could run it are busy\n  it has waited 3s\n";
        assert_eq!(render(&why), text);
        let queue = QueueView { queued: 2, oldest_seconds: 3.0, ..QueueView::default() };
        assert_eq!(head(&queue), "any worker: 2 queued, the oldest for 3s\n");
    }
}
