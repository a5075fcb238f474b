//! An action and its command, checked: what the rest of the worker may trust.

use super::inputs::tree::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::digest::{Digest, Function};
use crate::error::{Error, Result};
use crate::proto::rev2::{self, command::OutputDirectoryFormat};

/// What to run and what to keep of it.
#[derive(Debug)]
pub(super) struct Command {
    /// The program and its arguments; not empty.
    pub(super) arguments: Vec<String>,
    /// `NAME=value`, each.
    pub(super) environment: Vec<String>,
    /// Relative to the input root, without `.` and `..`; empty for the input root itself.
    pub(super) working_directory: String,
    pub(super) outputs: Vec<Output>,
    pub(super) format: Format,
}

/// An output that the client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// As the client wrote it; the result names it so.
    pub(super) name: String,
    /// Relative to the input root.
    pub(super) path: String,
    pub(super) expected: Expected,
}

/// What may be found at an output's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// `output_paths`, since REv2 2.1.
    Any,
    /// `output_files`, before.
    File,
    /// `output_directories`, before.
    Directory,
}

/// In which forms the client wants directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) is_tree: bool,
    pub(super) is_directory: bool,
}

impl Command {
    /// Checks a command of the CAS.
    ///
    /// # Errors
    /// `Invalid`, with a message that names what is wrong.
    pub(super) fn check(command: rev2::Command) -> Result<Self> {
        let working_directory = relative(&command.working_directory)
            .map_err(|why| refuse("working directory", &command.working_directory, why))?;
        Ok(Self {
            outputs: outputs(&command, &working_directory)?,
            format: format(command.output_directory_format)?,
            environment: environment(command.environment_variables)?,
            arguments: arguments(command.arguments)?,
            working_directory,
        })
    }
}

fn arguments(arguments: Vec<String>) -> Result<Vec<String>> {
    if arguments.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("the command names no program"));
    }
    match arguments.iter().position(|argument| argument.contains('\0')) {
        Some(index) => {
            Err(Error::invalid(format!("argument {index} of the command contains a NUL character")))
        }
        None => Ok(arguments),
    }
}

fn environment(variables: Vec<rev2::command::EnvironmentVariable>) -> Result<Vec<String>> {
    let check = |variable: rev2::command::EnvironmentVariable| {
        let rev2::command::EnvironmentVariable { name, value } = variable;
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(format!(
                "environment variable `{}` cannot be set",
                name.escape_default()
            )));
        }
        Ok(format!("{name}={value}"))
    };
    variables.into_iter().map(check).collect()
}

fn format(value: i32) -> Result<Format> {
    match OutputDirectoryFormat::try_from(value) {
        Ok(OutputDirectoryFormat::TreeOnly) => Ok(Format { is_tree: true, is_directory: false }),
        Ok(OutputDirectoryFormat::DirectoryOnly) => Ok(Format { is_tree: false, is_directory: true }),
        Ok(OutputDirectoryFormat::TreeAndDirectory) => Ok(Format { is_tree: true, is_directory: true }),
        Err(_) => Err(Error::invalid(format!("output directory format {value} is not known"))),
    }
}

#[expect(deprecated, reason = "clients of REv2 2.0 send these fields")]
fn outputs(command: &rev2::Command, working_directory: &str) -> Result<Vec<Output>> {
    // The old fields must be ignored when the new one is there.
    let (paths, files, directories): (&[String], &[String], &[String]) = if command.output_paths.is_empty() {
        (&[], &command.output_files, &command.output_directories)
    } else {
        (&command.output_paths, &[], &[])
    };
    let expect = |names: &[String], expected| -> Vec<(String, Expected)> {
        names.iter().map(|name| (name.clone(), expected)).collect()
    };
    let all = [
        expect(paths, Expected::Any),
        expect(files, Expected::File),
        expect(directories, Expected::Directory),
    ];
    all.into_iter().flatten().map(|(name, expected)| output(name, expected, working_directory)).collect()
}

