//! What an action says to a tool that stays running: which process it wants and what the request is.

use crate::digest::{Digest, Function};
use crate::error::Result;
use crate::proto::persistent::{Input, WorkRequest};
use crate::proto::rev2::platform::Property;
use crate::proto::worker::{PERSISTENT_KEY, PERSISTENT_PROTOCOL};
use crate::store::Cas;
use crate::worker::command::Command;
use crate::worker::inputs::Listed;
use crate::worker::sandbox::Limits;

use super::protocol::Protocol;

/// What makes a tool stay running.
const FLAG: &str = "--persistent_worker";
/// Before the name of a file of arguments; with the first, the tool gets the arguments, and with the others the name.
const FILE_PREFIXES: [&str; 3] = ["@", "-flagfile=", "--flagfile="];
/// Bytes of all arguments together, and how often files of arguments name others.
const ARGUMENTS_BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 16;

/// What a process must be for a request: two of the same may serve one another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// Inputs may be code that the tool runs, so whoever asks a process may change what it answers to others. No client's doing gets
    /// from one instance into the results of another.
    instance: String,
    /// Whatever the client takes for the same.
    client: String,
    /// The tool's files with their places and their looks.
    tool: Digest,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<String>,
    pub(super) root: usize,
    pub(super) limits: Limits,
    pub(super) protocol: Protocol,
}

/// One action as a request to a process.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) key: Key,
    pub(super) request: WorkRequest,
}

/// What an action asks for by its platform properties and its command, whatever its inputs are.
#[derive(Debug)]
pub(in crate::worker) struct Wish {
    instance: String,
    client: String,
    protocol: Protocol,
    /// Those that the process is started with.
    startup: Vec<String>,
    /// Those of the request, which name files.
    flags: Vec<String>,
}

impl Wish {
    /// `None` if the action does not ask for a process that stays, or in a way that cannot be served.
    pub(in crate::worker) fn of(instance: &str, properties: &[Property], command: &Command) -> Option<Self> {
        let value = |name: &str| {
            let mut all = properties.iter().filter(|property| property.name == name);
            let first = all.next().map(|property| property.value.as_str());
            all.next().is_none().then_some(first)
        };
        let client = value(PERSISTENT_KEY)??.to_owned();
        let protocol = Protocol::named(value(PERSISTENT_PROTOCOL)?)?;
        // The process stands in the exec root, where only what is below the entries at its top is a request's own.
        let is_at_top = |path: &str| !path.contains('/');
        if !command.working_directory.is_empty()
            || command.outputs.iter().any(|output| is_at_top(&output.path))
        {
            return None;
        }
        let (flags, startup): (Vec<_>, Vec<_>) = split(&command.arguments)?;
        Some(Self { instance: instance.to_owned(), client, protocol, startup, flags })
    }

    /// The request with these inputs; `None` if it needs what cannot be had.
    ///
    /// # Errors
    /// What the CAS reports.
    pub(super) async fn call(
        self,
        cas: &Cas,
        (command, files): (&Command, &[Listed]),
        (root, limits): (usize, Limits),
    ) -> Result<Option<Call>> {
        let Some(tool) = fingerprint(files) else { return Ok(None) };
        let Some(arguments) = expand(cas, self.flags, files).await? else { return Ok(None) };
        let inputs =
            files.iter().map(|file| Input { path: file.path.clone(), digest: file.digest.hex().into() });
        let request = WorkRequest { arguments, inputs: inputs.collect(), request_id: 0 };
        let key = Key {
            instance: self.instance,
            client: self.client,
            tool,
            arguments: self.startup,
            environment: command.environment.clone(),
            root,
            limits,
            protocol: self.protocol,
        };
        Ok(Some(Call { key, request }))
    }
}

/// The arguments of the request, which are the last ones, and those that start the process. `None` if there are none of the one or the
/// other, or they are mixed: then the tool might take them otherwise than it does in its ordinary run.
fn split(arguments: &[String]) -> Option<(Vec<String>, Vec<String>)> {
    let first = arguments.iter().position(|argument| file_of(argument).is_some())?;
    let (startup, flags) = arguments.split_at(first);
    if startup.is_empty() || flags.iter().any(|argument| file_of(argument).is_none()) {
        return None;
    }
    let startup = startup.iter().cloned().chain([FLAG.to_owned()]).collect();
    Some((flags.to_vec(), startup))
}

