//! Parses the arguments and runs a command.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(croft::worker::sandbox::LAUNCHER_COMMAND) {
        return croft::commands::launcher::run();
    }
    ExitCode::SUCCESS
}
