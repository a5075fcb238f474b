//! A farm that somebody started at a terminal: no action types at it.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use super::*;

#[tokio::test]
async fn nobody_types_at_the_terminal_that_the_farm_was_started_at() {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no /usr/bin/python3");
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let words = ["/usr/bin/python3", "-c", include_str!("terminal.py")];
    let farm = Farm::start_by(&words, data.path(), &[]);
    let standard_input = format!("/proc/{}/fd/0", farm.pid());
    let terminal = std::fs::read_link(&standard_input).unwrap();
    assert!(terminal.starts_with("/dev/pts"), "the farm is at a terminal: {}", terminal.display());

    let prison = Prison { client: Client::new(&farm).await, farm };
    let Some(response) = prison.python(include_str!("typist.py"), "").await else { return };
    let printed = stdout(&response);
    assert_eq!(exit_code(&response), 0, "{printed}{}", stderr(&response));
    let expected = "inherited|\n/dev/tty|ENXIO\nterminals|\nany descriptor|EPERM\nupper half|EPERM\nown|EPERM\n\
                    own as controlling one|ok,EPERM\n";
    assert_eq!(printed, expected);

    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits();
    let flags = i32::try_from(flags).unwrap();
    let mut input = OpenOptions::new().read(true).custom_flags(flags).open(standard_input).unwrap();
    let error = input.read(&mut [0; 16]).expect_err("nothing was typed");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    prison.stands().await;
}
