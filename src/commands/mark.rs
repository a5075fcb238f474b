//! `croft drain`, `croft cordon`, `croft open`: whether a worker takes new work.

use std::io::Write;
use std::time::Duration;

use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use super::scheduler;
use crate::error::{Error, Kind, Result};
use crate::scheduler::view;
use crate::scheduler::{Availability, WorkerView};
use crate::web::MarkRequest;

/// How often a worker that drains is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// What is asked of a worker, as it stands on the command line.
pub(super) struct Mark<'a> {
    /// The last segment of the admin listener's path: `drain`, `cordon` or `open`.
    pub(super) verb: &'static str,
    /// A name or an identifier.
    pub(super) worker: &'a str,
    pub(super) reason: &'a str,
    /// How long to wait until nothing runs on it.
    pub(super) wait: Option<Duration>,
    pub(super) as_json: bool,
}

pub(super) fn run(farm: &RunningFarm, mark: &Mark<'_>) -> Result<()> {
    let admin = Admin::new(farm)?;
    admin::run(async {
        let path = ["workers", mark.worker, mark.verb];
        let reason = MarkRequest { reason: mark.reason.to_owned() };
        let body = admin.tell(Method::POST, path, &reason).await?;
        let worker: WorkerView = admin::parse(&body)?;
        if mark.as_json && mark.wait.is_none() {
            return print(&body);
        }
        print(&format!("{}\n", sentence(&worker)))?;
        match mark.wait {
            Some(limit) => until_idle(&admin, worker, limit).await,
            None => Ok(()),
        }
    })
}

/// Waits until nothing runs on a worker that drains, or it has left.
async fn until_idle(admin: &Admin, worker: WorkerView, limit: Duration) -> Result<()> {
    let (id, name) = (worker.id.clone(), worker.name.clone());
    let mut last = worker;
    let waited = tokio::time::timeout(limit, async {
        while last.slots_used > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = match admin.ask(Method::GET, ["workers", &id]).await {
                Ok(body) => admin::parse::<WorkerView>(&body)?,
                Err(error) if error.kind() == Kind::NotFound => {
                    return print(&format!("worker `{name}` has left\n"));
                }
                Err(error) => return Err(error),
            };
            if !matches!(now.availability, Availability::Draining { .. }) {
                let message = format!(
                    "worker `{name}` does not drain any more: somebody marked it {}",
                    scheduler::state(&now)
                );
                return Err(Error::new(Kind::Precondition, message));
            }
            if now.slots_used != last.slots_used && now.slots_used > 0 {
                print(&format!("{}\n", sentence(&now)))?;
            }
            last = now;
        }
        print(&format!("nothing runs on worker `{name}`\n"))
    });
    waited.await.unwrap_or_else(|_| {
        let limit = view::time(limit.as_secs_f64());
        let message = format!("worker `{name}` still ran something after {limit}; it goes on draining");
        Err(Error::new(Kind::Timeout, message))
    })
}

fn sentence(worker: &WorkerView) -> String {
    let runs = match worker.slots_used {
        0 => "it runs nothing".to_owned(),
        1 => "it runs 1 action".to_owned(),
        many => format!("it runs {many} actions"),
    };
    format!("worker `{}` is {}; {runs}", worker.name, scheduler::state(worker))
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::scheduler::tests::worker;

    #[test]
    fn the_answer_says_what_the_worker_is_now() {
        let mut drained = worker("alpha", Availability::Draining { reason: "new kernel".into() });
        assert_eq!(sentence(&drained), "worker `alpha` is draining (new kernel); it runs nothing");
        drained.slots_used = 2;
        assert_eq!(sentence(&drained), "worker `alpha` is draining (new kernel); it runs 2 actions");
    }
}
