//! Is it still this architecture? Each rule is a function from a file's path and text to complaints, and a test shows that it can fail.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and says what it skips"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Folder or file of `src`, and what it may import with `crate::` beside itself and [`BASE`].
const IMPORTS: &[(&str, &[&str])] = &[
    (
        "commands",
        &[
            "server",
            "config",
            "telemetry",
            "worker",
            "web",
            "access",
            "access",
            "audit",
            "store",
            "scheduler",
        ],
    ),
    (
        "server",
        &["config", "rpc", "worker", "web", "access", "audit", "builds", "listen", "store", "scheduler"],
    ),
    ("config", &["rpc", "worker", "web", "access", "audit", "listen", "store", "scheduler", "telemetry"]),
    ("rpc", &["access", "audit", "builds", "listen", "store", "scheduler"]),
    ("worker", &["listen", "store"]),
    ("web", &["access", "audit", "builds", "listen", "store", "scheduler"]),
    ("access", &["listen"]),
    ("audit", &["store"]),
    ("builds", &["scheduler"]),
    ("listen", &[]),
    ("fuzz", &["rpc", "worker", "store", "scheduler"]),
    ("store", &[]),
    ("scheduler", &[]),
    ("telemetry", &[]),
    ("status", &[]),
    ("error", &[]),
    ("digest", &[]),
    ("proto", &[]),
    ("metrics", &[]),
    ("index", &[]),
    ("tasks", &[]),
    ("reload", &[]),
    ("credential", &[]),
    ("systemd", &[]),
    ("tally", &[]),
    ("tls", &[]),
    ("trace", &[]),
];

/// What every file may import.
const BASE: &[&str] = &[
    "status",
    "digest",
    "error",
    "index",
    "proto",
    "metrics",
    "tasks",
    "reload",
    "credential",
    "systemd",
    "tally",
    "tls",
    "trace",
];

/// Outside crate, and the files that may name it. A crate that is not listed may be used anywhere.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["src/index.rs", "src/store/disk/tests.rs"]),
    ("opendal", &["src/store/object/"]),
    (
        "redis",
        &[
            "src/store/redis/",
            "src/store/config.rs",
            "src/store/mod.rs",
            "src/store/stack.rs",
            "src/store/tiered/tests/real.rs",
        ],
    ),
    ("zstd", &["src/store/", "src/rpc/assets/archive/"]),
    ("fastcdc", &["src/store/"]),
    ("prometheus", &["src/metrics.rs", "src/metrics/"]),
    ("figment", &["src/config.rs", "src/config/"]),
    ("maud", &["src/web/"]),
    ("form_urlencoded", &["src/web/"]),
    ("percent_encoding", &["src/web/"]),
    ("axum", &["src/web/", "src/rpc/http/"]),
    ("clap", &["src/commands/", "src/main.rs"]),
    ("tracing_subscriber", &["src/telemetry.rs", "src/trace/"]),
    ("tracing_opentelemetry", &["src/trace/"]),
    ("opentelemetry", &["src/trace/"]),
    ("opentelemetry_sdk", &["src/trace/"]),
    ("opentelemetry_otlp", &["src/trace/"]),
    ("x509_parser", &["src/tls/"]),
    ("tokio_rustls", &["src/tls/", "src/listen/"]),
    ("sha2", &["src/digest/", "src/tls/", "src/reload/", "src/rpc/assets/integrity.rs"]),
    ("sha1", &["src/digest/"]),
    ("md5", &["src/digest/"]),
    ("mur3", &["src/digest/"]),
    ("blake3", &["src/digest/"]),
    ("bazel_remote_apis", &["src/proto/", "build.rs"]),
    ("tonic_reflection", &["src/rpc/routes.rs"]),
    ("tonic_health", &["src/rpc/health.rs", "src/rpc/routes.rs"]),
    ("jsonwebtoken", &["src/access/"]),
    ("sd_notify", &["src/systemd.rs"]),
    ("listenfd", &["src/systemd/sockets.rs"]),
    ("bcrypt", &["src/access/basic.rs"]),
    ("getrandom", &["src/access/token.rs"]),
    ("subtle", &["src/access/token.rs"]),
    ("seccompiler", &["src/worker/sandbox/seccomp.rs"]),
];

/// What the scheduler's pure files must not touch: the world.
const IMPURE: &[&str] = &[
    "tokio",
    "Instant::now",
    "SystemTime::now",
    "HashMap",
    "HashSet",
    "fastrand",
    "std::fs",
    "std::net",
    "async fn",
];

