//! The roots that actions share, read-only: system directories of the host or of a root file system, or the paths of a closure; a
//! made-up `/etc`, a few devices.
//!
//! Collecting the parts needs the host's file names and is done with the host's rights where there are any; building them
//! into a tree is done inside the launcher's namespaces.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};
use rustix::process::pivot_root;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::launcher::{Fault, Setting, Step};
use super::sys;

/// Where init finds what the actions must not: their directories and a `/proc` to mount new ones by.
pub(super) const HIDDEN: &str = "/.croft";
/// The actions' directories, read-only, as the lower layers see them.
pub(super) const LOWER: &str = "/.croft/lower";
/// The actions' directories, writable.
pub(super) const SCRATCH: &str = "/.croft/scratch";
/// Where init mounts a tmpfs for what one action writes.
pub(super) const MEMORY: &str = "/.croft/memory";
/// A procfs mounted as a whole: without one in sight the kernel lets a user namespace mount no other.
const PROC: &str = "/.croft/proc";

/// System directories that are bound if they are directories and copied if they are links (`/bin` → `usr/bin`).
const SYSTEM: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix/store"];
/// What programs need of `/etc` and holds neither names nor secrets of the host.
const ETC: &[&str] = &[
    "etc/alternatives",
    "etc/ld.so.cache",
    "etc/ld.so.conf",
    "etc/ld.so.conf.d",
    "etc/perl",
    "etc/pki/tls/certs",
    "etc/protocols",
    "etc/services",
    "etc/ssl/certs",
    "etc/ssl/openssl.cnf",
];
/// As [`ETC`], with the version in the name.
const ETC_PREFIXES: &[&str] = &["java-", "python3"];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
const DIRECTORIES: &[&str] = &["build", "dev/pts", "dev/shm", "etc", "proc", "tmp", "var", ".croft"];
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "dev/fd"),
    ("fd/0", "dev/stdin"),
    ("fd/1", "dev/stdout"),
    ("fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
    ("../tmp", "var/tmp"),
];
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\ncroft:x:1000:1000:croft:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    ),
    ("etc/group", "root:x:0:\ncroft:x:1000:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost croft\n::1 localhost croft\n"),
    ("etc/hostname", "croft\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n"),
];
/// The skeleton holds mount points and a few lines of text.
const TMPFS_OPTIONS: &std::ffi::CStr = c"mode=0755,size=4m";

const READ_ONLY: u64 = sys::MOUNT_RDONLY | sys::MOUNT_NOSUID | sys::MOUNT_NODEV;

/// Where the skeleton has directories of its own, or each action has.
const OWN: &[&str] = &["/.croft", "/build", "/dev", "/proc", "/tmp", "/var/tmp"];

/// What actions see of a system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum System {
    /// The system directories of the root file system at this path; `/` is the host's.
    Directories(PathBuf),
    /// Files and directories, each at its own path, and symbolic links to make, each with what it points to.
    Closure { paths: Vec<PathBuf>, links: Vec<(PathBuf, PathBuf)> },
}

/// Whether something of the skeleton's own is at `path`, above it or below it.
pub(in crate::worker) fn is_taken(path: &Path) -> bool {
    let files = FILES.iter().map(|(name, _)| Path::new("/").join(name));
    OWN.iter().map(PathBuf::from).chain(files).any(|own| own.starts_with(path) || path.starts_with(own))
}

