//! The pages for people: every one of them as a browser gets it, with actions that try to get more than text into them.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use croft::digest::Digest;
use croft::proto::longrunning::CancelOperationRequest;
use croft::proto::rev2::{
    self, Action, Directory, ExecuteResponse, FileNode, GetActionResultRequest, RequestMetadata, ToolDetails,
};
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Client as Http, Method, StatusCode};
use tonic::Request;

use crate::client::{Client, Inputs, code, finish, shell};
use crate::farm::Farm;

/// How long something may take that takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an action writes wherever it can. None of it may be on a page as it is.
const TAG: &str = "<script>alert(1)</script>";
const IMAGE: &str = "<img src=x onerror=alert(2)>";

const INVOCATION: &str = "<i>0c9f5a8e</i>";

struct Browser {
    http: Http,
    farm: String,
}

struct Page {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Browser {
    fn new(farm: &Farm) -> Self {
        croft::tls::install();
        let http = Http::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { http, farm: format!("http://{}", farm.admin) }
    }

    async fn get(&self, path: &str) -> Page {
        let answer = self.http.get(format!("{}{path}", self.farm)).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Page { status, headers, body: String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned() }
    }

    /// A page that must be there, and be one.
    async fn page(&self, path: &str) -> String {
        let page = self.get(path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        page.check(path);
        page.body
    }
}

impl Page {
    fn header(&self, name: &str) -> &str {
        let name: HeaderName = name.parse().unwrap();
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn is_html(&self) -> bool {
        self.header("content-type").starts_with("text/html")
    }

    /// What holds for every answer, and for every page.
    fn check(&self, path: &str) {
        let policy = self.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(self.header("x-content-type-options"), "nosniff", "{path}");
        assert!(!self.header("referrer-policy").is_empty(), "{path}");
        if !self.is_html() {
            return;
        }
        for wrong in ["<script>", "<img", "onerror=alert(2)>", "<i>", " style="] {
            assert!(!self.body.contains(wrong), "{path} has {wrong}: {}", self.body);
        }
        for right in ["<!DOCTYPE html>", "<html lang=\"en\">", "name=\"viewport\"", "href=\"#main\""] {
            assert_eq!(self.body.matches(right).count(), 1, "{path} and {right}: {}", self.body);
        }
        // One is a picture, or where it has links a group of these.
        for drawing in self.body.split("<svg").skip(1) {
            let (tag, inside) = drawing.split_once('>').unwrap();
            assert!(tag.contains("role=\"img\"") || tag.contains("role=\"group\""), "{path}: {tag}");
            assert!(inside.starts_with("<title>"), "{path}: {tag}");
        }
        let drawings = self.body.matches("<svg").count();
        assert!(self.body.matches("<title>").count() > drawings, "{path}: the page has a title of its own");
        assert_eq!(self.body.matches("<h1>").count(), 1, "{path}: {}", self.body);
        let ids: Vec<&str> = values(&self.body, " id=\"");
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "{path}: {ids:?}");
    }