/// The one pure file that may use hash maps: it hides their order.
const LOOKUP: &str = "src/scheduler/lookup.rs";

/// The scheduler's files that do touch it.
const SCHEDULER_EDGE: &[&str] = &[
    "src/scheduler/driver/",
    "src/scheduler/journal/",
    "src/scheduler/handle.rs",
    "src/scheduler/session.rs",
    "src/scheduler/departures.rs",
    "src/scheduler/config.rs",
    "src/scheduler/mod.rs",
];

/// Where unsafe code may stand. Each says why in its own text.
const UNSAFE: &[&str] = &["src/worker/sandbox", "src/store/disk/writeback.rs"];

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 500;

/// Lines of a function, as a reader scrolls them.
const FUNCTION_LINES_MAX: usize = 70;

/// Words that say that something is not done; an issue is the place for that.
const UNFINISHED: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

type Rule = fn(&Path, &str) -> Vec<String>;

const RULES: &[Rule] = &[
    begins_with_its_purpose,
    is_short,
    has_short_functions,
    imports_downwards,
    keeps_crates_at_home,
    keeps_the_scheduler_pure,
    is_finished,
    keeps_unsafe_at_home,
];

fn begins_with_its_purpose(_: &Path, text: &str) -> Vec<String> {
    if text.starts_with("//! ") { vec![] } else { vec!["begins without `//!`".into()] }
}

fn is_short(_: &Path, text: &str) -> Vec<String> {
    let lines = production(text).lines().count();
    if lines <= FILE_LINES_MAX { vec![] } else { vec![format!("has {lines} lines")] }
}

fn has_short_functions(_: &Path, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut complaints = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| opens_function(line)) {
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|line| *line == end).map_or(0, |last| last + 1);
        if length > FUNCTION_LINES_MAX {
            complaints.push(format!("`{}` has {length} lines", line.trim()));
        }
    }
    complaints
}

/// Whether the line begins a function with a body that does not end on it.
fn opens_function(line: &str) -> bool {
    let head = line.trim_start().split('(').next().unwrap_or_default();
    let is_function = head.starts_with("fn ") || (head.contains(" fn ") && !head.contains('"'));
    is_function && !head.starts_with("//") && !line.ends_with(';') && !line.ends_with('}')
}

fn imports_downwards(path: &Path, text: &str) -> Vec<String> {
    let Some(module) = module(path) else { return vec![] };
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("`{module}` has no row in IMPORTS")];
    };
    let is_allowed = |name: &str| name == module || allowed.contains(&name) || BASE.contains(&name);
    let strays = imported_modules(text).into_iter().filter(|name| !is_allowed(name));
    strays.map(|name| format!("`{module}` imports `{name}`")).collect()
}

/// The top modules after each `crate::`, those in `crate::{…}` too.
fn imported_modules(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code(text).split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => found
                .extend(list.split('}').next().unwrap_or_default().split(',').map(|item| word(item.trim()))),
            None => found.push(word(rest)),
        }
    }
    found.retain(|name| name.starts_with(|first: char| first.is_ascii_lowercase()));
    found.sort();
    found.dedup();
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

fn keeps_crates_at_home(path: &Path, text: &str) -> Vec<String> {
    if module(path).is_none() && path != Path::new("src/main.rs") {
        return vec![];
    }
    let shown = path.to_string_lossy();
    let code = code(text);
    let strays = HOMES.iter().filter(|(name, homes)| {
        let is_named = code.contains(&format!("{name}::")) || code.contains(&format!("use {name};"));
        is_named && !homes.iter().any(|home| shown.starts_with(home))
    });
    strays.map(|(name, _)| format!("names the crate `{name}`, whose home is elsewhere")).collect()
}

fn keeps_the_scheduler_pure(path: &Path, text: &str) -> Vec<String> {
    let shown = path.to_string_lossy();
    let is_edge = SCHEDULER_EDGE.iter().any(|edge| shown.starts_with(edge));
    let is_test = shown.contains("simulation") || shown.contains("tests");
    if !shown.starts_with("src/scheduler/") || is_edge || is_test {
        return vec![];
    }
    let code = code(production(text));
    IMPURE
        .iter()
        .filter(|word| code.contains(*word) && !(shown == LOOKUP && **word == "HashMap"))
        .map(|word| format!("is pure, but says `{word}`"))
        .collect()
}