/// Detached mounts, ready to be put into the skeleton.
pub(super) struct Parts {
    binds: Vec<Bind>,
    links: Vec<(String, String)>,
    hidden: Vec<(OwnedFd, &'static str)>,
}

struct Bind {
    name: String,
    tree: OwnedFd,
    is_directory: bool,
}

/// Clones the mounts that the skeleton of each root consists of. With `map`, the lower layers show their files under the ids it gives.
pub(super) fn collect(setting: &Setting, map: Option<&OwnedFd>) -> Result<Vec<Parts>, Fault> {
    setting.roots.iter().map(|system| Parts::collect(system, &setting.directory, map)).collect()
}

/// Builds a root from each of `all` in a mount namespace of its own, and makes the first this process'. Nothing of the host's stays in
/// sight.
pub(super) fn enter(all: Vec<Parts>) -> Result<Vec<OwnedFd>, Fault> {
    let host = namespace("/proc")?;
    let build = |parts: Parts| {
        enter_namespace(&host)?;
        sys::unshare(UnshareFlags::NEWNS).step("create a mount namespace")?;
        parts.enter()?;
        namespace(PROC)
    };
    let roots: Vec<OwnedFd> = all.into_iter().map(build).collect::<Result<_, Fault>>()?;
    enter_namespace(roots.first().ok_or("the sandbox has no root")?)?;
    Ok(roots)
}

/// The mount namespace of this process.
pub(super) fn namespace(proc: &str) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("{proc}/self/ns/mnt"), flags, Mode::empty()).step("open a mount namespace")
}

pub(super) fn enter_namespace(namespace: &OwnedFd) -> Result<(), Fault> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).step("enter a root")
}

/// The names below `/etc` to bind, as far as the root has them.
fn etc_names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = ETC.iter().map(|name| (*name).to_owned()).collect();
    let entries = fs::read_dir(root.join("etc")).into_iter().flatten().flatten();
    let versioned = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| ETC_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    names.extend(versioned.map(|name| format!("etc/{name}")));
    names
}

fn open_root(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .step("open the root file system; the sandbox's user must be able to reach it")
}

/// An absolute path as a name below the root.
fn relative(path: &Path) -> &str {
    path.to_str().expect("it has crossed the channel as JSON, which is UTF-8").trim_start_matches('/')
}

fn clone_tree(path: &Path) -> Result<OwnedFd, Fault> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).step("clone a mount")
}

impl Parts {
    fn collect(system: &System, directory: &Path, map: Option<&OwnedFd>) -> Result<Self, Fault> {
        let mut parts = Self { binds: Vec::new(), links: Vec::new(), hidden: Vec::new() };
        match system {
            System::Directories(root) => parts.add_directories(root)?,
            System::Closure { paths, links } => parts.add_closure(paths, links)?,
        }
        let host = open_root(Path::new("/"))?;
        for name in DEVICES {
            parts.add_bind(&host, &format!("dev/{name}"), sys::MOUNT_NOSUID)?;
        }
        let lower = clone_tree(directory)?;
        sys::set_mount(&lower, READ_ONLY).step("make the inputs read-only")?;
        if let Some(map) = map {
            sys::map_mount(&lower, map).step("map the owner of the inputs")?;
        }
        let scratch = clone_tree(directory)?;
        sys::set_mount(&scratch, sys::MOUNT_NOSUID | sys::MOUNT_NODEV)
            .step("restrict the actions' directories")?;
        parts.hidden = vec![(lower, LOWER), (scratch, SCRATCH), (clone_tree(Path::new("/proc"))?, PROC)];
        Ok(parts)
    }

    fn add_directories(&mut self, path: &Path) -> Result<(), Fault> {
        let root = open_root(path)?;
        for name in SYSTEM {
            self.add_system(&root, name)?;
        }
        for name in etc_names(path) {
            self.add_bind(&root, &name, READ_ONLY)?;
        }
        Ok(())
    }

    fn add_closure(&mut self, paths: &[PathBuf], links: &[(PathBuf, PathBuf)]) -> Result<(), Fault> {
        for path in paths {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // Clients may read this sentence, so it does not say which.
            let found = rustix::fs::open(path, flags, Mode::empty()).step("open a path of the closure")?;
            self.bind(&found, relative(path), READ_ONLY)?;
        }
        let links =
            links.iter().map(|(link, target)| (target.to_string_lossy().into_owned(), relative(link)));
        self.links.extend(links.map(|(target, link)| (target, link.to_owned())));
        Ok(())
    }

