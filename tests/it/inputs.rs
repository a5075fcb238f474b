//! What an action sees of its inputs, looked at through a real overlay: a layer over another tree shows the same as a tree of its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::farm::executable;
use crate::sandbox::config;
use croft::digest::{Digest, Function};
use croft::proto::Timestamp;
use croft::proto::rev2::{Directory, DirectoryNode, FileNode, NodeProperties, SymlinkNode};
use croft::store::{Cas, Memory};
use croft::worker::inputs::{Inputs, Staged};
use croft::worker::sandbox::{End, Exit, Launcher, Limits, Scratch, Spec};
use proptest::prelude::*;
use proptest::test_runner::{Config as Settings, TestRunner};
use prost::Message;

const CACHE_BYTES: u64 = 64 << 20;
const CASES: u32 = 48;

/// Names that are hard on shells, overlays or file systems; few, so that two trees often have the same.
const NAMES: &[&str] = &["a", "b", "c", "-rf", ".wh.a", "ü $(x)'\"\n*\\:,", "..data"];

/// A tree to stage.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    File { content: u8, is_executable: bool, look: Look },
    Symlink { target: String, look: Look },
    Directory { nodes: BTreeMap<String, Node>, look: Look },
}

/// Modification time and mode, as far as the tree says them.
type Look = (Option<i64>, Option<u32>);

/// What is seen of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: &'static str,
    mode: u32,
    time: (i64, i64),
    content: Vec<u8>,
}

struct Bench {
    directory: tempfile::TempDir,
    launcher: Launcher,
    cas: Cas,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let config = config(directory.path(), 1, Scratch::Memory);
        let launcher = Launcher::start(&executable(), config).expect("the sandbox starts");
        Self { directory, launcher, cas: Cas::new(Arc::new(Memory::new(CACHE_BYTES))) }
    }

    /// A cache of its own, with the name of its directory.
    fn inputs(&self, name: &str) -> (Inputs, String) {
        let served = self.directory.path().join(name);
        fs::create_dir(&served).expect("mkdir");
        let inputs = Inputs::open(self.cas.clone(), &served, CACHE_BYTES, self.launcher.ownership());
        (inputs.expect("opened"), name.to_owned())
    }

    /// Runs a script over these inputs.
    async fn run(&self, (staged, cache): (&Staged, &str), script: &str) -> Exit {
        let spec = Spec {
            directory: String::new(),
            layers: staged.layers().iter().map(|layer| format!("{cache}/{layer}")).collect(),
            arguments: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            environment: vec!["PATH=/usr/bin:/bin".to_owned()],
            working_directory: String::new(),
            root: 0,
            limits: Limits::AMPLE,
        };
        let running = self.launcher.run(spec).await.expect("started");
        running.wait().await.expect("an exit")
    }

    /// All that an action sees.
    async fn look(&self, staged: &Staged, cache: &str) -> BTreeMap<PathBuf, Seen> {
        let exit = self.run((staged, cache), "true").await;
        assert_eq!(exit.end, End::Exited(0));
        let root = PathBuf::from(format!("/proc/self/fd/{}/.", exit.view.as_raw_fd()));
        let mut seen = BTreeMap::new();
        look(&root, Path::new(""), &mut seen);
        seen
    }

    async fn put(&self, bytes: Vec<u8>) -> Digest {
        self.cas.put_bytes(Function::Sha256, bytes.into()).await.expect("stored")
    }

    /// Stores a tree; its digest.
    async fn store(&self, nodes: &BTreeMap<String, Node>, look: Look) -> Digest {
        let mut directory = Directory { node_properties: properties(look), ..Directory::default() };
        for (name, node) in nodes {
            let name = name.clone();
            match node {
                Node::File { content, is_executable, look } => {
                    let digest = Some(self.put(vec![b'x'; usize::from(*content)]).await.to_proto());
                    let (is_executable, node_properties) = (*is_executable, properties(*look));
                    directory.files.push(FileNode { name, digest, is_executable, node_properties });
                }
                Node::Symlink { target, look } => {
                    let (target, node_properties) = (target.clone(), properties(*look));
                    directory.symlinks.push(SymlinkNode { name, target, node_properties });
                }
                Node::Directory { nodes, look } => {
                    let digest = Some(Box::pin(self.store(nodes, *look)).await.to_proto());
                    directory.directories.push(DirectoryNode { name, digest });
                }
            }
        }
        self.put(directory.encode_to_vec()).await
    }
}

fn properties((time, mode): Look) -> Option<NodeProperties> {
    let mtime = time.map(|seconds| Timestamp { seconds, nanos: 7 });
    let mut properties = NodeProperties { mtime, ..NodeProperties::default() };
    if let Some(mode) = mode {
        properties.unix_mode.insert(Default::default()).value = mode;
    }
    (time.is_some() || mode.is_some()).then_some(properties)
}

