//! What people see of builds: how invocations and their actions are searched, and what is among them.

use std::time::{Duration, Instant};

use croft::digest::Digest;
use reqwest::StatusCode;

use crate::browser::{Browser, INVOCATION, execute, look_up};
use crate::client::{Client, Inputs, shell};
use crate::farm::Farm;

/// How long something may take that takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_build_of_which_all_is_cached_has_its_actions_and_they_are_searched() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let mut actions = Vec::new();
    for word in ["one", "two"] {
        let action = client.action(&shell(&format!("echo {word}"), &[]), &Inputs::default(), |_| {}).await;
        execute(&client, &action, &format!("//{word}")).await;
        assert!(look_up(&client, &action, ("again", &format!("//{word}"))).await);
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
async fn what_a_build_missed_is_named_once_whether_it_was_executed_here_or_not() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let browser = Browser::new(&farm);
    let action = client.action(&shell("echo missed", &[]), &Inputs::default(), |_| {}).await;
    let address = format!("/ac/sha256/{}-{}", action.hex(), action.size());
    for invocation in ["elsewhere", INVOCATION] {
        assert!(!look_up(&client, &action, (invocation, "//missed")).await);
    }
    execute(&client, &action, "//missed").await;
    let page = browser.page("/invocations/elsewhere").await;
    assert!(page.contains("Not in the action cache") && page.contains("missed</td>"), "{page}");
    assert!(page.contains(&address) && page.contains("1 action, the first one first"), "{page}");
    let page = browser.page("/invocations/%3Ci%3E0c9f5a8e%3C%2Fi%3E").await;
    assert!(page.contains("Not in the action cache") && page.contains("/operations/"), "{page}");
    assert!(!page.contains(&address) && page.contains("1 action, the first one first"), "{page}");
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
    let found = browser.page(&format!("/operations?q={}", &action.hex()[..12])).await;
    assert!(found.contains("2 operations,") && found.contains("audit of <code>"), "{found}");
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
async fn what_a_command_prints_has_its_colours() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let script = "printf '\\033[1;31m<i>\\033[0m\\377\\r\\n' >&2; exit 1";
    let action = client.action(&shell(script, &[]), &Inputs::default(), |_| {}).await;
    let (id, _) = execute(&client, &action, "//a").await;
    for path in [format!("/operations/{id}"), format!("/operations/{id}/stderr")] {
        let page = Browser::new(&farm).page(&path).await;
        assert!(page.contains("<span class=\"bold colour-1\">&lt;i&gt;</span>\u{fffd}\n</pre>"), "{page}");
    }
}
