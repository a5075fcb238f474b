//! Images that a worker offers: an action names one and sees its root.

use croft::proto::rev2::{self, Action};
use tonic::Code;

use crate::client::{Client, Inputs, code, message, shell, stdout};
use crate::closure::command;
use crate::farm::Farm;
use crate::toolchain::Toolchain;

const IMAGE: &str = "docker://registry.example/tools@sha256:0b5c";

fn in_image(image: &str) -> impl FnOnce(&mut Action) {
    let property = rev2::platform::Property { name: "container-image".into(), value: image.into() };
    move |action| action.platform = Some(rev2::Platform { properties: vec![property] })
}

#[tokio::test]
async fn an_image_picks_the_root_of_an_action() {
    let (Some(one), Some(other)) = (Toolchain::new("one"), Toolchain::new("other")) else { return };
    let images = format!("{{\"{IMAGE}\"={},other={}}}", one.configuration(), other.configuration());
    let farm = Farm::start_with(&[("CROFT_WORKER__IMAGES", &images)]);
    let client = Client::new(&farm).await;
    for (toolchain, image, name) in [(&one, IMAGE, "one"), (&other, "other", "other")] {
        let command = command(toolchain, "cat $PATH/../name; test ! -e /usr/share");
        let action = client.action(&command, &Inputs::default(), in_image(image)).await;
        let response = client.execute(client.request(&action)).await.unwrap();
        let result = response.result.as_ref().unwrap();
        assert_eq!((result.exit_code, stdout(&response).as_str()), (0, name), "{response:?}");
    }
    let action = client.action(&shell("test -e /usr/share", &[]), &Inputs::default(), |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(response.result.unwrap().exit_code, 0, "without an image it is the worker's own root");
}

#[tokio::test]
async fn an_image_that_no_worker_offers_is_answered_with_its_name() {
    let environment =
        [("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "1s"), ("CROFT_WORKER__IMAGES", "{\"known\"=\"host\"}")];
    let farm = Farm::start_with(&environment);
    let client = Client::new(&farm).await;
    let action = client.action(&shell("true", &[]), &Inputs::default(), in_image("unknown")).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::FailedPrecondition as i32);
    assert!(message(&response).contains("container-image"), "{response:?}");
}
