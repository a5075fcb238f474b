//! What an action consists of, as the CAS has it: its command, environment and platform.

use maud::{Markup, html};

use crate::digest::{Digest, Function};
use crate::proto::read_duration;
use crate::proto::rev2::{self, Action, ActionResult, Command};
use crate::store::Cas;

use super::page::{facts, table};
use super::text;

/// Bytes of a command that is shown; a longer one is read by a client.
const COMMAND_BYTES_MAX: u64 = 1 << 20;

/// Bytes of an action.
const ACTION_BYTES_MAX: u64 = 1 << 20;

/// Variables and properties that are shown: more than any action should have.
const PAIRS_MAX: usize = 500;

/// An action as far as it can be read.
#[derive(Debug, Default)]
pub(super) struct Read {
    action: Option<Action>,
    command: Option<Command>,
}

/// Reads an action and its command. What is gone, too large or broken is left out.
pub(super) async fn read(cas: &Cas, digest: &Digest) -> Read {
    let Some(action) = message::<Action>(cas, digest, ACTION_BYTES_MAX).await else { return Read::default() };
    let command = match Digest::from_proto(digest.function(), action.command_digest.as_ref()) {
        Ok(digest) => message::<Command>(cas, &digest, COMMAND_BYTES_MAX).await,
        Err(_) => None,
    };
    Read { action: Some(action), command }
}

async fn message<M: prost::Message + Default>(cas: &Cas, digest: &Digest, max: u64) -> Option<M> {
    if digest.size() > max {
        return None;
    }
    cas.message(digest).await.ok().flatten()
}

impl Read {
    pub(super) fn input_root(&self, function: Function) -> Option<Digest> {
        let named = self.action.as_ref()?.input_root_digest.as_ref()?;
        Digest::from_proto(function, Some(named)).ok()
    }

    /// Whether both are to make the same outputs, and something at all.
    pub(super) fn has_outputs_of(&self, other: &Self) -> bool {
        let (Some(own), Some(other)) = (&self.command, &other.command) else { return false };
        let own = outputs(own);
        !own.is_empty() && own == outputs(other)
    }

    fn part<T>(&self, part: impl Fn(&Action) -> T) -> Option<T> {
        self.action.as_ref().map(part)
    }

    /// In what another action is otherwise, in words.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (Some(own), Some(other_command)) = (&self.command, &other.command) else { return Vec::new() };
        let platforms = [(self, own), (other, other_command)];
        let [platform, other_platform] =
            platforms.map(|(read, command)| read.properties(command).collect::<Vec<_>>());
        let differs = [
            ("command line", own.arguments != other_command.arguments),
            ("environment", own.environment_variables != other_command.environment_variables),
            ("working directory", own.working_directory != other_command.working_directory),
            (
                "input tree",
                self.part(|action| action.input_root_digest.clone())
                    != other.part(|action| action.input_root_digest.clone()),
            ),
            ("platform", platform != other_platform),
            ("timeout", self.part(|action| action.timeout) != other.part(|action| action.timeout)),
            ("salt", self.part(|action| action.salt.clone()) != other.part(|action| action.salt.clone())),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// The command line, the environment and the platform.
    pub(super) fn show(&self) -> Markup {
        html! { (self.command_line()) (self.surroundings()) }
    }

    pub(super) fn command_line(&self) -> Markup {
        let Some(command) = &self.command else {
            return html! { p.warn { "The action or its command is not in the CAS any more, or is too large to be shown." } };
        };
        html! {
            h2 { "Command" }
            button type="button" hidden data-copy="command" { "Copy the command line" }
            pre #command tabindex="0" { (text::command_line(&command.arguments)) }
        }
    }

    /// Where the command runs, what it is to make, the environment and the platform.
    pub(super) fn surroundings(&self) -> Markup {
        let Some(command) = &self.command else { return html! {} };
        let variables =
            command.environment_variables.iter().map(|one| (one.name.as_str(), one.value.as_str()));
        html! {
            h2 { "Where it runs" }
            (self.circumstances(command))
            h2 { "Environment" }
            (pairs("Environment", variables))
            h2 { "Platform" }
            (pairs("Platform properties", self.properties(command)))
        }
    }

    fn circumstances(&self, command: &Command) -> Markup {
        let action = self.action.as_ref();
        let timeout = action.and_then(|action| read_duration(action.timeout.as_ref()?));
        let directory =
            if command.working_directory.is_empty() { "the input root" } else { &command.working_directory };
        facts(&[
            ("Working directory", html! { (text::visible(directory)) }),
            ("Timeout", html! { (timeout.map_or_else(|| "the farm's default".to_owned(), text::duration)) }),
            (
                "Outputs wanted",
                html! {
                    @for output in outputs(command).into_iter().take(PAIRS_MAX) { code { (text::visible(output)) } br; }
                    @if outputs(command).is_empty() { "none" }
                },
            ),
        ])
    }

    fn properties<'a>(&'a self, command: &'a Command) -> impl Iterator<Item = (&'a str, &'a str)> {
        #[expect(deprecated, reason = "clients older than 2.2 send it")]
        let of_command = command.platform.as_ref();
        let platform = self.action.as_ref().and_then(|action| action.platform.as_ref()).or(of_command);
        let properties = platform.into_iter().flat_map(|platform| &platform.properties);
        properties.map(|property| (property.name.as_str(), property.value.as_str()))
    }
}

