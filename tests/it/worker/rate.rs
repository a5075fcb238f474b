//! How many leases a second one worker runs.

use super::*;

/// Prints how many leases that do nothing a worker of two slots runs: `cargo test --test it lease_rate -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn lease_rate() {
    const LEASES: u32 = 600;
    const AT_ONCE: u32 = 8;
    let mut farm = Farm::start().await;
    let root = farm.put(rev2::Directory::default().encode_to_vec()).await;
    let mut commands = Vec::new();
    for number in 0..LEASES {
        let arguments = vec!["/bin/true".to_owned(), number.to_string()];
        let command = rev2::Command { arguments, ..rev2::Command::default() };
        commands.push(farm.put(command.encode_to_vec()).await);
    }
    let begin = std::time::Instant::now();
    for (number, command) in (0..).zip(commands) {
        farm.start_action(command, root.clone(), 20).await;
        if number >= AT_ONCE {
            assert_eq!(code(&farm.response().await), 0);
        }
    }
    for _ in 0..AT_ONCE {
        assert_eq!(code(&farm.response().await), 0);
    }
    println!("{:.0} leases a second", f64::from(LEASES) / begin.elapsed().as_secs_f64());
    farm.stop().await;
}
