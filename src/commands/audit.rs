//! `croft audit`: runs cached actions again and tells which outputs differ.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;

use super::RunningFarm;
use super::admin::{self, Admin};
use super::forget;
use crate::audit::{Audits, Outcome, Progress, Report};
use crate::error::Result;
use crate::web::{AuditNumbers, AuditRequest};

/// How often an audit that has not ended is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The exit codes when outputs differ, and when nothing can be said of some action.
const DIFFERS: u8 = 1;
const UNKNOWN: u8 = 2;

/// What is to be audited, as it stands on the command line.
pub(super) struct Wanted<'a> {
    pub(super) actions: &'a [String],
    pub(super) instance: &'a str,
    pub(super) function: &'a str,
    pub(super) sample: usize,
}

/// When the command returns, and what it prints then.
pub(super) struct Printed {
    pub(super) wait: bool,
    pub(super) as_json: bool,
}

pub(super) fn run(farm: &RunningFarm, wanted: &Wanted<'_>, printed: Printed) -> Result<ExitCode> {
    let admin = Admin::new(farm)?;
    admin::run(async {
        if wanted.is_nothing() {
            let audits: Audits = admin::parse(&admin.ask(Method::GET, ["audit.json"]).await?)?;
            return print(&audits.reports, printed.as_json);
        }
        let asked = admin.tell(Method::POST, ["audit"], &wanted.request()?).await?;
        let asked: AuditNumbers = admin::parse(&asked)?;
        if printed.wait {
            return print(&reports(&admin, &asked.numbers).await?, printed.as_json);
        }
        let text = if printed.as_json { admin::to_json(&asked) } else { accepted(&asked) };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    })
}

impl Wanted<'_> {
    fn is_nothing(&self) -> bool {
        self.actions.is_empty() && self.sample == 0
    }

    fn request(&self) -> Result<AuditRequest> {
        let name = |digest: &String| {
            let action = forget::Action { instance: self.instance, digest, function: self.function };
            Ok(forget::name(self.instance, &forget::parse(&action)?))
        };
        let actions = self.actions.iter().map(name).collect::<Result<_>>()?;
        Ok(AuditRequest { actions, sample: self.sample })
    }
}

/// The reports of all these audits, as soon as the last one has ended. A farm runs them when nothing else wants its workers.
async fn reports(admin: &Admin, numbers: &[u64]) -> Result<Vec<Report>> {
    let mut reports = Vec::with_capacity(numbers.len());
    for number in numbers {
        let number = number.to_string();
        loop {
            match admin::parse(&admin.ask(Method::GET, ["audit", number.as_str()]).await?)? {
                Progress::Done { report } => break reports.push(*report),
                Progress::Waiting | Progress::Running => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }
    Ok(reports)
}

fn accepted(asked: &AuditNumbers) -> String {
    format!("{} actions will be audited; `croft audit` tells what is found\n", asked.numbers.len())
}

fn print(reports: &[Report], as_json: bool) -> Result<ExitCode> {
    let text = if as_json { admin::to_json(&reports) } else { render(reports) };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(verdict(reports))
}

fn verdict(reports: &[Report]) -> ExitCode {
    let has = |outcome| reports.iter().any(|report| report.outcome == outcome);
    match (has(Outcome::Differs), has(Outcome::Failed)) {
        (true, _) => ExitCode::from(DIFFERS),
        (false, true) => ExitCode::from(UNKNOWN),
        (false, false) => ExitCode::SUCCESS,
    }
}

fn render(reports: &[Report]) -> String {
    let mut text: String = reports.iter().map(block).collect();
    let count = |outcome| reports.iter().filter(|report| report.outcome == outcome).count();
    let [same, differ, failed] = [Outcome::Same, Outcome::Differs, Outcome::Failed].map(count);
    text += &format!("{same} same, {differ} differ, {failed} failed\n");
    text
}

fn block(report: &Report) -> String {
    let place = if report.instance.is_empty() { String::new() } else { format!(" of {}", report.instance) };
    let mut text = format!("{}: action {}{place}\n", report.outcome.name(), report.action);
    if !report.command.is_empty() {
        text += &format!("  {}\n", report.command);
    }
    if !report.second_worker.is_empty() {
        text += &format!("  {}\n", workers(report));
    }
    for difference in &report.differences {
        text += &format!("  {difference}\n");
    }
    if report.unlisted > 0 {
        text += &format!("  and {} more\n", report.unlisted);
    }
    if !report.failure.is_empty() {
        text += &format!("  {}\n", report.failure);
    }
    text
}

fn workers(report: &Report) -> String {
    let (first, second) = (&report.first_worker, &report.second_worker);
    if first.is_empty() {
        return format!("ran again on worker `{second}`; the result does not say where it ran first");
    }
    if first == second {
        return format!("ran again on the same worker, `{second}`: there was no other one for it");
    }
    format!("ran on worker `{first}`, then on `{second}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Change, Difference, Location};

    fn report(outcome: Outcome) -> Report {
        Report {
            number: 1,
            instance: "main".into(),
            action: "ab/1".into(),
            command: "/bin/date".into(),
            outcome,
            first_worker: "one".into(),
            second_worker: "two".into(),
            differences: Vec::new(),
            unlisted: 0,
            failure: String::new(),
            ended_seconds: 0,
        }
    }

    #[test]
    fn a_block_names_the_files_and_where_they_differ() {
        let location = Location::Text { line: 2, before: "1".into(), again: "2".into() };
        let difference = Difference { path: "out".into(), change: Change::Content, location: Some(location) };
        let report = Report { differences: vec![difference], unlisted: 3, ..report(Outcome::Differs) };
        let expected = "differs: action ab/1 of main\n  /bin/date\n  ran on worker `one`, then on `two`\n  \
                        out: other content, line 2: `1`, then `2`\n  and 3 more\n\
                        0 same, 1 differ, 0 failed\n";
        assert_eq!(render(&[report]), expected);
    }

    #[test]
    fn one_worker_is_told_from_two() {
        let same = Report { second_worker: "one".into(), ..report(Outcome::Same) };
        assert!(workers(&same).contains("the same worker"));
        let unknown = Report { first_worker: String::new(), ..report(Outcome::Same) };
        assert!(workers(&unknown).contains("does not say"));
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst() {
        let code = |outcomes: &[Outcome]| {
            let reports: Vec<Report> = outcomes.iter().map(|outcome| report(*outcome)).collect();
            format!("{:?}", verdict(&reports))
        };
        let named = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&[Outcome::Same]), named(0));
        assert_eq!(code(&[Outcome::Failed, Outcome::Differs, Outcome::Same]), named(DIFFERS));
        assert_eq!(code(&[Outcome::Failed, Outcome::Same]), named(UNKNOWN));
    }
}
