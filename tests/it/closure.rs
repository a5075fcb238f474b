//! Workers whose root is a closure.

use croft::proto::rev2;

use crate::client::{Client, Inputs, shell, stdout};
use crate::farm::Farm;
use crate::toolchain::Toolchain;

/// A command that the toolchain runs.
pub(crate) fn command(toolchain: &Toolchain, script: &str) -> rev2::Command {
    let variable = |(name, value)| rev2::command::EnvironmentVariable { name, value };
    rev2::Command {
        environment_variables: toolchain.environment().into_iter().map(variable).collect(),
        ..shell(script, &[])
    }
}

#[tokio::test]
async fn a_worker_whose_root_is_a_closure_runs_actions_in_it() {
    let Some(toolchain) = Toolchain::new("one") else { return };
    let farm = Farm::start_with(&[("CROFT_WORKER__ROOT", &toolchain.configuration())]);
    let client = Client::new(&farm).await;
    let command = command(&toolchain, "cat $PATH/../name; test ! -e /usr/share");
    let action = client.action(&command, &Inputs::default(), |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(stdout(&response), "one", "{response:?}");
    assert_eq!(response.result.unwrap().exit_code, 0);
}

#[test]
fn a_farm_whose_closure_is_incomplete_does_not_start() {
    let Some(toolchain) = Toolchain::new("one") else { return };
    let root = toolchain.configuration();
    std::fs::remove_file(toolchain.store("note")).unwrap();
    let data = tempfile::tempdir().unwrap();
    let started = Farm::try_start(data.path(), &[("CROFT_WORKER__ROOT", &root)]);
    let Err((status, errors)) = started else { panic!("it must not start") };
    assert_eq!(status.code(), Some(78), "{errors}");
    assert!(errors.contains("worker.root: store path") && errors.contains("/store/note`"), "{errors}");
}
