//! A farm for a test: the real binary, with its own data, on ports that are free.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// How long a farm may take to start or to stop: far more than it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest message that the tests take; a batch at its limit is a little larger than the usual 4 MiB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What is kept of a farm's log.
const LOG_BYTES_MAX: usize = 1 << 20;

/// A running farm. Dropping it kills it.
pub(crate) struct Farm {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Empty when it has no such listener, as for `workers`.
    pub(crate) public: String,
    pub(crate) workers: String,
    pub(crate) admin: String,
    pub(crate) greeting: String,
    log: Arc<Mutex<String>>,
    data: PathBuf,
    _own: Option<TempDir>,
}

impl Farm {
    /// A farm with fresh data.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// A farm with fresh data and more environment.
    pub(crate) fn start_with(environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut farm = Self::start_in(directory.path(), environment);
        farm._own = Some(directory);
        farm
    }

    /// A farm on the data in `data`.
    pub(crate) fn start_in(data: &Path, environment: &[(&str, &str)]) -> Self {
        Self::try_start(data, environment)
            .unwrap_or_else(|(_, errors)| panic!("the farm did not start: {errors}"))
    }

    /// As [`Farm::start_in`], or the exit status and what it said on standard error.
    pub(crate) fn try_start(data: &Path, environment: &[(&str, &str)]) -> Result<Self, (ExitStatus, String)> {
        Self::try_start_by(command(data, environment), data)
    }

    /// A farm on the data in `data` that another program starts and becomes: `words` with the farm's own program behind them.
    pub(crate) fn start_by(words: &[&str], data: &Path, environment: &[(&str, &str)]) -> Self {
        let own = command(data, environment);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(own.get_program());
        command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::try_start_by(command, data)
            .unwrap_or_else(|(_, errors)| panic!("the farm did not start: {errors}"))
    }

    /// As [`Farm::try_start`], by a command of one's own.
    pub(crate) fn try_start_by(mut command: Command, data: &Path) -> Result<Self, (ExitStatus, String)> {
        let mut child = command.spawn().unwrap();
        // What it hands over is the farm's alone.
        drop(command);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.contains("Ctrl-C stops the farm") {
            if output.read_line(&mut greeting).unwrap() == 0 {
                let mut errors = String::new();
                child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                return Err((child.wait().unwrap(), errors));
            }
        }
        // A full pipe must not stop the farm.
        let (errors, log) = (BufReader::new(child.stderr.take().unwrap()), Arc::<Mutex<String>>::default());
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let line = line + "\n";
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                let mut kept = kept.lock().unwrap();
                if kept.len() < LOG_BYTES_MAX {
                    *kept += &line;
                }
            }
        });
        let public = address(&greeting, "Remote Execution API");
        let workers = address(&greeting, "for workers");
        let admin = address(&greeting, "metrics and health").trim_end_matches("/metrics").to_owned();
        Ok(Self { child, output, public, workers, admin, greeting, log, data: data.to_owned(), _own: None })
    }

    /// What it has logged since it was ready, or the beginning of that.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection as a client on the same machine would make it: large frames, and no pacing where the system's default paces.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.public)).unwrap();
        let address = self.public.clone();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move {
                let connection = TcpStream::connect(address).await?;
                connection.set_nodelay(true)?;
                rustix::net::sockopt::set_tcp_congestion(&connection, "reno")?;
                Ok::<_, std::io::Error>(TokioIo::new(connection))
            }
        });
        endpoint.max_frame_size(1 << 20).connect_with_connector(connector).await.unwrap()
    }

    /// Ends it as a power failure of the process would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.wait()
    }

    /// Sends SIGTERM.
    pub(crate) fn ask_to_stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the farm did not stop");
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The body of a page of the admin listener, after its status line.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut connection = tokio::net::TcpStream::connect(&self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut rest = Vec::new();
        let _ = self.output.read_to_end(&mut rest);
    }
}

/// The command that starts a farm for `data`.
pub(crate) fn command(data: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(executable());
    command
        .env("CROFT_DATA", data)
        .env("CROFT_PUBLIC__LISTEN", "127.0.0.1:0")
        .env("CROFT_ADMIN__LISTEN", "127.0.0.1:0")
        .env("CROFT_LOG__FILTER", "warn")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The binary; the run without root has a copy of its own.
pub(crate) fn executable() -> PathBuf {
    std::env::var_os("CROFT_UNDER_TEST").map_or_else(|| env!("CARGO_BIN_EXE_croft").into(), Into::into)
}

/// The address in the line of the greeting that begins with `label`.
fn address(greeting: &str, label: &str) -> String {
    let rest = greeting.lines().find_map(|line| line.trim_start().strip_prefix(label)).unwrap_or_default();
    let address = rest.split_whitespace().next().unwrap_or_default();
    address.split("://").last().unwrap_or_default().to_owned()
}

/// The most memory that the farm has had, in bytes.
pub(crate) fn peak_memory(farm: &Farm) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", farm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