    fn add_system(&mut self, root: &OwnedFd, name: &str) -> Result<(), Fault> {
        match rustix::fs::readlinkat(root, name, Vec::new()) {
            Ok(target) => {
                self.links.push((target.to_string_lossy().into_owned(), name.to_owned()));
                Ok(())
            }
            Err(_) => self.add_bind(root, name, READ_ONLY),
        }
    }

    /// Adds `name` of `root` if it exists; links on the way stay inside `root`.
    fn add_bind(&mut self, root: &OwnedFd, name: &str, attributes: u64) -> Result<(), Fault> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = match openat2(root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            found => found.step("look at the root file system")?,
        };
        self.bind(&found, name, attributes)
    }

    /// Adds what is open as `found` under `name`.
    fn bind(&mut self, found: &OwnedFd, name: &str, attributes: u64) -> Result<(), Fault> {
        let stat = rustix::fs::fstat(found).step("look at the root file system")?;
        let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(found, "", flags).step("clone a mount of the root file system")?;
        sys::set_mount(&tree, attributes).step("make the root file system read-only")?;
        self.binds.push(Bind { name: name.to_owned(), tree, is_directory });
        Ok(())
    }

    /// Builds the root and makes it this process' root; nothing of the host's stays in sight.
    fn enter(self) -> Result<(), Fault> {
        // Any directory does: what lies below it is out of sight only until the old root goes.
        let target = Path::new("/tmp");
        let options = Some(TMPFS_OPTIONS);
        mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)
            .step("mount a tmpfs")?;
        self.fill(target).step("fill the sandbox's root")?;
        for bind in &self.binds {
            bind.attach(target)?;
        }
        let hidden = target.join(HIDDEN.trim_start_matches('/'));
        mount("tmpfs", &hidden, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)
            .step("mount a tmpfs")?;
        fs::create_dir(target.join(MEMORY.trim_start_matches('/'))).step("make a mount point")?;
        for (tree, name) in &self.hidden {
            let point = target.join(name.trim_start_matches('/'));
            fs::create_dir(&point).step("make a mount point")?;
            attach(tree, &point)?;
        }
        make_root(target)
    }

    fn fill(&self, target: &Path) -> std::io::Result<()> {
        for name in DIRECTORIES {
            fs::create_dir_all(target.join(name))?;
        }
        for (content, name) in LINKS {
            symlink(content, target.join(name))?;
        }
        for (content, name) in &self.links {
            let link = target.join(name);
            fs::create_dir_all(link.parent().expect("every name is below the root"))?;
            symlink(content, link)?;
        }
        for (name, content) in FILES {
            fs::write(target.join(name), content)?;
        }
        Ok(())
    }
}

impl Bind {
    fn attach(&self, target: &Path) -> Result<(), Fault> {
        let point = target.join(&self.name);
        let parent = point.parent().expect("every name is below the root");
        fs::create_dir_all(parent).step("make a mount point")?;
        let made = if self.is_directory { fs::create_dir(&point) } else { fs::write(&point, b"") };
        made.step("make a mount point")?;
        attach(&self.tree, &point)
    }
}

fn attach(tree: impl AsFd, point: &Path) -> Result<(), Fault> {
    move_mount(tree, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step("mount a part of the sandbox's root")
}

fn make_root(target: &Path) -> Result<(), Fault> {
    rustix::process::chdir(target).step("enter the sandbox's root")?;
    // With both arguments the same, the old root ends up on top of the new one and goes with one unmount.
    pivot_root(".", ".").step("make the sandbox's root the root")?;
    unmount(".", UnmountFlags::DETACH).step("unmount the host's root")?;
    rustix::process::chdir("/").step("enter the sandbox's root")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).step("open the sandbox's root")?;
    sys::set_one_mount(&root, READ_ONLY).step("make the sandbox's root read-only")
}
