//! Chromium without a window, driven through its WebDriver.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the browser may take for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(10);

/// Pixels of a picture's height: what lies below looks like what lies above.
const PICTURE_HEIGHT_MAX: u64 = 3000;

/// How a page is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) name: &'static str,
    pub(crate) width: u64,
    pub(crate) height: u64,
    pub(crate) scheme: &'static str,
    pub(crate) is_phone: bool,
}

/// A browser with one window. Dropping it ends it.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    http: Client,
    _output: BufReader<ChildStdout>,
    _profile: TempDir,
}

impl Browser {
    /// None, and a word about it, when the machine has no browser that can be driven.
    pub(crate) async fn start() -> Option<Self> {
        let spawned =
            Command::new("chromedriver").arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut driver = match spawned {
            Ok(driver) => driver,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: no chromedriver; Debian: apt install chromium chromium-driver");
                return None;
            }
            Err(error) => panic!("chromedriver does not start: {error}"),
        };
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        let port = port(&mut output);
        croft::tls::install();
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let profile = tempfile::tempdir().unwrap();
        let session = String::new();
        let mut browser = Self { driver, port, session, http, _output: output, _profile: profile };
        let answer = browser.call(Method::POST, "session", &browser.wishes()).await.unwrap();
        browser.session = answer["sessionId"].as_str().unwrap().to_owned();
        Some(browser)
    }

    fn wishes(&self) -> Value {
        let profile = format!("--user-data-dir={}", self._profile.path().display());
        let mut arguments = vec![
            "--headless=new",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            // Nothing but the farm is asked for anything.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            &profile,
        ];
        if rustix::process::geteuid().is_root() {
            arguments.push("--no-sandbox");
        }
        json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            "unhandledPromptBehavior": "ignore",
        } } })
    }

    /// What the driver answers, or the error that it tells of.
    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value, Value> {
        let address = format!("http://127.0.0.1:{}/{path}", self.port);
        let request = self.http.request(method.clone(), address);
        let request = if method == Method::POST { request.json(body) } else { request };
        let mut answer: Value = request.send().await.unwrap().json().await.unwrap();
        let value = answer["value"].take();
        if value["error"].is_string() { Err(value) } else { Ok(value) }
    }

    async fn post(&self, command: &str, body: Value) -> Value {
        let path = format!("session/{}/{command}", self.session);
        self.call(Method::POST, &path, &body).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// A command of Chromium's own protocol.
    async fn chromium(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Opens a page and waits until all of it is loaded.
    pub(crate) async fn open(&self, address: &str) {
        self.post("url", json!({ "url": address })).await;
    }

    /// What a script returns that runs in the page as a function.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Milliseconds from the request to the first text on the screen.
    pub(crate) async fn first_paint(&self) -> f64 {
        const SCRIPT: &str = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime";
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(paint) = self.run(SCRIPT).await.as_f64() {
                return paint;
            }
            assert!(Instant::now() < deadline, "nothing is drawn");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn look_as(&self, view: View) {
        let size = json!({ "width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": view.is_phone });
        self.chromium("Emulation.setDeviceMetricsOverride", size).await;
        self.chromium("Emulation.setTouchEmulationEnabled", json!({ "enabled": view.is_phone })).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": view.scheme }] });
        self.chromium("Emulation.setEmulatedMedia", scheme).await;
        // A page hears of it with the next picture that is drawn.
        self.run("return new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))")
            .await;
    }

    /// Writes a picture of the page, with what is below the window.
    pub(crate) async fn picture(&self, view: View, path: &Path) {
        let height = self.run("return document.documentElement.scrollHeight").await.as_u64().unwrap();
        let height = height.clamp(view.height, PICTURE_HEIGHT_MAX);
        let clip = json!({ "x": 0, "y": 0, "width": view.width, "height": height, "scale": 1 });
        let wish = json!({ "captureBeyondViewport": true, "clip": clip });
        let picture = self.chromium("Page.captureScreenshot", wish).await;
        std::fs::write(path, STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// Presses the key by which the keyboard goes on to the next link or field.
    pub(crate) async fn tab(&self) {
        let keys = [
            json!({ "type": "keyDown", "value": "\u{e004}" }),
            json!({ "type": "keyUp", "value": "\u{e004}" }),
        ];
        self.post("actions", json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] })).await;
    }

    /// What the browser has complained of since it was last asked; a violation of the page's policy is among it.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let entries = self.post("se/log", json!({ "type": "browser" })).await;
        let is_bad = |entry: &&Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        let entries = entries.as_array().unwrap().iter().filter(is_bad);
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The text of the dialog that a script has opened, if there is one.
    pub(crate) async fn dialog(&self) -> Option<String> {
        let path = format!("session/{}/alert/text", self.session);
        let text = self.call(Method::GET, &path, &Value::Null).await.ok()?;
        Some(text.as_str().unwrap_or_default().to_owned())
    }

    /// Closes the dialog.
    pub(crate) async fn dismiss(&self) {
        self.post("alert/dismiss", json!({})).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser only when it is asked to; when it is gone already, there is nothing to end.
        if let Ok(mut connection) = TcpStream::connect(("127.0.0.1", self.port)) {
            let request = format!(
                "DELETE /session/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                self.session
            );
            let _ = connection.set_read_timeout(Some(PATIENCE));
            let _ = connection.write_all(request.as_bytes());
            let _ = connection.read(&mut [0; 1024]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The port that the driver has chosen, as it tells when it is ready.
fn port(output: &mut impl BufRead) -> u16 {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "chromedriver ended");
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return port.trim().trim_end_matches('.').parse().unwrap();
        }
    }
}
