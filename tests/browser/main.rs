//! The pages for people in a real browser: Chromium without a window, on a farm with ten thousand operations.
//!
//! Every page is drawn soon, complains of nothing and stays as wide as the window; texts have contrast, fields have labels, and the
//! keyboard reaches what the mouse does. Pictures of all of them stay in `target/browser`, to be looked at.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on panics, says what it skips and measures, and has tasks whose panics are its own"
)]

mod book;
#[path = "../it/client.rs"]
#[allow(dead_code, reason = "the other tests need more of it")]
mod client;
mod driver;
#[path = "../it/farm.rs"]
#[allow(dead_code, reason = "the other tests need more of it")]
mod farm;
mod fleet;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use croft::digest::Digest;
use tonic::transport::{Channel, Endpoint};

use self::book::{Book, SANDBOX, TAG};
use self::client::Client;
use self::driver::{Browser, View};
use self::farm::Farm;
use self::fleet::{Fleet, OUTPUT};

/// Until the first text of a page is on the screen: what is asked for. It is printed beside what we measure.
const PAINT_GOAL_MS: f64 = 300.0;

/// What no page takes even on a busy machine and without optimisation.
const PAINT_MAX_MS: f64 = 3000.0;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(100);

/// Workers beside the real one.
const WORKERS: usize = 3;

/// Results that are audited.
const AUDITED: usize = 12;

const LIGHT: View = View { name: "light", width: 1280, height: 900, scheme: "light", is_phone: false };
const VIEWS: [View; 3] = [
    LIGHT,
    View { name: "dark", scheme: "dark", ..LIGHT },
    View { name: "phone", width: 390, height: 844, is_phone: true, ..LIGHT },
];

/// What is wrong with the page, as sentences.
const LOOKS: &str = include_str!("looks.js");

/// What has the focus: its address or text, and whether one sees that.
const FOCUS: &str = "const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect(); \
                     const seen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && box.left >= 0 && box.top >= 0 && \
                     box.right < document.documentElement.clientWidth + 1; \
                     return [at.getAttribute('href') ?? at.localName, seen];";

/// A page that is looked at.
struct Sight {
    name: &'static str,
    path: String,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it wants Chromium and a minute: scripts/test.sh browser"]
async fn every_page_is_drawn_soon_and_as_it_should_be() {
    let Some(browser) = Browser::start().await else { return };
    let farm = Farm::start_with(&[
        ("CROFT_WORKERS__LISTEN", "127.0.0.1:0"),
        ("CROFT_WORKER__NAME", "builder-1"),
        ("CROFT_WORKER__PROPERTIES", &format!("{{Pool=[\"{SANDBOX}\"]}}")),
        ("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "1h"),
    ]);
    let client = Client::new(&farm).await;
    let outputs = [client.put("object code 1\n").await, client.put("object code 2\n").await];
    let _fleet = Fleet::connect(channels(&farm).await, outputs).await;
    let begun = Instant::now();
    let book = Book::fill(&client).await;
    println!("the book was filled in {:.1} s", begun.elapsed().as_secs_f64());
    operate(&farm).await;

    let pictures = pictures();
    let mut problems = Vec::new();
    println!("{:<20} {:>12}  (asked for: {PAINT_GOAL_MS} ms)", "page", "first paint");
    for sight in sights(&book) {
        let address = format!("http://{}{}", farm.admin, sight.path);
        let paint = inspect(&browser, (&sight, &address), &pictures, &mut problems).await;
        println!("{:<20} {paint:>9.0} ms", sight.name);
    }
    for page in ["/", "/operations", "/workers"] {
        for view in VIEWS {
            browser.look_as(view).await;
            browser.open(&format!("http://{}{page}", farm.admin)).await;
            let found = keyboard(&browser).await;
            problems.extend(found.into_iter().map(|problem| format!("{page}, {}: {problem}", view.name)));
        }
    }
    what_an_action_writes_is_text(&browser, &format!("http://{}/operations/{}", farm.admin, book.hostile))
        .await;
    println!("pictures: {}", pictures.display());
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it wants Chromium: scripts/test.sh browser"]
async fn what_is_wrong_with_a_page_is_seen() {
    const WRONG: &str = "data:text/html,<html lang=de><body style='margin:0;width:3000px'><header><li>1<li>2</header><h1>a</h1><h1>b</h1><input>\
                         <a href='/'></a><p style='color:%23aaa'>pale</p><table><thead><tr><th>1</table>\
                         <script>console.error('heard');setTimeout(()=>alert('seen'))</script>";
    let Some(browser) = Browser::start().await else { return };
    browser.look_as(LIGHT).await;
    browser.open(WRONG).await;
    let deadline = Instant::now() + PATIENCE;
    while browser.dialog().await.as_deref() != Some("seen") {
        assert!(Instant::now() < deadline, "the dialog is not seen");
        tokio::time::sleep(POLL).await;
    }
    browser.dismiss().await;
    let problems = browser.run(LOOKS).await.to_string();
    for problem in [
        "not one <main>",
        "not one <h1>",
        "language",
        "3000 wide",
        "the navigation has 2 rows",
        "a field without a label",
        "a link without a text",
        "p. has a contrast of 2.3",
    ] {
        assert!(problems.contains(problem), "{problem}: {problems}");
    }
    assert!(browser.complaints().await.iter().any(|complaint| complaint.contains("heard")));
    assert!(!keyboard(&browser).await.is_empty());
}

async fn channels(farm: &Farm) -> Vec<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", farm.workers)).unwrap();
    let mut channels = Vec::new();
    for _ in 0..WORKERS {
        channels.push(endpoint.connect().await.unwrap());
    }
    channels
}

/// What an operator does: some results are audited, and one worker is taken out.
async fn operate(farm: &Farm) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |path: &str, body: String| {
        let request = http.post(format!("http://{}{path}", farm.admin)).header("croft-admin", "1");
        let answer = request.body(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    };
    post("/audit", format!("{{\"sample\":{AUDITED}}}")).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let audits: serde_json::Value = serde_json::from_str(&farm.page("/audit.json").await.1).unwrap();
        if audits["waiting"] == 0 && audits["running"] == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "the audits do not end: {audits}");
        tokio::time::sleep(POLL).await;
    }
    post(&format!("/workers/{}/cordon", "02".repeat(16)), "{\"reason\":\"new disk\"}".to_owned()).await;
}

