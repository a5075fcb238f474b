//! The pages for people: every one of them as a browser gets it, with actions that try to get more than text into them.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use croft::digest::Digest;
use croft::proto::longrunning::CancelOperationRequest;
use croft::proto::rev2::{self, Action, Directory, FileNode};
use reqwest::{Method, StatusCode};

use crate::browser::{Browser, IMAGE, INVOCATION, TAG, execute, look_up, values, with_metadata};
use crate::client::{Client, Inputs, code, finish, shell};
use crate::farm::Farm;

/// How long something may take that takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

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
    assert!(!look_up(&client, &good, (INVOCATION, TAG)).await);
    let (id, response) = execute(&client, &good, TAG).await;
    let result = response.result.unwrap();
    assert_eq!(result.exit_code, 0, "{}", String::from_utf8_lossy(&result.stderr_raw));
    let (failed, response) = execute(&client, &bad, TAG).await;
    assert_eq!(response.result.unwrap().exit_code, 3);
    let (cached, response) = execute(&client, &good, TAG).await;
    assert!(response.cached_result);
    assert!(look_up(&client, &good, (INVOCATION, TAG)).await);

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
        "4 actions, the first one first",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    browser.page(&format!("{invocation}?q=nothing+has+this+name")).await;
    let download = browser
        .get(&format!("/operations/{id}/outputs/{}?download=1", "%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E"))
        .await;
    assert_eq!((download.status, download.body.trim()), (200, TAG));
    assert!(download.header("content-disposition").starts_with("attachment;"));
    assert_eq!(download.header("content-type"), "application/octet-stream");
    assert!(download.header("content-security-policy").contains("sandbox"));
}

#[tokio::test]
async fn who_waits_for_an_action_of_somebody_else_has_the_operation_in_their_own_invocation() {
    // Without a worker both wait.
    let farm = Farm::start_with(&[("CROFT_ROLES", "[\"cas\", \"scheduler\"]")]);
    let (client, browser) = (Client::new(&farm).await, Browser::new(&farm));
    let action = client.action(&shell("true", &[]), &Inputs::default(), |_| {}).await;
    let mut waiting = Vec::new();
    for name in ["build-a", "build-b"] {
        let request = with_metadata(client.request(&action), (name, name));
        let mut operations = client.execution.clone().execute(request).await.unwrap().into_inner();
        assert!(!operations.message().await.unwrap().unwrap().done);
        waiting.push(operations);
    }
    for (own, other) in [("build-a", "build-b"), ("build-b", "build-a")] {
        let page = browser.page(&format!("/invocations/{own}")).await;
        assert!(page.contains(own) && !page.contains(other), "{page}");
        assert!(page.contains("queued") && page.contains("1: 0 succeeded"), "{page}");
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
        assert!(page.body.contains("On to: <a href=\"/"), "{path}: {}", page.body);
        page.check(&path);
    }
    for path in [format!("/operations/{unknown}"), "/invocations/x".to_owned()] {
        let page = browser.get(&path).await.body;
        assert!(
            page.contains("this process keeps what happened since 2") && page.contains(" UTC, "),
            "{page}"
        );
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
async fn of_a_command_that_prints_very_much_the_page_says_that_it_shows_the_beginning() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let script = "yes 0123456 | head -c 2000000; sleep 600";
    let action = client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await;
    let mut operations =
        client.execution.clone().execute(client.request(&action)).await.unwrap().into_inner();
    let name = operations.message().await.unwrap().unwrap().name;
    let path = format!("/operations/{}/stdout", name.rsplit('/').next().unwrap());
    let deadline = Instant::now() + PATIENCE;
    let raw = async |offset: usize| browser.get(&format!("{path}?raw=1&offset={offset}")).await;
    while raw(0).await.header("croft-state") != "cut" {
        assert!(Instant::now() < deadline, "nothing is left out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((raw((1 << 20) - 8).await.body.as_str(), raw(1 << 20).await.body.as_str()), ("0123456\n", ""));
    // Without a script one goes on page by page.
    let (first, second) = (64 << 10, 128 << 10);
    let page = browser.page(&path).await;
    assert!(
        page.contains("only this beginning") && page.contains(&format!("stdout?offset={first}")),
        "{page}"
    );
    let page = browser.page(&format!("{path}?offset={first}")).await;
    assert!(page.contains("0123456") && page.contains(&format!("stdout?offset={second}")), "{page}");
    let cancel = CancelOperationRequest { name };
    client.operations.clone().cancel_operation(cancel).await.unwrap();
    assert_ne!(code(&finish(&mut operations).await.unwrap()), 0);
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