fn look(root: &Path, path: &Path, seen: &mut BTreeMap<PathBuf, Seen>) {
    for entry in fs::read_dir(root.join(path)).expect("list") {
        let path = path.join(entry.expect("list").file_name());
        let place = root.join(&path);
        let metadata = fs::symlink_metadata(&place).expect("stat");
        let (kind, content) = match metadata.file_type() {
            kind if kind.is_dir() => ("directory", Vec::new()),
            kind if kind.is_file() => ("file", fs::read(&place).expect("readable")),
            kind if kind.is_symlink() => {
                ("link", fs::read_link(&place).expect("a link").into_os_string().into_encoded_bytes())
            }
            kind if kind.is_char_device() => ("device", Vec::new()),
            _ => ("other", Vec::new()),
        };
        let time = (metadata.mtime(), metadata.mtime_nsec());
        seen.insert(path.clone(), Seen { kind, mode: metadata.mode() & 0o7777, time, content });
        if metadata.is_dir() {
            look(root, &path, seen);
        }
    }
}

/// What a tree must look like.
fn expected(nodes: &BTreeMap<String, Node>, parent: &Path, all: &mut BTreeMap<PathBuf, Seen>) {
    for (name, node) in nodes {
        let path = parent.join(name);
        let (kind, usual, look, content) = match node {
            Node::File { content, is_executable, look } => {
                let usual = if *is_executable { 0o555 } else { 0o444 };
                ("file", usual, *look, vec![b'x'; usize::from(*content)])
            }
            Node::Symlink { target, look } => ("link", 0o777, (look.0, None), target.clone().into_bytes()),
            Node::Directory { nodes, look } => {
                expected(nodes, &path, all);
                ("directory", 0o755, *look, Vec::new())
            }
        };
        let time = look.0.map_or((946_684_800, 0), |seconds| (seconds, 7));
        let mode = look.1.map_or(usual, |mode| mode | (usual & 0o111));
        all.insert(path, Seen { kind, mode, time, content });
    }
}

fn looks() -> impl Strategy<Value = Look> {
    prop_oneof![
        6 => Just((None, None)),
        1 => (1_i64..2_000_000_000).prop_map(|time| (Some(time), None)),
        1 => prop_oneof![Just(0o644), Just(0o755), Just(0o700)].prop_map(|mode| (None, Some(mode))),
    ]
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        10 => proptest::sample::select(NAMES).prop_map(str::to_owned),
        1 => Just("n".repeat(255)),
    ]
}

fn trees() -> impl Strategy<Value = BTreeMap<String, Node>> {
    let leaf = prop_oneof![
        4 => (0_u8..4, any::<bool>(), looks())
            .prop_map(|(content, is_executable, look)| Node::File { content, is_executable, look }),
        1 => (prop_oneof![Just("a"), Just("/usr/bin/env"), Just("../..")], looks())
            .prop_map(|(target, look)| Node::Symlink { target: target.to_owned(), look }),
        1 => looks().prop_map(|look| Node::Directory { nodes: BTreeMap::new(), look }),
    ];
    let node = leaf.prop_recursive(4, 40, 6, |inner| {
        (proptest::collection::btree_map(names(), inner, 0..6), looks())
            .prop_map(|(nodes, look)| Node::Directory { nodes, look })
    });
    proptest::collection::btree_map(names(), node, 0..7)
}

/// Pairs of trees that share much: the second is the first with some of a third in it.
fn pairs() -> impl Strategy<Value = (BTreeMap<String, Node>, BTreeMap<String, Node>)> {
    (trees(), trees(), any::<u64>()).prop_map(|(first, other, choice)| {
        let mut choice = choice;
        let second = mixed(&first, &other, &mut choice);
        (first, second)
    })
}

/// Takes each entry from one of the two, from both, or from neither.
fn mixed(
    one: &BTreeMap<String, Node>,
    two: &BTreeMap<String, Node>,
    choice: &mut u64,
) -> BTreeMap<String, Node> {
    let mut nodes = BTreeMap::new();
    for name in one.keys().chain(two.keys()) {
        *choice = choice.rotate_left(2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let node = match (*choice >> 60, one.get(name), two.get(name)) {
            (0..3, _, _) => None,
            (3..9, Some(Node::Directory { nodes: one, look }), Some(Node::Directory { nodes: two, .. })) => {
                Some(Node::Directory { nodes: mixed(one, two, choice), look: *look })
            }
            (9..12, _, Some(node)) | (_, None, Some(node)) => Some(node.clone()),
            (_, node, _) => node.cloned(),
        };
        node.map(|node| nodes.insert(name.clone(), node));
    }
    nodes
}

#[test]
fn a_layer_over_another_tree_shows_the_same_as_a_tree_of_its_own() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    let bench = Bench::new();
    let number = std::cell::Cell::new(0);
    let layers = std::cell::Cell::new(0);
    let settings = Settings { cases: CASES, failure_persistence: None, ..Settings::default() };
    let ran = TestRunner::new(settings).run(&pairs(), |(first, second)| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let (over, over_name) = bench.inputs(&format!("over-{}", number.get()));
            let (own, own_name) = bench.inputs(&format!("own-{}", number.get()));
            let roots = [bench.store(&first, (None, None)).await, bench.store(&second, (None, None)).await];
            let held = over.stage(roots[0]).await.expect("staged");
            let layered = over.stage(roots[1]).await.expect("staged");
            let alone = own.stage(roots[1]).await.expect("staged");
            assert_eq!(layered.layers().len(), 1 + usize::from(roots[0] != roots[1]));
            layers.set(layers.get() + layered.layers().len());
            let mut wanted = BTreeMap::new();
            expected(&second, Path::new(""), &mut wanted);
            prop_assert_eq!(&bench.look(&alone, &own_name).await, &wanted);
            prop_assert_eq!(&bench.look(&layered, &over_name).await, &wanted);
            let mut before = BTreeMap::new();
            expected(&first, Path::new(""), &mut before);
            prop_assert_eq!(&bench.look(&held, &over_name).await, &before);
            Ok(())
        })
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    assert!(layers.get() > CASES as usize, "there were layers over other trees");
}

