//! How many leases a worker holds, whoever does not answer.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_nobody_acknowledges_takes_on_no_more_than_it_can_remember() {
    let mut farm = Farm::start().await;
    let absent = Function::Sha256.hash(b"absent").to_proto();
    let most = croft::proto::worker::leases_max(2);
    for _ in 0..=most {
        farm.start_action(absent.clone(), absent.clone(), 10).await;
        if farm.attempts <= u32::try_from(most).expect("small") {
            farm.unacknowledged().await;
        }
    }
    farm.reconnect().await;
    assert_eq!(farm.connection.hello.leases.len(), most + 1);
    for _ in 0..most {
        farm.finished().await;
    }
    let last = Lease { execution: Bytes::from_static(&[7; 16]), attempt: farm.attempts };
    assert_eq!(farm.finished().await.lease, Some(last));
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_never_holds_more_than_it_may_name_when_it_comes_back() {
    let mut farm = Farm::start().await;
    let absent = Function::Sha256.hash(b"absent").to_proto();
    let most = croft::proto::worker::leases_max(2);
    for _ in 1..most {
        farm.start_action(absent.clone(), absent.clone(), 10).await;
        farm.unacknowledged().await;
    }
    let mut leases = Vec::new();
    for _ in 0..most {
        leases.push(farm.start_script("sleep 600", |_| {}).await);
    }
    for lease in leases {
        farm.tell(FromScheduler::Kill(Kill { lease: Some(lease) })).await;
    }
    for _ in 0..most {
        assert_eq!(farm.unacknowledged().await.outcome, Some(Outcome::Killed(true)));
    }
    for _ in 0..most {
        farm.start_action(absent.clone(), absent.clone(), 10).await;
    }
    // The scheduler waits for the word that nothing of this one runs, so the worker has taken all starts before.
    let stray = Lease { execution: Bytes::from_static(&[8; 16]), attempt: 1 };
    farm.tell(FromScheduler::Kill(Kill { lease: Some(stray.clone()) })).await;
    while farm.unacknowledged().await.lease.as_ref() != Some(&stray) {}
    farm.reconnect().await;
    let held = farm.connection.hello.leases.len();
    assert!(held <= 2 * most, "{held} leases: no scheduler would take the worker back");
    farm.stop().await;
}
