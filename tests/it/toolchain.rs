//! A toolchain with fixed absolute paths, as a package manager with a store makes them, of what the machine has: a shell, `ls`, `cat`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 4] = ["sh", "ls", "cat", "env"];

/// The variable that names a directory for toolchains, where that of the build is closed to this user.
pub(crate) const STORES: &str = "CROFT_TEST_STORES";

/// A store with three paths, the last of which is not in the closure.
pub(crate) struct Toolchain {
    directory: tempfile::TempDir,
    loader: String,
}

impl Toolchain {
    /// Makes one whose path `tools` has a file `name` with the text `name`; `None` if there is no place for it.
    pub(crate) fn new(name: &str) -> Option<Self> {
        // Not below /tmp, which is each action's own.
        let parent = std::env::var_os(STORES).unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let Ok(directory) = tempfile::tempdir_in(parent) else {
            eprintln!("skipped: this user cannot reach the directory of the build");
            return None;
        };
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut toolchain = Self { directory, loader: String::new() };
        for path in ["tools/bin", "libraries", "outside"] {
            fs::create_dir_all(toolchain.store(path)).unwrap();
        }
        fs::write(toolchain.store("tools/name"), name).unwrap();
        fs::write(toolchain.store("note"), "a file of its own").unwrap();
        for program in PROGRAMS {
            toolchain.add(&program_path(program));
        }
        Some(toolchain)
    }

    pub(crate) fn store(&self, path: &str) -> PathBuf {
        self.directory.path().join("store").join(path)
    }

    /// The paths of the closure.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        ["libraries", "note", "tools"].map(|name| self.store(name)).into()
    }

    /// The links that make `/bin/sh` and the dynamic loader be found.
    pub(crate) fn links(&self) -> BTreeMap<String, PathBuf> {
        let loader = Path::new(&self.loader).file_name().unwrap();
        BTreeMap::from([
            ("/bin/sh".to_owned(), self.store("tools/bin/sh")),
            ("/usr/bin/env".to_owned(), self.store("tools/bin/env")),
            (self.loader.clone(), self.store("libraries").join(loader)),
        ])
    }

    /// `NAME=value` of the variables that the programs need.
    pub(crate) fn environment(&self) -> [(String, String); 2] {
        let of = |name: &str, path: &str| (name.to_owned(), self.store(path).display().to_string());
        [of("PATH", "tools/bin"), of("LD_LIBRARY_PATH", "libraries")]
    }

    /// The root as an operator writes it, in a form that is good in TOML and in the environment.
    pub(crate) fn configuration(&self) -> String {
        let list = self.directory.path().join("store-paths");
        let lines: String = self.paths().iter().map(|path| format!("{}\n", path.display())).collect();
        fs::write(&list, lines).unwrap();
        let links: Vec<String> = self
            .links()
            .iter()
            .map(|(link, target)| format!("\"{link}\"=\"{}\"", target.display()))
            .collect();
        format!("{{closure=\"{}\",links={{{}}}}}", list.display(), links.join(","))
    }

    fn add(&mut self, program: &Path) {
        let name = program.file_name().unwrap().to_str().unwrap();
        fs::copy(program, self.store("tools/bin").join(name)).unwrap();
        let listed = Command::new("ldd").arg(program).output().unwrap().stdout;
        for line in String::from_utf8(listed).unwrap().lines().map(str::trim) {
            // `name => /path (address)` for a library, `/path (address)` for the loader.
            let path = line.split(' ').find(|word| word.starts_with('/'));
            let Some(path) = path else { continue };
            let library = Path::new(path);
            fs::copy(library, self.store("libraries").join(library.file_name().unwrap())).unwrap();
            if line.starts_with('/') {
                self.loader = path.to_owned();
            }
        }
    }
}

fn program_path(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.exists()).unwrap()
}
