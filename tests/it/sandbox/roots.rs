//! What the actions see of a system.

use super::*;
use crate::toolchain::Toolchain;

fn closure(toolchain: &Toolchain) -> System {
    let links = toolchain.links().into_iter().map(|(link, target)| (link.into(), target)).collect();
    System::Closure { paths: toolchain.paths(), links }
}

fn bench(roots: Vec<System>) -> Bench {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let config = Config { roots, ..config(directory.path(), 2, Scratch::Memory) };
    let groups = config.groups.clone();
    let launcher = Launcher::start(&executable(), config).expect("the sandbox starts");
    Bench { launcher, directory, limits: Limits::AMPLE, groups }
}

/// Runs `script` by the toolchain's own shell.
async fn run(bench: &Bench, name: &str, (toolchain, root): (&Toolchain, usize), script: &str) -> Outcome {
    let mut spec = bench.spec(name, &["/bin/sh", "-c", script]);
    spec.environment =
        toolchain.environment().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    spec.root = root;
    let running = bench.launcher.run(spec).await.expect("the command starts");
    bench.finish(running).await
}

#[tokio::test]
async fn a_closure_is_all_that_an_action_sees() {
    let Some(toolchain) = Toolchain::new("one") else { return };
    let bench = bench(vec![closure(&toolchain)]);
    let store = toolchain.store("").display().to_string();
    let script = format!("ls {store}; cat {store}/note {store}/tools/name; cat input");
    let outcome = run(&bench, "a", (&toolchain, 0), &script).await;
    outcome.succeeded();
    assert_eq!(outcome.stdout, "libraries\nnote\ntools\na file of its ownoneinput");
    let script =
        "ls /; echo -; ls /usr /usr/bin /bin /lib64 /etc; echo -; cat /etc/passwd; /usr/bin/env | cat";
    let outcome = run(&bench, "b", (&toolchain, 0), script).await;
    for name in ["home", "root", "os-release", "shadow", "ssl", "share", "bash"] {
        assert!(!outcome.stdout.lines().any(|line| line == name), "{name}: {}", outcome.stdout);
    }
    let etc = "/etc:\ngroup\nhostname\nhosts\nnsswitch.conf\npasswd\n";
    let usr = "/usr:\nbin\n\n/usr/bin:\nenv\n";
    assert!(outcome.stdout.contains(etc) && outcome.stdout.contains(usr), "{}", outcome.stdout);
    assert!(
        outcome.stdout.contains("croft:x:1000") && outcome.stdout.contains("PWD=/build"),
        "{}",
        outcome.stdout
    );
}

#[tokio::test]
async fn a_closure_cannot_be_changed() {
    let Some(toolchain) = Toolchain::new("one") else { return };
    let bench = bench(vec![closure(&toolchain)]);
    let store = toolchain.store("").display().to_string();
    let changes = [
        format!("echo x > {store}/tools/name"),
        format!("echo x > {store}/note"),
        format!("echo x > {store}/new"),
        "echo x > /bin/new".to_owned(),
        "echo x > /etc/passwd".to_owned(),
    ];
    for (number, script) in changes.iter().enumerate() {
        let outcome = run(&bench, &number.to_string(), (&toolchain, 0), script).await;
        outcome.failed();
        assert!(
            outcome.stderr.contains("Read-only") || outcome.stderr.contains("denied"),
            "{}",
            outcome.stderr
        );
    }
    assert_eq!(fs::read_to_string(toolchain.store("tools/name")).expect("read"), "one");
}

#[tokio::test]
async fn each_command_gets_the_root_that_it_names() {
    let (Some(one), Some(other)) = (Toolchain::new("one"), Toolchain::new("other")) else { return };
    let roots = vec![System::Directories("/".into()), closure(&one), closure(&other)];
    let bench = bench(roots);
    for (number, (toolchain, root)) in [(&one, 1), (&other, 2), (&one, 1)].into_iter().enumerate() {
        let script = "d=$PATH/../name; cat $d; ls -d /usr/share";
        let outcome = run(&bench, &number.to_string(), (toolchain, root), script).await;
        outcome.failed();
        assert_eq!(outcome.stdout, if root == 1 { "one" } else { "other" });
        assert!(outcome.stderr.contains("/usr/share"), "{}", outcome.stderr);
    }
    let script = format!("ls -d /usr/share; ls {}", one.store("").display());
    let outcome = bench.run("host", &script).await;
    outcome.failed();
    assert_eq!(outcome.stdout, "/usr/share\n");
}

#[tokio::test]
async fn an_unpacked_root_stands_in_for_the_hosts_directories() {
    let Some(toolchain) = Toolchain::new("one") else { return };
    let root = toolchain.store("outside");
    fs::create_dir(root.join("usr")).expect("mkdir");
    fs::rename(toolchain.store("tools/bin"), root.join("usr/bin")).expect("rename");
    let (loader, _) =
        toolchain.links().into_iter().find(|(link, _)| link.contains("/ld-")).expect("a loader");
    let libraries = Path::new(&loader).parent().expect("a directory").strip_prefix("/").expect("absolute");
    fs::rename(toolchain.store("libraries"), root.join("usr").join(libraries)).expect("rename");
    for name in ["bin".as_ref(), libraries] {
        std::os::unix::fs::symlink(Path::new("usr").join(name), root.join(name)).expect("link");
    }
    fs::create_dir(root.join("home")).expect("mkdir");
    let bench = bench(vec![System::Directories(root)]);
    let mut spec = bench.spec("a", &["/bin/sh", "-c", "ls /usr /usr/bin; ls -d /home || cat input"]);
    spec.environment = vec![format!("LD_LIBRARY_PATH=/{}", libraries.display())];
    let running = bench.launcher.run(spec).await.expect("the command starts");
    let outcome = bench.finish(running).await;
    outcome.succeeded();
    let expected = format!("/usr:\nbin\n{}\n\n/usr/bin:\ncat\nenv\nls\nsh\ninput", libraries.display());
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
}

#[tokio::test]
async fn a_command_that_names_no_root_is_a_fault() {
    let bench = Bench::new();
    let mut spec = bench.spec("a", &["/bin/true"]);
    spec.root = 1;
    let running = bench.launcher.run(spec).await.expect("the command starts");
    let error = running.wait().await.expect_err("no such root").to_string();
    assert!(error.contains("names no root"), "{error}");
}

#[test]
fn a_path_that_is_gone_keeps_the_sandbox_from_starting() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let gone = System::Closure { paths: vec!["/nix-of-nobody/store/x".into()], links: Vec::new() };
    let config = Config { roots: vec![gone], ..config(directory.path(), 1, Scratch::Memory) };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    let Err(error) = Launcher::start(&executable(), config) else { panic!("it must not start") };
    assert!(error.to_string().contains("a path of the closure: No such file"), "{error}");
}
