//! What actions see of a system: the machine's own, an unpacked root file system, or the paths of a closure and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::sandbox::{System, is_taken};

/// Each path is a mount that every action's namespace copies; the closures of whole desktops have fewer.
const PATHS_MAX: usize = 10_000;
/// Room for as many paths, each longer than any of Nix's.
const LIST_BYTES_MAX: u64 = 4 << 20;
/// How [`Root::Host`] is written.
const HOST: &str = "host";

/// Whose system directories the actions see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Root {
    /// The machine's own.
    #[default]
    Host,
    /// Those of an unpacked root file system at this path.
    Unpacked(PathBuf),
    /// None: listed paths at their own places, and links to them.
    Closure(Closure),
}

/// Paths of a store, such as Nix's, that all belong to one toolchain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closure {
    /// A file that lists the paths, one a line, as `store-paths` of nixpkgs' `closureInfo` does.
    closure: PathBuf,
    /// Symbolic links outside the store, such as `/bin/sh`, and what in the store they point to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Root {
    /// What the sandbox has to show; reads the list of a closure and looks at every path. Blocks.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) fn system(&self) -> Result<System, String> {
        match self {
            Self::Host => Ok(System::Directories("/".into())),
            Self::Unpacked(path) if path.is_absolute() && path.join("usr").is_dir() => {
                Ok(System::Directories(path.clone()))
            }
            Self::Unpacked(path) => Err(format!(
                "`{}` is neither `{HOST}` nor an absolute path with a directory usr",
                path.display()
            )),
            Self::Closure(closure) => closure.system(),
        }
    }
}

impl Closure {
    fn system(&self) -> Result<System, String> {
        let paths = self.paths()?;
        let store = store_of(&paths)?;
        for path in &paths {
            check_path(path, store).map_err(|why| format!("store path `{}` {why}", path.display()))?;
        }
        for (link, target) in &self.links {
            self.check_link(link, store)
                .and_then(|()| check_target(target, &paths))
                .map_err(|why| format!("link `{}` {why}", link.display()))?;
        }
        let links = self.links.iter().map(|(link, target)| (link.clone(), target.clone())).collect();
        Ok(System::Closure { paths: paths.into_iter().collect(), links })
    }

    fn paths(&self) -> Result<BTreeSet<PathBuf>, String> {
        let unreadable =
            |error| format!("the list of store paths `{}` cannot be read: {error}", self.closure.display());
        let size = fs::metadata(&self.closure).map_err(unreadable)?.len();
        if size > LIST_BYTES_MAX {
            return Err(format!("the list of store paths has {size} bytes; the limit is {LIST_BYTES_MAX}"));
        }
        let text = fs::read_to_string(&self.closure).map_err(unreadable)?;
        let paths: BTreeSet<PathBuf> =
            text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect();
        if paths.len() > PATHS_MAX {
            return Err(format!("the closure has {} store paths; the limit is {PATHS_MAX}", paths.len()));
        }
        Ok(paths)
    }

    fn check_link(&self, link: &Path, store: &Path) -> Result<(), &'static str> {
        if !is_plain(link) {
            return Err("is not a plain absolute path");
        }
        if is_taken(link) || overlap(link, store) {
            return Err("is where something else of the sandbox is");
        }
        if self.links.keys().any(|other| other != link && overlap(other, link)) {
            return Err("has another link in its path, or below it");
        }
        Ok(())
    }
}

/// The directory that all paths are in, judged by the first.
fn store_of(paths: &BTreeSet<PathBuf>) -> Result<&Path, String> {
    let first = paths.first().ok_or("the list of store paths is empty")?;
    match first.parent() {
        Some(store) if store.parent().is_some() => Ok(store),
        Some(_) | None => Err(format!("store path `{}` is not in a store directory", first.display())),
    }
}

fn check_path(path: &Path, store: &Path) -> Result<(), String> {
    if !is_plain(path) {
        return Err("is not a plain absolute path".to_owned());
    }
    if path.parent() != Some(store) {
        return Err(format!("is not in the same store directory as others, {}", store.display()));
    }
    if is_taken(path) {
        return Err("is where something else of the sandbox is".to_owned());
    }
    let kind = path.symlink_metadata().map_err(|error| format!("cannot be looked at: {error}"))?.file_type();
    if kind.is_symlink() {
        return Err("is a symbolic link; list what it points to".to_owned());
    }
    if !kind.is_dir() && !kind.is_file() {
        return Err("is neither a directory nor a file".to_owned());
    }
    Ok(())
}

/// What a link points to must be in sight of the actions.
fn check_target(target: &Path, paths: &BTreeSet<PathBuf>) -> Result<(), &'static str> {
    if !is_plain(target) || !target.ancestors().any(|ancestor| paths.contains(ancestor)) {
        return Err("points to nothing in the closure");
    }
    target.symlink_metadata().map(drop).map_err(|_| "points to something that does not exist")
}