/// The outputs that a command is to make.
fn outputs(command: &Command) -> Vec<&String> {
    #[expect(deprecated, reason = "clients older than 2.1 send them")]
    let old = command.output_files.iter().chain(&command.output_directories);
    // Bazel says the same in both ways, and the newer one is what counts.
    if command.output_paths.is_empty() { old.collect() } else { command.output_paths.iter().collect() }
}

fn pairs<'a>(label: &str, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Markup {
    let pairs: Vec<(&str, &str)> = pairs.take(PAIRS_MAX).collect();
    let rows = html! {
        @for (name, value) in &pairs { tr { td { code { (text::visible(name)) } } td { code { (text::visible(value)) } } } }
    };
    html! {
        @if pairs.is_empty() { p.quiet { "None." } } @else { (table(label, &["Name", "Value"], &rows)) }
    }
}

/// What a result has, in numbers.
pub(super) fn result(result: &ActionResult) -> Markup {
    let printed = |digest: &Option<rev2::Digest>, raw: &[u8]| {
        let size =
            digest.as_ref().map_or(raw.len() as u64, |digest| u64::try_from(digest.size_bytes).unwrap_or(0));
        html! { (text::bytes(size)) }
    };
    let worker = result.execution_metadata.as_ref().map_or("", |metadata| metadata.worker.as_str());
    facts(&[
        ("Exit code", html! { (result.exit_code) }),
        ("Outputs", html! { (outputs_in_words(result)) }),
        ("Standard output", printed(&result.stdout_digest, &result.stdout_raw)),
        ("Standard error", printed(&result.stderr_digest, &result.stderr_raw)),
        ("Worker", html! { (text::or_dash(worker)) }),
    ])
}

fn outputs_in_words(result: &ActionResult) -> String {
    let sizes = result.output_files.iter().filter_map(|file| file.digest.as_ref());
    let bytes: i64 = sizes.map(|digest| digest.size_bytes).sum();
    let size = format!(" ({})", text::bytes(u64::try_from(bytes).unwrap_or(0)));
    let counts = [
        (result.output_files.len(), ("file", "files"), size.as_str()),
        (result.output_directories.len(), ("directory", "directories"), ""),
        (result.output_symlinks.len(), ("link", "links"), ""),
    ];
    let some = counts.into_iter().filter(|(count, _, _)| *count > 0);
    let words: Vec<String> = some.map(|(count, names, size)| text::counted(count, names) + size).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rev2::platform::Property;

    fn read(arguments: &[&str], root: &[u8], pool: &str) -> Read {
        let property = Property { name: "Pool".into(), value: pool.into() };
        let action = Action {
            input_root_digest: Some(Function::Sha256.hash(root).to_proto()),
            platform: Some(rev2::Platform { properties: vec![property] }),
            ..Action::default()
        };
        let command = Command {
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            output_paths: vec!["out".into()],
            ..Command::default()
        };
        Read { action: Some(action), command: Some(command) }
    }

    #[test]
    fn outputs_are_told_in_words() {
        let mut result = ActionResult::default();
        assert_eq!(outputs_in_words(&result), "none");
        let digest = Some(Function::Sha256.hash(b"four").to_proto());
        result.output_files = vec![rev2::OutputFile { digest, ..Default::default() }; 2];
        result.output_directories = vec![rev2::OutputDirectory::default()];
        assert_eq!(outputs_in_words(&result), "2 files (8 B), 1 directory");
    }

    #[test]
    fn outputs_that_are_wanted_in_both_ways_are_told_once() {
        let mut command = Command { output_paths: vec!["a".into(), "b".into()], ..Command::default() };
        #[expect(deprecated, reason = "this is how older clients say it")]
        command.output_files.push("a".into());
        assert_eq!(outputs(&command), ["a", "b"]);
        command.output_paths.clear();
        assert_eq!(outputs(&command), ["a"]);
    }

    #[test]
    fn what_differs_between_two_actions_is_named() {
        let one = read(&["cc", "a"], b"root", "x");
        assert!(one.has_outputs_of(&one) && one.differences(&one).is_empty());
        let other = read(&["cc", "b"], b"other", "y");
        assert_eq!(one.differences(&other), ["command line", "input tree", "platform"]);
        assert!(!one.has_outputs_of(&Read::default()) && one.differences(&Read::default()).is_empty());
    }
}
