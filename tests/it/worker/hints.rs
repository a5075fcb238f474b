//! What a scheduler says that a worker need not heed.

use croft::proto::worker::Warm;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_an_unknown_kind_is_ignored() {
    let mut farm = Farm::start().await;
    // What a newer kind of message looks like once it is decoded.
    farm.connection.to.send(Ok(SchedulerMessage { message: None })).await.expect("connected");
    assert_eq!(code(&farm.run("true", &[]).await), 0);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_cannot_be_made_ready_harm_nobody() {
    let mut farm = Farm::start().await;
    let absent = Function::Sha256.hash(b"absent").to_proto();
    let malformed = rev2::Digest { hash: "x".into(), size_bytes: -1 };
    for root in [Some(absent), Some(malformed), None] {
        // More than may wait.
        for digest_function in [0, 1, 1, 1, 1, 1, 99] {
            let warm = Warm { digest_function, input_root_digest: root.clone() };
            farm.tell(FromScheduler::Warm(warm)).await;
        }
    }
    assert_eq!(code(&farm.run("cat plain", &[]).await), 0);
    farm.stop().await;
}