/// Whether the path is absolute and written without `.`, `..`, and slashes that say nothing.
fn is_plain(path: &Path) -> bool {
    let is_normal = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    // Equality of paths overlooks what this is about.
    path.is_absolute() && is_normal && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

impl Serialize for Root {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Host => serializer.serialize_str(HOST),
            Self::Unpacked(path) => path.serialize(serializer),
            Self::Closure(closure) => closure.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RootVisitor)
    }
}

struct RootVisitor;

impl<'de> Visitor<'de> for RootVisitor {
    type Value = Root;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{HOST}`, an absolute path, or a table with a key `closure`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Root, E> {
        Ok(if text == HOST { Root::Host } else { Root::Unpacked(text.into()) })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Root, A::Error> {
        Closure::deserialize(MapAccessDeserializer::new(map)).map(Root::Closure)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A store outside of what the sandbox has for itself, and a list of what is in it.
    struct Store {
        directory: tempfile::TempDir,
    }

    impl Store {
        fn new() -> Self {
            // Not /tmp, which is each action's own.
            let program = std::env::current_exe().expect("a path");
            let directory = tempfile::tempdir_in(program.parent().expect("a parent")).expect("a directory");
            let store = Self { directory };
            fs::create_dir_all(store.path("store/tool/bin")).expect("mkdir");
            fs::write(store.path("store/tool/bin/sh"), "").expect("write");
            fs::write(store.path("store/file"), "").expect("write");
            symlink("tool", store.path("store/link")).expect("link");
            fs::create_dir_all(store.path("other/tool")).expect("mkdir");
            store
        }

        fn path(&self, name: &str) -> String {
            format!("{}/{name}", self.directory.path().display())
        }

        fn system(&self, list: &[String], links: &[(&str, String)]) -> Result<System, String> {
            let closure = self.directory.path().join("list");
            fs::write(&closure, list.join("\n")).expect("write");
            let links = links.iter().map(|(link, target)| (link.into(), target.into())).collect();
            Root::Closure(Closure { closure, links }).system()
        }
    }

    #[test]
    fn a_closure_is_its_list_and_its_links() {
        let store = Store::new();
        let list = ["store/tool", "store/file", "store/tool"].map(|name| store.path(name));
        let sh = store.path("store/tool/bin/sh");
        let system = store.system(&list, &[("/bin/sh", sh.clone())]).expect("a good closure");
        let paths = vec![store.path("store/file").into(), store.path("store/tool").into()];
        assert_eq!(system, System::Closure { paths, links: vec![("/bin/sh".into(), sh.into())] });
    }

    #[test]
    fn a_bad_list_is_refused_with_a_sentence() {
        let store = Store::new();
        let (good, path) = (store.path("store/tool"), |name: &str| store.path(name));
        let table: [(Vec<String>, &str); 11] = [
            (vec![], "is empty"),
            (vec!["tool".into()], "is not in a store directory"),
            (vec!["/usr".into()], "`/usr` is not in a store directory"),
            (vec!["nix/store/tool".into()], "is not a plain absolute path"),
            (vec![good.clone(), path("store/none")], "cannot be looked at: No such file"),
            (vec![good.clone(), path("store/link")], "is a symbolic link"),
            (vec![good.clone(), path("other/tool")], "is not in the same store directory"),
            (vec![good.clone(), path("store/tool/bin")], "is not in the same store directory"),
            (vec![path("store/../store/tool")], "is not a plain absolute path"),
            (vec![path("store//tool")], "is not a plain absolute path"),
            (vec!["/tmp/store/tool".into()], "is where something else of the sandbox is"),
        ];
        for (list, sentence) in table {
            let told = store.system(&list, &[]).expect_err(sentence);
            assert!(told.contains(sentence), "{list:?}: {told}");
        }
        let missing = Closure { closure: store.path("none").into(), links: BTreeMap::new() };
        assert!(missing.system().expect_err("no list").contains("cannot be read"));
    }

    #[test]
    fn a_bad_link_is_refused_with_a_sentence() {
        let store = Store::new();
        let (sh, inside) = (store.path("store/tool/bin/sh"), store.path("store/tool/x"));
        let sh_to = |link: &'static str| vec![(link, sh.clone())];
        let table: [(Vec<(&str, String)>, &str); 9] = [
            (sh_to("bin/sh"), "is not a plain absolute path"),
            (sh_to("/bin/../sh"), "is not a plain absolute path"),
            (sh_to("/etc/passwd"), "something else of the sandbox"),
            (sh_to("/etc"), "something else of the sandbox"),
            (sh_to("/proc/x"), "something else of the sandbox"),
            (vec![(inside.as_str(), sh.clone())], "something else of the sandbox"),
            ([sh_to("/bin"), sh_to("/bin/sh")].concat(), "has another link"),
            (vec![("/bin/sh", "/usr/bin/sh".into())], "points to nothing in the closure"),
            (vec![("/bin/sh", store.path("store/tool/none"))], "does not exist"),
        ];
        for (links, sentence) in table {
            let told = store.system(&[store.path("store/tool")], &links).expect_err(sentence);
            assert!(told.contains(sentence), "{links:?}: {told}");
        }
    }
}