/// The file of arguments that `argument` names.
fn file_of(argument: &str) -> Option<&str> {
    FILE_PREFIXES.iter().find_map(|prefix| argument.strip_prefix(prefix)).filter(|name| !name.is_empty())
}

/// What tells tools apart; `None` if no file is marked as one's.
fn fingerprint(files: &[Listed]) -> Option<Digest> {
    use prost::Message;
    let mut bytes = Vec::new();
    for file in files.iter().filter(|file| file.is_tool()) {
        for part in [file.path.as_bytes(), &file.node.encode_to_vec()] {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
    }
    (!bytes.is_empty()).then(|| Function::Sha256.hash(&bytes))
}

/// The arguments with the lines of a file in place of each that stands for one; `None` if one cannot be read as text or there are too many.
async fn expand(cas: &Cas, flags: Vec<String>, files: &[Listed]) -> Result<Option<Vec<String>>> {
    let mut expanded = Vec::new();
    let mut left = ARGUMENTS_BYTES_MAX;
    // The next one is the last; beside each, in how many files it is.
    let mut waiting: Vec<(String, usize)> = flags.into_iter().rev().map(|flag| (flag, 0)).collect();
    while let Some((argument, depth)) = waiting.pop() {
        let Some(name) = inlined(&argument) else {
            expanded.push(argument);
            continue;
        };
        let found =
            files.binary_search_by(|file| file.path.as_str().cmp(name)).ok().map(|index| &files[index]);
        let Some(file) = found.filter(|file| depth < DEPTH_MAX && file.digest.size() <= left) else {
            return Ok(None);
        };
        // An empty file that names itself in no line costs something, too.
        left = left.saturating_sub(file.digest.size().max(1));
        let Some(content) = cas.read(&file.digest, ARGUMENTS_BYTES_MAX).await? else { return Ok(None) };
        let Ok(text) = std::str::from_utf8(&content) else { return Ok(None) };
        waiting.extend(text.lines().rev().map(|line| (line.to_owned(), depth + 1)));
    }
    Ok(Some(expanded))
}

/// The file whose lines are to stand in place of `argument`: neither `@@…` nor a label of a repository is one.
fn inlined(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix('@')?;
    (!name.is_empty() && !name.starts_with('@') && !name.contains("//")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rev2::{self, FileNode, NodeProperties, NodeProperty};
    use crate::worker::shelf::Shelf;

    const LIMITS: Limits = Limits::AMPLE;

    fn property(name: &str, value: &str) -> Property {
        Property { name: name.into(), value: value.into() }
    }

    fn command(arguments: &[&str], change: impl FnOnce(&mut rev2::Command)) -> Command {
        let mut command = rev2::Command {
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            output_paths: vec!["out/x".into()],
            ..rev2::Command::default()
        };
        change(&mut command);
        Command::check(command).unwrap()
    }

    fn wish(arguments: &[&str]) -> Option<Wish> {
        Wish::of("", &[property(PERSISTENT_KEY, "k")], &command(arguments, |_| {}))
    }

    /// Files by name and content; a name that begins with `!` is one of the tool's.
    async fn files(cas: &Cas, list: &[(&str, &str)]) -> Vec<Listed> {
        let mut files = Vec::new();
        for (name, content) in list {
            let digest = cas.put_bytes(Function::Sha256, content.to_string().into()).await.unwrap();
            let mark = NodeProperty { name: "bazel_tool_input".into(), value: String::new() };
            let properties = NodeProperties { properties: vec![mark], ..NodeProperties::default() };
            let node = FileNode {
                digest: Some(digest.to_proto()),
                node_properties: name.starts_with('!').then_some(properties),
                ..FileNode::default()
            };
            files.push(Listed { path: name.trim_start_matches('!').to_owned(), digest, node });
        }
        files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        files
    }

    async fn call(arguments: &[&str], list: &[(&str, &str)]) -> Option<Call> {
        let cas = Shelf::cas();
        let files = files(&cas, list).await;
        let wish = wish(arguments)?;
        wish.call(&cas, (&command(arguments, |_| {}), &files), (0, LIMITS)).await.unwrap()
    }

    #[test]
    fn only_what_can_be_served_is_a_wish() {
        let good = ["bin/tool", "-x", "@flags"];
        assert!(wish(&good).is_some());
        for bad in [&["bin/tool"][..], &["@flags"], &["bin/tool", "@flags", "-x"], &["bin/tool", "@"]] {
            assert!(wish(bad).is_none(), "{bad:?}");
        }
        let of = |properties: &[Property]| Wish::of("", properties, &command(&good, |_| {}));
        assert!(of(&[]).is_none());
        assert!(of(&[property(PERSISTENT_KEY, "k"), property(PERSISTENT_PROTOCOL, "json")]).is_some());
        assert!(of(&[property(PERSISTENT_KEY, "k"), property(PERSISTENT_PROTOCOL, "xml")]).is_none());
        assert!(of(&[property(PERSISTENT_KEY, "k"), property(PERSISTENT_KEY, "l")]).is_none());
        let key = [property(PERSISTENT_KEY, "k")];
        let top = command(&good, |command| command.output_paths.push("y".into()));
        let elsewhere = command(&good, |command| command.working_directory = "d".into());
        assert!(Wish::of("", &key, &top).is_none() && Wish::of("", &key, &elsewhere).is_none());
    }

    #[tokio::test]
    async fn files_of_arguments_become_the_arguments_of_the_request() {
        let list = [
            ("!bin/tool", "tool"),
            ("flags", "-a\n@more\n@@x\n@repository//label\n\n--flagfile=other"),
            ("more", "b c\r\n-d"),
        ];
        let call = call(&["bin/tool", "-s", "@flags", "--flagfile=more"], &list).await.unwrap();
        assert_eq!(call.key.arguments, ["bin/tool", "-s", "--persistent_worker"]);
        let expected =
            ["-a", "b c", "-d", "@@x", "@repository//label", "", "--flagfile=other", "--flagfile=more"];
        assert_eq!(call.request.arguments, expected);
        let inputs: Vec<_> = call.request.inputs.iter().map(|input| input.path.as_str()).collect();
        assert_eq!((inputs, call.request.inputs[0].digest.len()), (vec!["bin/tool", "flags", "more"], 64));
    }

    #[tokio::test]
    async fn what_has_no_tool_or_no_readable_arguments_is_no_call() {
        let arguments = ["bin/tool", "@flags"];
        for list in [
            &[("bin/tool", "tool"), ("flags", "-a")][..],
            &[("!bin/tool", "tool")],
            &[("!bin/tool", "tool"), ("flags", "@none")],
            &[("!bin/tool", "tool"), ("flags", "-a\n@flags")],
        ] {
            assert!(call(&arguments, list).await.is_none(), "{list:?}");
        }
    }

    #[tokio::test]
    async fn a_process_serves_only_what_has_the_same_tool_and_the_same_start() {
        let arguments = ["bin/tool", "@flags"];
        let key = |call: Option<Call>| call.unwrap().key;
        let one = key(call(&arguments, &[("!bin/tool", "tool"), ("flags", "-a"), ("x", "1")]).await);
        let other_inputs = key(call(&arguments, &[("!bin/tool", "tool"), ("flags", "-b")]).await);
        assert_eq!(one, other_inputs);
        for (arguments, list) in [
            (&arguments[..], &[("!bin/tool", "other tool"), ("flags", "-a")][..]),
            (&arguments, &[("!bin/tool", "tool"), ("!bin/library", ""), ("flags", "-a")]),
            (&["bin/tool", "-s", "@flags"], &[("!bin/tool", "tool"), ("flags", "-a")]),
        ] {
            assert_ne!(one, key(call(arguments, list).await), "{arguments:?}");
        }
    }
}