    /// The addresses on the same farm that the page names.
    fn links(&self, path: &str) -> Vec<String> {
        let base = path.split('?').next().unwrap();
        let attributes = [" href=\"", " src=\"", " data-follow=\""];
        let found = attributes.iter().flat_map(|attribute| values(&self.body, attribute));
        let found = found.map(|link| link.replace("&amp;", "&"));
        let inside = found.filter(|link| link.starts_with(['/', '?']));
        inside.map(|link| if link.starts_with('?') { format!("{base}{link}") } else { link }).collect()
    }
}

fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    html.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

fn with_metadata<T>(message: T, (invocation, target): (&str, &str)) -> Request<T> {
    let metadata = RequestMetadata {
        tool_details: Some(ToolDetails { tool_name: format!("bazel{TAG}"), tool_version: "8".into() }),
        tool_invocation_id: invocation.into(),
        target_id: target.into(),
        action_mnemonic: format!("Genrule{IMAGE}"),
        ..RequestMetadata::default()
    };
    crate::client::with_metadata(message, &metadata)
}

/// Executes an action as a client that says what it builds. Returns the identifier of the operation, too.
async fn execute(client: &Client, action: &Digest, target: &str) -> (String, ExecuteResponse) {
    let request = with_metadata(client.request(action), (INVOCATION, target));
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    let mut last = operations.message().await.unwrap().unwrap();
    let id = last.name.rsplit('/').next().unwrap().to_owned();
    while !last.done {
        last = operations.message().await.unwrap().unwrap();
    }
    (id, crate::client::response(&last))
}

/// An action that writes tags wherever it can.
async fn hostile(client: &Client, exit_code: u8) -> Digest {
    let script = format!(
        "echo '{TAG}'; echo '{IMAGE}' >&2; mkdir -p 'out/<i>'; echo '{TAG}' > '{IMAGE}'; echo x > 'out/<i>/a#?b'; \
         ln -s '{IMAGE}' 'out/l'; exit {exit_code}"
    );
    let mut command = shell(&script, &[IMAGE, "out"]);
    command.arguments.extend([TAG.to_owned(), "it's\u{202e}".to_owned()]);
    command
        .environment_variables
        .push(rev2::command::EnvironmentVariable { name: "TAG".into(), value: TAG.into() });
    let inputs = Inputs::default().file("<i>.txt", "<i>&amp;</i>").file("binary", &b"\0\x01"[..]);
    client.action(&command, &inputs, |_| {}).await
}

/// Follows every link from `/`. Returns what was found.
async fn crawl(browser: &Browser, start: &[String]) -> BTreeSet<String> {
    const PAGES_MAX: usize = 400;
    let mut waiting: VecDeque<String> = ["/".to_owned()].into_iter().chain(start.iter().cloned()).collect();
    let mut seen: BTreeSet<String> = waiting.iter().cloned().collect();
    while let Some(path) = waiting.pop_front() {
        let page = browser.get(&path).await;
        let is_fine = matches!(page.status, 200 | 303);
        assert!(is_fine, "{path}: {} {}", page.status, page.body);
        page.check(&path);
        if page.is_html() {
            for link in page.links(&path) {
                let link = link.split('#').next().unwrap().to_owned();
                if seen.insert(link.clone()) {
                    waiting.push_back(link);
                }
            }
        }
        assert!(seen.len() < PAGES_MAX, "there is no end of pages: {seen:?}");
    }
    seen
}

#[tokio::test]
async fn every_page_is_whole_and_what_actions_write_is_text_on_it() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let (good, bad) = (hostile(&client, 0).await, hostile(&client, 3).await);
    let ask = GetActionResultRequest {
        action_digest: Some(good.to_proto()),
        digest_function: good.function().to_proto().into(),
        ..Default::default()
    };
    let asked = client.cache.clone().get_action_result(with_metadata(ask.clone(), (INVOCATION, TAG))).await;
    assert_eq!(asked.unwrap_err().code(), tonic::Code::NotFound);
    let (id, response) = execute(&client, &good, TAG).await;
    let result = response.result.unwrap();
    assert_eq!(result.exit_code, 0, "{}", String::from_utf8_lossy(&result.stderr_raw));
    let (failed, response) = execute(&client, &bad, TAG).await;
    assert_eq!(response.result.unwrap().exit_code, 3);
    let coloured = client
        .action(
            &shell("printf '\\033[1;31m<i>\\033[0m\\377\\r\\n' >&2; exit 1", &[]),
            &Inputs::default(),
            |_| {},
        )
        .await;
    let (coloured, _) = execute(&client, &coloured, TAG).await;
    let page = browser.page(&format!("/operations/{coloured}")).await;
    assert!(page.contains("<span class=\"bold colour-1\">&lt;i&gt;</span>\u{fffd}\n</pre>"), "{page}");
    let (cached, response) = execute(&client, &good, TAG).await;
    assert!(response.cached_result);
    client.cache.clone().get_action_result(with_metadata(ask, (INVOCATION, TAG))).await.unwrap();

    let pages: Vec<String> = [&id, &failed, &cached].map(|id| format!("/operations/{id}")).into();
    let seen = crawl(&browser, &pages).await;
    let expected =
        ["/workers", "/queue", "/operations", "/invocations", "/ac", "/storage", "/audit", "/configuration"];
    let places = ["inputs", "outputs", "outputs/out", "outputs/out/l", "outputs/out/%3Ci%3E/a%23%3Fb"];
    let below = places.map(|place| format!("/operations/{id}/{place}"));
    for path in expected.into_iter().map(str::to_owned).chain(below) {
        assert!(seen.contains(&path), "{path} is not linked: {seen:?}");
    }
    assert!(seen.iter().any(|path| path.starts_with("/invocations/%3Ci%3E")), "{seen:?}");
    assert!(seen.iter().any(|path| path.starts_with("/ac/sha256/")), "{seen:?}");

