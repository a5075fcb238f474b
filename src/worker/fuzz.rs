//! What must hold for commands and directories that actions bring.

use std::path::{Component, Path};

use prost::Message;

use crate::proto::rev2;

use super::command::Command;
use super::inputs;

/// A command that is accepted can be executed, and names no place above its input root.
pub fn command(bytes: &[u8]) {
    let Ok(message) = rev2::Command::decode(bytes) else { return };
    let Ok(command) = Command::check(message) else { return };
    assert!(!command.arguments[0].is_empty());
    let strings = command.arguments.iter().chain(&command.environment);
    strings.for_each(|string| assert!(!string.contains('\0')));
    assert!(is_below(&command.working_directory), "{}", command.working_directory);
    command.outputs.iter().for_each(|output| assert!(is_below(&output.path), "{}", output.path));
}

fn is_below(path: &str) -> bool {
    !path.contains('\0') && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Every name of a directory that is accepted is that of an entry of it, and of no other.
pub fn directory(bytes: &[u8]) {
    let Ok(directory) = rev2::Directory::decode(bytes) else { return };
    if inputs::tree::check_names(&directory).is_err() {
        return;
    }
    let names = directory.files.iter().map(|node| &node.name);
    let names = names.chain(directory.directories.iter().map(|node| &node.name));
    let mut names: Vec<&String> = names.chain(directory.symlinks.iter().map(|node| &node.name)).collect();
    names.iter().for_each(|name| {
        assert!(is_below(name) && Path::new(name).components().count() == 1, "{name}");
    });
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