fn is_finished(path: &Path, text: &str) -> Vec<String> {
    if path.ends_with("tests/tidy.rs") {
        return vec![];
    }
    UNFINISHED.iter().filter(|word| text.contains(*word)).map(|word| format!("says `{word}`")).collect()
}

fn keeps_unsafe_at_home(path: &Path, text: &str) -> Vec<String> {
    let is_allowed = UNSAFE.iter().any(|home| path.starts_with(home)) || path.ends_with("tests/tidy.rs");
    let code = code(text);
    let has_unsafe = ["unsafe_code)", "unsafe {", "unsafe fn"].iter().any(|word| code.contains(word));
    if has_unsafe && !is_allowed { vec!["has unsafe code, whose homes are elsewhere".into()] } else { vec![] }
}

/// The text before the tests at the end of a file.
fn production(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// The text without comments.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The top module of a file of `src`; none for `main.rs`, `lib.rs` and files elsewhere.
fn module(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    let first = inside.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!["main", "lib"].contains(&name)).then(|| name.to_owned())
}

fn complaints(path: &Path, text: &str) -> Vec<String> {
    let found = RULES.iter().flat_map(|rule| rule(path, text));
    found.map(|complaint| format!("{}: {complaint}", path.display())).collect()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("build.rs")];
    for folder in ["src", "tests", "benches"] {
        rust_files(&root.join(folder), &mut files);
    }
    assert!(files.len() > 30, "only {} files were found", files.len());
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        all.extend(complaints(file.strip_prefix(root).unwrap(), &text));
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn every_rule_can_fail() {
    let long_function = format!("//! x\nfn long() {{\n{}}}\n", "    let _ = 1;\n".repeat(FUNCTION_LINES_MAX));
    let bad = [
        ("src/digest.rs", "fn main() {}".to_owned(), "begins without"),
        ("src/digest.rs", format!("//! x\n{}", "// y\n".repeat(FILE_LINES_MAX)), "has 501 lines"),
        ("src/digest.rs", long_function, "`fn long() {` has 72 lines"),
        ("src/store/disk/mod.rs", "//! x\nuse crate::rpc::Farm;".into(), "`store` imports `rpc`"),
        (
            "src/store/mod.rs",
            "//! x\nuse crate::{digest, scheduler::Handle};".into(),
            "`store` imports `scheduler`",
        ),
        ("src/digest.rs", "//! x\nuse crate::store::Cas;".into(), "`digest` imports `store`"),
        ("src/novelty.rs", "//! x\n".into(), "`novelty` has no row"),
        ("src/store/cas.rs", "//! x\nuse sled::Db;".into(), "names the crate `sled`"),
        (
            "src/rpc/mod.rs",
            "//! x\nlet c = prometheus::IntCounter::new();".into(),
            "names the crate `prometheus`",
        ),
        (
            "src/scheduler/core.rs",
            "//! x\nlet now = Instant::now();".into(),
            "is pure, but says `Instant::now`",
        ),
        (
            "src/scheduler/core.rs",
            "//! x\nuse std::collections::HashMap;".into(),
            "is pure, but says `HashMap`",
        ),
        ("src/rpc/mod.rs", "//! x\n// TODO: later".into(), "says `TODO`"),
        ("src/rpc/mod.rs", "//! x\nunsafe { run() }".into(), "has unsafe code"),
    ];
    for (path, text, expected) in bad {
        let found = complaints(Path::new(path), &text);
        assert!(found.iter().any(|complaint| complaint.contains(expected)), "{path}: {expected}: {found:?}");
    }
}

#[test]
fn every_limit_that_is_documented_is_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/limits.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `src/"))
        .map(|line| line.split('`').collect())
        .collect();
    assert!(rows.len() > 20, "only {} limits were found", rows.len());
    for row in rows {
        let text = fs::read_to_string(root.join(row[1])).unwrap();
        assert!(text.contains(&format!("const {}: ", row[3])), "{} has no `{}`", row[1], row[3]);
    }
}

#[test]
fn a_tidy_file_passes() {
    let good = "//! The driver.\n\nuse crate::error::Result;\n\n/// Not `crate::rpc`, in a comment.\nfn run() -> Result<()> {\n    Ok(())\n}\n";
    assert_eq!(complaints(Path::new("src/scheduler/driver.rs"), good), Vec::<String>::new());
}