/// Ways to change everything that is there, each of which the action may do to what it sees.
const ALTERATIONS: &[&str] = &[
    "find . -type f -exec sh -c 'chmod 777 \"$0\"; echo altered > \"$0\"' {} \\;",
    "find . -type f -exec sh -c 'echo more >> \"$0\" || { chmod u+w \"$0\"; echo more >> \"$0\"; }' {} \\;",
    "find . -type f -exec truncate -s 0 {} \\; ; find . -exec touch -h -d @1 {} \\;",
    "find . -depth -mindepth 1 -delete",
    "rm -rf ./*; mkdir a b c; ln -s /etc a/x",
    "for f in ./*; do mv \"$f\" \"$f.moved\"; done; mkdir d; for f in ./*; do ln \"$f\" d/; done",
    "find . -type f -exec sh -c 'rm -f \"$0\"; ln -s /etc/passwd \"$0\"' {} \\;",
    "find . -type d -exec chmod 000 {} \\;",
];

#[tokio::test]
async fn nothing_that_an_action_does_to_its_inputs_is_seen_by_the_next() {
    let bench = Bench::new();
    let (inputs, cache) = bench.inputs("cache");
    let look = (None, Some(0o755));
    let file = |content, look| Node::File { content, is_executable: content % 2 == 0, look };
    let mut nodes: BTreeMap<String, Node> = (0..20)
        .map(|number| (format!("f{number}"), file(number, if number < 10 { look } else { (None, None) })))
        .collect();
    let below =
        BTreeMap::from([("deep".to_owned(), file(9, look)), ("tool".to_owned(), file(8, (None, None)))]);
    nodes.insert("d".to_owned(), Node::Directory { nodes: below, look });
    let base = bench.store(&nodes, (None, None)).await;
    nodes.insert("f3".to_owned(), file(77, (None, None)));
    nodes.remove("f4");
    let root = bench.store(&nodes, (None, None)).await;
    for root in [base, root] {
        let staged = inputs.stage(root).await.expect("staged");
        let before = bench.look(&staged, &cache).await;
        for script in ALTERATIONS {
            bench.run((&staged, &cache), script).await;
            assert_eq!(bench.look(&staged, &cache).await, before, "{script}");
        }
    }
}

#[tokio::test]
async fn trees_as_of_build_stream_and_runfiles_of_bazel_are_staged_as_they_are() {
    let bench = Bench::new();
    let (inputs, cache) = bench.inputs("cache");
    let plain = (None, None);
    let file = |content, is_executable| Node::File { content, is_executable, look: plain };
    let link = |target: &str| Node::Symlink { target: target.to_owned(), look: plain };
    let directory = |nodes: Vec<(&str, Node)>| Node::Directory {
        nodes: nodes.into_iter().map(|(name, node)| (name.to_owned(), node)).collect(),
        look: plain,
    };
    let mut deep = directory(vec![("end", file(1, false))]);
    for _ in 0..120 {
        deep = directory(vec![("level", deep)]);
    }
    let system = vec![
        ("bin", link("/usr/bin")),
        ("dev", directory(vec![])),
        ("etc", directory(vec![("mtab", link("/proc/self/mounts")), ("ld.so.conf.d", directory(vec![]))])),
        (
            "usr",
            directory(vec![("bin", directory(vec![("sh", link("/usr/bin/dash")), ("dash", file(3, true))]))]),
        ),
        ("var", directory(vec![("run", link("/run")), ("tmp", link("../tmp"))])),
    ];
    let runfiles = vec![
        ("MANIFEST", file(9, false)),
        (
            "_main",
            directory(vec![
                ("tool.py", link("../../../../execroot/_main/tool.py")),
                ("__init__.py", file(0, false)),
            ]),
        ),
        ("rules_python~", directory(vec![("__init__.py", file(0, false)), ("lib.so", file(7, true))])),
    ];
    let nodes = BTreeMap::from([
        ("chroot".to_owned(), directory(system)),
        ("tool.runfiles".to_owned(), directory(runfiles)),
        ("deep".to_owned(), deep),
    ]);
    let root = bench.store(&nodes, plain).await;
    let staged = inputs.stage(root).await.expect("staged");
    let mut wanted = BTreeMap::new();
    expected(&nodes, Path::new(""), &mut wanted);
    assert_eq!(bench.look(&staged, &cache).await, wanted);
}