    let page = browser.page(&format!("/operations/{id}")).await;
    for text in [
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&lt;img src=x onerror=alert(2)&gt;",
        "$'it\\'s\\U0000202e'",
        "no entry under this key",
        "succeeded",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    let page = browser.page(&format!("/operations/{failed}")).await;
    assert!(page.contains("failed (3)") && page.contains("/outputs"), "{page}");
    let page = browser.page(&format!("/operations/{cached}")).await;
    assert!(page.contains("The action cache had the result"), "{page}");
    let invocation = seen.iter().find(|path| path.starts_with("/invocations/")).unwrap();
    let page = browser.page(invocation).await;
    for text in [
        "2 actions (50.0 %)",
        "1 succeeded, 1 failed",
        "Waterfall",
        "Failures",
        "5 actions, the first one first",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    let download = browser
        .get(&format!("/operations/{id}/outputs/{}?download=1", "%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E"))
        .await;
    assert_eq!((download.status, download.body.trim()), (200, TAG));
    assert!(download.header("content-disposition").starts_with("attachment;"));
    assert_eq!(download.header("content-type"), "application/octet-stream");
    assert!(download.header("content-security-policy").contains("sandbox"));
}

/// What an invocation looks up in the action cache itself.
async fn look_up(client: &Client, action: &Digest, named: (&str, &str)) {
    let ask = GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        digest_function: action.function().to_proto().into(),
        ..Default::default()
    };
    client.cache.clone().get_action_result(with_metadata(ask, named)).await.unwrap();
}

#[tokio::test]
async fn a_build_of_which_all_is_cached_has_its_actions_and_they_are_searched() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let mut actions = Vec::new();
    for word in ["one", "two"] {
        let action = client.action(&shell(&format!("echo {word}"), &[]), &Inputs::default(), |_| {}).await;
        execute(&client, &action, &format!("//{word}")).await;
        look_up(&client, &action, ("again", &format!("//{word}"))).await;
        actions.push(action);
    }
    let page = browser.page("/invocations/again").await;
    let address = |action: &Digest| format!("/ac/sha256/{}-{}", action.hex(), action.size());
    for text in [
        "2 actions (100.0 %)",
        "2 actions, the first one first",
        &address(&actions[0]),
        &address(&actions[1]),
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    let digest = &actions[1].hex()[..20];
    for query in [
        "q=two",
        &format!("q={digest}"),
        &format!("q={}%2F{}&state=cached", actions[1].hex(), actions[1].size()),
    ] {
        let page = browser.page(&format!("/invocations/again?{query}")).await;
        assert!(
            page.contains(&address(&actions[1])) && !page.contains(&address(&actions[0])),
            "{query}: {page}"
        );
    }
    let page = browser.page("/invocations/again?state=failed").await;
    assert!(page.contains("No action matches") && page.contains("href=\"?#actions\""), "{page}");
    let found = browser.page(&format!("/operations?q={digest}")).await;
    assert!(found.contains("1 operation,") && found.contains("//two"), "{found}");
    // The page of the result leads back to what made it.
    let result = browser.page(&address(&actions[1])).await;
    assert!(result.contains(&format!("/operations?q={}", actions[1].hex())), "{result}");
}

#[tokio::test]
async fn invocations_are_searched_and_the_farms_own_are_left_out() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    for page in ["/", "/invocations", "/operations"] {
        assert!(browser.page(page).await.contains("--remote_executor="), "{page} says how to begin");
    }
    let action = client.action(&shell("true", &[]), &Inputs::default(), |_| {}).await;
    execute(&client, &action, "//a").await;
    let request = browser.http.post(format!("{}/audit", browser.farm)).header("croft-admin", "1");
    assert_eq!(request.body("{\"sample\":1}").send().await.unwrap().status(), StatusCode::OK);
    let deadline = Instant::now() + PATIENCE;
    while !browser.page("/operations").await.contains(">audit</a>") {
        assert!(Instant::now() < deadline, "nothing is audited");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let list = browser.page("/invocations").await;
    assert!(list.contains("1 invocation,") && !list.contains("/invocations/croft-audit"), "{list}");
    assert!(list.contains("href=\"?audits=shown\""), "{list}");
    let list = browser.page("/invocations?audits=shown").await;
    assert!(list.contains("2 invocations,") && list.contains("audits of the farm"), "{list}");
    let audits = browser.page("/invocations/croft-audit").await;
    assert!(audits.contains("<h1>Audits of the farm</h1>") && audits.contains("href=\"/audit\""), "{audits}");
    assert!(!browser.page("/").await.contains("croft-audit"));
    for (query, count) in [("q=bazel", 1), ("q=nobody", 0), ("outcome=unknown", 1), ("outcome=failed", 0)] {
        let list = browser.page(&format!("/invocations?{query}")).await;
        assert_eq!(list.matches("href=\"/invocations/%3Ci").count(), count, "{query}: {list}");
        assert_eq!(list.contains("No invocation matches"), count == 0, "{query}: {list}");
    }
}

#[tokio::test]
async fn what_is_not_there_and_what_is_no_address_is_told_on_a_page() {
    let farm = Farm::start();
    let browser = Browser::new(&farm);
    let unknown = "0".repeat(32);
    let gone = [
        "/no-such-page".to_owned(),
        format!("/operations/{unknown}"),
        format!("/operations/{unknown}/inputs"),
        format!("/operations/{unknown}/stdout?raw=1"),
        "/operations/x".to_owned(),
        "/invocations/x".to_owned(),
        format!("/ac/sha256/{}-1", "0".repeat(64)),
    ];
    for path in gone {
        let page = browser.get(&path).await;
        assert_eq!((page.status, page.is_html()), (404, true), "{path}: {}", page.body);
        page.check(&path);
    }
    for (path, sentence) in [
        ("/operations?page=x", "`page` is `x`, not a number"),
        ("/operations?page=0", "the first one is 1"),
        ("/operations?state=odd", "not one of `queued`"),
        ("/operations?stat=queued", "`stat` is no key of this page"),
        ("/operations?q=1&q=2", "`q` is there twice"),
        ("/invocations?page=-1", "not a number"),
        ("/invocations?outcome=odd", "not one of `under way`"),
        ("/ac?digest=x", "the path is not"),
        ("/ac/x", "the path is not"),
    ] {
        let page = browser.get(path).await;
        assert_eq!((page.status, page.is_html()), (400, true), "{path}: {}", page.body);
        assert!(page.body.contains(sentence), "{path}: {}", page.body);
        page.check(path);
    }
    assert_eq!(browser.get("/operations?page=7").await.status, 200, "an empty page of a short list");
}

#[tokio::test]
async fn a_large_input_tree_is_paged() {
    const FILES: usize = 10_000;
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let content = client.put("x").await;
    let node = |number: usize| FileNode {
        name: format!("file-{number:05}"),
        digest: Some(content.to_proto()),
        ..FileNode::default()
    };
    let root =
        client.put_message(&Directory { files: (0..FILES).map(node).collect(), ..Default::default() }).await;
    let command = client.put_message(&shell("true", &[])).await;
    let action = Action {
        command_digest: Some(command.to_proto()),
        input_root_digest: Some(root.to_proto()),
        ..Action::default()
    };
    let action = client.put_message(&action).await;
    let (id, response) = execute(&client, &action, "//large").await;
    assert_eq!(code(&response), 0);
    let first = browser.page(&format!("/operations/{id}/inputs")).await;
    assert!(
        first.contains("10,000 entries") && first.contains("file-00499") && !first.contains("file-00500")
    );
    assert!(first.contains("?page=20") && first.len() < 200_000, "{}", first.len());
    let last = browser.page(&format!("/operations/{id}/inputs?page=20")).await;
    assert!(last.contains("file-09999") && last.contains("page 20 of 20"), "{last}");
}

#[tokio::test]
async fn a_result_is_looked_up_and_deleted_by_our_own_page_alone() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let action = client.action(&shell("echo hello", &[]), &Inputs::default(), |_| {}).await;
    execute(&client, &action, "//a").await;
    let found = browser
        .get(&format!("/ac?instance=&function=sha256&digest={}%2F{}", action.hex(), action.size()))
        .await;
    let path = found.header("location").to_owned();
    assert_eq!(found.status, 303, "{}", found.body);
    let page = browser.page(&path).await;
    assert!(page.contains("echo hello") && page.contains("data-method=\"DELETE\""), "{page}");
    assert_eq!(values(&page, "data-url=\""), [path.as_str()]);
    let delete = async |origin: &str| {
        let request = browser.http.request(Method::DELETE, format!("{}{path}", browser.farm));
        request.header("croft-admin", "1").header("origin", origin).send().await.unwrap().status()
    };
    for other in ["http://evil.example", "http://127.0.0.1:1", "null"] {
        assert_eq!(delete(other).await, StatusCode::FORBIDDEN, "{other}");
    }
    assert_eq!(browser.get(&path).await.status, 200);
    assert_eq!(delete(&browser.farm).await, StatusCode::NO_CONTENT);
    assert_eq!(browser.get(&path).await.status, 404);
}

#[tokio::test]
async fn what_a_command_prints_is_read_while_it_runs() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let script = format!("echo '{TAG}'; sleep 600");
    let action = client.action(&shell(&script, &[]), &Inputs::default(), |_| {}).await;
    let request = with_metadata(client.request(&action), (INVOCATION, "//live"));
    let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
    let name = operations.message().await.unwrap().unwrap().name;
    let path = format!("/operations/{}", name.rsplit('/').next().unwrap());
    let raw = async |offset: usize| browser.get(&format!("{path}/stdout?raw=1&offset={offset}")).await;
    let deadline = Instant::now() + PATIENCE;
    while raw(0).await.body != format!("{TAG}\n") {
        assert!(Instant::now() < deadline, "nothing is printed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let rest = raw(TAG.len()).await;
    assert_eq!(
        (rest.body.as_str(), rest.header("croft-state"), rest.header("croft-attempt")),
        ("\n", "running", "1")
    );
    assert!(rest.header("content-type").starts_with("text/plain"));
    for path in [path.clone(), format!("{path}/stdout")] {
        let page = browser.page(&path).await;
        assert!(page.contains("data-follow=\"") && page.contains("&lt;script&gt;alert(1)"), "{page}");
    }
    let page = browser.page(&path).await;
    assert!(page.contains("attempt 1 runs on worker"), "{page}");
    assert!(page.contains("<td>execution</td>") && page.contains(" so far</td>"), "{page}");
    let list = browser.page("/operations?state=executing&q=//live").await;
    assert!(list.contains(&path), "{list}");
    let cancel = CancelOperationRequest { name };
    client.operations.clone().cancel_operation(cancel).await.unwrap();
    assert_ne!(code(&finish(&mut operations).await.unwrap()), 0);
    assert_eq!(raw(0).await.header("croft-state"), "ended");
}

#[tokio::test]
async fn clients_get_links_where_the_configuration_says_what_to() {
    let farm = Farm::start_with(&[("CROFT_PAGES__PUBLIC_URL", "https://farm.example.org/")]);
    let client = Client::new(&farm).await;
    let action = client.action(&shell("exit 4", &[]), &Inputs::default(), |_| {}).await;
    let (id, response) = execute(&client, &action, "//a").await;
    assert_eq!(response.message, format!("https://farm.example.org/operations/{id}"));
    let configuration = Browser::new(&farm).page("/configuration").await;
    assert!(configuration.contains("https://farm.example.org/"), "{configuration}");
    let plain = Farm::start();
    let client = Client::new(&plain).await;
    let response = client.run("exit 4", &Inputs::default(), &[]).await;
    assert_eq!(response.message, "");
}

#[tokio::test]
async fn style_and_script_are_sent_once() {
    let farm = Farm::start();
    let browser = Browser::new(&farm);
    for (path, kind) in [("/assets/style.css", "text/css"), ("/assets/pages.js", "text/javascript")] {
        let first = browser.get(path).await;
        first.check(path);
        assert!(first.status == 200 && first.header("content-type").starts_with(kind), "{path}");
        let request = browser.http.get(format!("{}{path}", browser.farm));
        let again = request.header("if-none-match", first.header("etag")).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{path}");
    }
    let page = browser.get("/").await;
    assert_eq!(page.header("cache-control"), "no-store");
}