fn output(name: String, expected: Expected, working_directory: &str) -> Result<Output> {
    let path = relative(&name).map_err(|why| refuse("output path", &name, why))?;
    if path.is_empty() && expected == Expected::File {
        return Err(refuse("output path", &name, "names the working directory, which is no file"));
    }
    let path = join(working_directory, &path);
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid(format!(
            "an output path has {} bytes; the limit is {PATH_BYTES_MAX}",
            path.len()
        )));
    }
    if let Some(long) = path.split('/').find(|name| name.len() > NAME_BYTES_MAX) {
        return Err(Error::invalid(format!("an output path has a name of {} bytes", long.len())));
    }
    Ok(Output { path, name, expected })
}

/// The path without empty and `.` segments.
fn relative(path: &str) -> Result<String, &'static str> {
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if path.contains('\0') {
        return Err("contains a NUL character");
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    if segments.contains(&"..") {
        return Err("contains `..`");
    }
    Ok(segments.join("/"))
}

/// `path` below `directory`; either may be empty.
pub(super) fn join(directory: &str, path: &str) -> String {
    match (directory, path) {
        ("", path) => path.to_owned(),
        (directory, "") => directory.to_owned(),
        (directory, path) => format!("{directory}/{path}"),
    }
}

fn refuse(what: &str, path: &str, why: &str) -> Error {
    Error::invalid(format!("{what} `{}` {why}", path.escape_default()))
}

/// Reads a digest of a message that the client wrote.
///
/// # Errors
/// `Invalid`, with a message that says which digest.
pub(super) fn digest(function: Function, digest: Option<&rev2::Digest>, what: &str) -> Result<Digest> {
    Digest::from_proto(function, digest).map_err(|error| Error::invalid(format!("{what}: {error}")))
}

#[cfg(test)]
#[expect(deprecated, reason = "clients of REv2 2.0 send these fields")]
mod tests {
    use super::*;

    fn command() -> rev2::Command {
        rev2::Command { arguments: vec!["tool".into()], ..rev2::Command::default() }
    }

    fn paths(command: rev2::Command) -> Vec<(String, String, Expected)> {
        let outputs = Command::check(command).expect("a good command").outputs;
        outputs.into_iter().map(|output| (output.name, output.path, output.expected)).collect()
    }

    #[test]
    fn outputs_are_relative_to_the_working_directory() {
        let command = rev2::Command {
            working_directory: "a/./b/".into(),
            output_paths: vec!["out//x".into(), String::new()],
            output_files: vec!["ignored".into()],
            ..command()
        };
        assert_eq!(
            paths(command),
            [
                ("out//x".into(), "a/b/out/x".into(), Expected::Any),
                (String::new(), "a/b".into(), Expected::Any)
            ]
        );
    }

    #[test]
    fn old_fields_count_without_the_new_one() {
        let command = rev2::Command {
            output_files: vec!["f".into()],
            output_directories: vec!["d".into()],
            ..command()
        };
        assert_eq!(
            paths(command),
            [("f".into(), "f".into(), Expected::File), ("d".into(), "d".into(), Expected::Directory)]
        );
    }

    #[test]
    fn bad_commands_are_refused_by_name() {
        let variable = |name: &str, value: &str| {
            vec![rev2::command::EnvironmentVariable { name: name.into(), value: value.into() }]
        };
        let cases = [
            (rev2::Command::default(), "the command names no program"),
            (rev2::Command { arguments: vec![String::new()], ..command() }, "the command names no program"),
            (rev2::Command { arguments: vec!["a".into(), "b\0".into()], ..command() }, "argument 1 of"),
            (
                rev2::Command { output_paths: vec!["/etc/x".into()], ..command() },
                "output path `/etc/x` is absolute",
            ),
            (
                rev2::Command { output_paths: vec!["a/../../b".into()], ..command() },
                "`a/../../b` contains `..`",
            ),
            (rev2::Command { output_files: vec![String::new()], ..command() }, "which is no file"),
            (
                rev2::Command { working_directory: "../x".into(), ..command() },
                "working directory `../x` contains",
            ),
            (
                rev2::Command { environment_variables: variable("A=B", ""), ..command() },
                "variable `A=B` cannot",
            ),
            (
                rev2::Command { environment_variables: variable("A", "\0"), ..command() },
                "variable `A` cannot",
            ),
            (rev2::Command { output_directory_format: 9, ..command() }, "format 9 is not known"),
        ];
        for (command, sentence) in cases {
            let error = Command::check(command).expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