/// An empty directory for the pictures, beside what else is built.
fn pictures() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("browser");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn sights(book: &Book) -> Vec<Sight> {
    let of = |name, path: &str| Sight { name, path: path.to_owned() };
    let operation = |name, id: &str, rest: &str| Sight { name, path: format!("/operations/{id}{rest}") };
    let result = |digest: &Digest| format!("/ac/sha256/{}-{}", digest.hex(), digest.size());
    vec![
        of("overview", "/"),
        of("workers", "/workers"),
        of("queue", "/queue"),
        of("operations", "/operations"),
        of("operations-last", "/operations?page=102"),
        of("operations-failed", "/operations?state=failed"),
        of("operations-searched", "/operations?q=storage%2Findex"),
        of("operations-none", "/operations?q=there+is+no+such+target"),
        operation("done", &book.done, ""),
        operation("failed", &book.failed, ""),
        operation("cached", &book.cached, ""),
        operation("running", &book.running, ""),
        operation("waiting", &book.waiting, ""),
        operation("hostile", &book.hostile, ""),
        operation("inputs", &book.large, "/inputs"),
        operation("inputs-last", &book.large, "/inputs?page=21"),
        operation("input", &book.large, "/inputs/generated_file_00001.h"),
        operation("input-binary", &book.hostile, "/inputs/binary"),
        operation("outputs", &book.hostile, "/outputs"),
        operation("output", &book.done, &format!("/outputs/{OUTPUT}")),
        operation("stdout", &book.large, "/stdout"),
        operation("stdout-running", &book.running, "/stdout"),
        of("invocations", "/invocations"),
        of("invocation", &format!("/invocations/{}", book.invocation)),
        of("invocation-searched", &format!("/invocations/{}?q=net&state=failed", book.invocation)),
        of("invocations-none", "/invocations?q=nobody&outcome=succeeded"),
        of("action-cache", "/ac"),
        of("result", &result(&book.action)),
        of("storage", "/storage"),
        of("audits", "/audit"),
        of("configuration", "/configuration"),
        of("not-found", "/no-such-page"),
        of("no-address", "/operations?page=x"),
    ]
}

/// Opens a page and looks at it in every view. Returns the milliseconds until it was drawn.
async fn inspect(
    browser: &Browser,
    (sight, address): (&Sight, &str),
    pictures: &Path,
    problems: &mut Vec<String>,
) -> f64 {
    let mut add = |problem: String| problems.push(format!("{}: {problem}", sight.name));
    browser.look_as(LIGHT).await;
    browser.open(address).await;
    let paint = browser.first_paint().await;
    if paint > PAINT_MAX_MS {
        add(format!("it is drawn after {paint:.0} ms"));
    }
    for view in VIEWS {
        browser.look_as(view).await;
        let found = browser.run(LOOKS).await;
        found
            .as_array()
            .unwrap()
            .iter()
            .for_each(|problem| add(format!("{}, {}", view.name, problem.as_str().unwrap())));
        browser.picture(view, &pictures.join(format!("{}-{}.png", sight.name, view.name))).await;
    }
    // A page that says that there is none is answered with the code for it, which the browser notes.
    let is_expected = |complaint: &String| {
        complaint.starts_with(address) && complaint.contains("the server responded with a status of 40")
    };
    browser.complaints().await.into_iter().filter(|complaint| !is_expected(complaint)).for_each(&mut add);
    if let Some(text) = browser.dialog().await {
        add(format!("a dialog says {text}"));
    }
    paint
}

/// From the beginning of a page the keyboard goes to the link that skips the navigation, and through the navigation.
async fn keyboard(browser: &Browser) -> Vec<String> {
    const STOPS: [&str; 10] = [
        "#main",
        "/",
        "/workers",
        "/queue",
        "/operations",
        "/invocations",
        "/ac",
        "/storage",
        "/audit",
        "/configuration",
    ];
    let mut problems = Vec::new();
    for stop in STOPS {
        browser.tab().await;
        let focus = browser.run(FOCUS).await;
        if focus[0] != stop {
            problems.push(format!("the keyboard is at {} instead of {stop}", focus[0]));
        }
        if focus[1] != true {
            problems.push(format!("nobody sees that the keyboard is at {stop}"));
        }
    }
    problems
}

async fn what_an_action_writes_is_text(browser: &Browser, address: &str) {
    browser.open(address).await;
    let text = browser.run("return document.querySelector('main').innerText").await;
    assert!(text.as_str().unwrap().matches(TAG).count() >= 5, "{text}");
    let elements =
        browser.run("return document.querySelectorAll('main script, main img, main b').length").await;
    assert_eq!(elements, 0, "{text}");
    assert_eq!(browser.run("return document.title").await.as_str().unwrap().matches(TAG).count(), 2);
}
