//! Compares what two runs of one action have left, without looking into the files.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::proto::rev2::ActionResult;

use super::printable;
use super::report::{Change, Difference};

/// One output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    File { digest: Digest, is_executable: bool, mode: Option<u32> },
    Symlink { target: String },
    Directory,
}

/// The outputs of a run by their paths.
pub(super) type Outputs = BTreeMap<String, Output>;

/// A difference, with the two files whose contents can tell where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) difference: Difference,
    pub(super) contents: Option<(Digest, Digest)>,
}

/// How the outputs of the second run differ, in the order of their paths.
pub(super) fn outputs(before: &Outputs, again: &Outputs) -> Vec<Found> {
    let mut paths: Vec<&String> = before.keys().chain(again.keys()).collect();
    paths.sort();
    paths.dedup();
    let differing = paths.into_iter().filter_map(|path| {
        let (change, contents) = output(before.get(path), again.get(path))?;
        Some(found(path, change, contents))
    });
    differing.collect()
}

/// How the second run itself differs: its exit code and what it printed.
pub(super) fn runs(before: &ActionResult, again: &ActionResult) -> Vec<Found> {
    let mut differing = Vec::new();
    if before.exit_code != again.exit_code {
        differing.push(found("", Change::ExitCode { again: again.exit_code }, None));
    }
    // A text may be inside of one result and a blob of the other; the digests tell whenever both are blobs.
    if (&before.stdout_digest, &before.stdout_raw) != (&again.stdout_digest, &again.stdout_raw) {
        differing.push(found("", Change::Stdout, None));
    }
    if (&before.stderr_digest, &before.stderr_raw) != (&again.stderr_digest, &again.stderr_raw) {
        differing.push(found("", Change::Stderr, None));
    }
    differing
}

fn found(path: &str, change: Change, contents: Option<(Digest, Digest)>) -> Found {
    Found { difference: Difference { path: printable(path), change, location: None }, contents }
}

fn output(before: Option<&Output>, again: Option<&Output>) -> Option<(Change, Option<(Digest, Digest)>)> {
    use Output::{Directory, File, Symlink};
    let plain = |change| Some((change, None));
    let (Some(before), Some(again)) = (before, again) else {
        return plain(if before.is_some() { Change::Absent } else { Change::Added });
    };
    match (before, again) {
        (File { digest: one, .. }, File { digest: other, .. }) if one != other => {
            Some((Change::Content, Some((*one, *other))))
        }
        (File { is_executable: one, .. }, File { is_executable: other, .. }) if one != other => {
            plain(Change::Executable)
        }
        (File { mode: one, .. }, File { mode: other, .. }) if one != other => plain(Change::Mode),
        (Symlink { target: one }, Symlink { target: other }) if one != other => {
            plain(Change::Target { before: printable(one), again: printable(other) })
        }
        (File { .. }, File { .. }) | (Symlink { .. }, Symlink { .. }) | (Directory, Directory) => None,
        (File { .. } | Symlink { .. } | Directory, _) => plain(Change::Type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Function;

    fn file(content: &str) -> Output {
        let digest = Function::Sha256.hash(content.as_bytes());
        Output::File { digest, is_executable: false, mode: None }
    }

    fn changes(before: &[(&str, Output)], again: &[(&str, Output)]) -> Vec<(String, Change)> {
        let map = |side: &[(&str, Output)]| {
            side.iter().map(|(path, output)| ((*path).to_owned(), output.clone())).collect()
        };
        let found = outputs(&map(before), &map(again));
        found.into_iter().map(|one| (one.difference.path, one.difference.change)).collect()
    }

    #[test]
    fn equal_outputs_have_no_difference() {
        let side =
            [("a", file("a")), ("d", Output::Directory), ("l", Output::Symlink { target: "a".into() })];
        assert_eq!(changes(&side, &side), []);
    }

    #[test]
    fn every_kind_of_difference_is_named_with_its_path() {
        let Output::File { digest, .. } = file("x") else { panic!("a file") };
        let link = |target: &str| Output::Symlink { target: target.into() };
        let executable = Output::File { digest, is_executable: true, mode: None };
        let mode = |mode| Output::File { digest, is_executable: false, mode: Some(mode) };
        let before = [
            ("content", file("1")),
            ("gone", file("x")),
            ("link", link("a")),
            ("mode", mode(0o644)),
            ("type", Output::Directory),
            ("x", file("x")),
        ];
        let again = [
            ("content", file("2")),
            ("link", link("b")),
            ("mode", mode(0o600)),
            ("new\n", file("x")),
            ("type", link("a")),
            ("x", executable),
        ];
        let expected = [
            ("content", Change::Content),
            ("gone", Change::Absent),
            ("link", Change::Target { before: "a".into(), again: "b".into() }),
            ("mode", Change::Mode),
            ("new\\n", Change::Added),
            ("type", Change::Type),
            ("x", Change::Executable),
        ];
        assert_eq!(
            changes(&before, &again),
            expected.map(|(path, change)| (path.to_owned(), change)),
            "what a path has of control characters is escaped"
        );
    }

    #[test]
    fn what_is_printed_does_not_matter_and_an_exit_code_does() {
        let again = ActionResult { exit_code: 1, stdout_raw: b"12:00"[..].into(), ..ActionResult::default() };
        let found = runs(&ActionResult::default(), &again);
        let matters: Vec<bool> = found.iter().map(|one| one.difference.change.matters()).collect();
        assert_eq!(matters, [true, false]);
        assert_eq!(found[1].difference.change, Change::Stdout);
    }
}
