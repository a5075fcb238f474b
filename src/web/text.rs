//! How times, sizes and texts of clients look on a page.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use humantime_serde::re::humantime::{format_duration, format_rfc3339_seconds};
use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::digest::Digest;

/// What stands as it is in a segment of an address.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Hexadecimal digits by which people tell digests and identifiers apart.
const SHORT: usize = 12;

/// A time for people: three digits of what is short, whole seconds of what is long.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_secs() {
        0 if duration.is_zero() => "0 ms".to_owned(),
        0 if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        0 => format!("{:.0} ms", seconds * 1e3),
        1..10 => format!("{seconds:.2} s"),
        10..60 => format!("{seconds:.1} s"),
        whole => format_duration(Duration::from_secs(whole)).to_string(),
    }
}

pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A count with commas between its thousands.
pub(super) fn count(count: impl TryInto<u64>) -> String {
    let digits = count.try_into().unwrap_or(u64::MAX).to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count of things: `1 action`, `1,234 actions`.
pub(super) fn counted(number: impl TryInto<u64>, (one, many): (&str, &str)) -> String {
    let number = count(number);
    if number == "1" { format!("1 {one}") } else { format!("{number} {many}") }
}

/// A text of somebody else, or a dash where there is none.
pub(super) fn or_dash(text: &str) -> Cow<'_, str> {
    if text.is_empty() { Cow::Borrowed("–") } else { visible(text) }
}

/// The name of an instance; a usual farm has one only, without a name.
pub(super) fn instance(name: &str) -> Cow<'_, str> {
    if name.is_empty() { Cow::Borrowed("without a name") } else { visible(name) }
}

pub(super) fn percent(part: Option<f64>) -> String {
    part.map_or_else(|| "–".to_owned(), |part| format!("{:.1} %", 100.0 * part))
}

/// A moment, in a form that machines read, too.
pub(super) fn moment(time: SystemTime) -> Markup {
    let text = written(time);
    html! { time datetime=(text) { (for_people(&text)) } }
}

/// A moment within a sentence.
pub(super) fn moment_in_words(time: SystemTime) -> String {
    for_people(&written(time))
}

/// How long ago a moment was, with the moment itself for whoever points at it.
pub(super) fn ago(time: SystemTime) -> Markup {
    let text = written(time);
    let since = SystemTime::now().duration_since(time).unwrap_or_default();
    html! { time datetime=(text) title=(for_people(&text)) { (since_then(since)) } }
}

/// One unit is enough to tell what was when; whoever wants more points at it.
fn since_then(since: Duration) -> String {
    match since.as_secs() {
        0 => "just now".to_owned(),
        seconds @ 1..60 => format!("{seconds} s ago"),
        seconds @ 60..3_600 => format!("{} min ago", seconds / 60),
        seconds @ 3_600..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", count(seconds / 86_400)),
    }
}

fn written(time: SystemTime) -> String {
    // A clock after the year 9999 has no such form, and would be a wrong one.
    let time = time.min(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799));
    format_rfc3339_seconds(time).to_string()
}

fn for_people(written: &str) -> String {
    written.replace('T', " ").replace('Z', " UTC")
}

/// The beginning of an identifier.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// A digest as people recognize it, with all of it for whoever points at it.
pub(super) fn digest(digest: &Digest) -> Markup {
    html! { code title=(digest) { (short(&digest.hex())) "…/" (digest.size()) } }
}

/// One segment of an address.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The path of a file as segments of an address.
pub(super) fn path(path: &str) -> String {
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// As much of a text as there is room for, with a sign where there is more.
pub(super) fn brief(text: &str, chars_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Text with what a browser would hide or obey made visible: control characters, and those that turn the direction of writing, with which
/// a text can look like another one. What terminals are told is left out.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = match sequence(rest) {
            Some((_, after)) => after,
            None => {
                push_visible(&mut shown, first);
                &rest[first.len_utf8()..]
            }
        };
    }
    Cow::Owned(shown)
}

/// Characters of a control sequence that a text begins with, at most: titles and addresses are among them.
const SEQUENCE_MAX: usize = 4 << 10;

/// The control sequence of terminals at the beginning of a text, if there is one, and what comes after it. It is ESC, `[`, parameters and a
/// letter, or ESC, `]`, a text and BEL or ESC `\`.
pub(super) fn sequence(text: &str) -> Option<(&str, &str)> {
    let length = match text.strip_prefix('\u{1b}')?.chars().next()? {
        '[' => {
            let is_parameter = |c: char| c.is_ascii_digit() || matches!(c, ';' | ':' | '?');
            let last = 2 + text[2..].find(|c| !is_parameter(c))?;
            text[last..].starts_with(|c: char| c.is_ascii_alphabetic()).then_some(last + 1)?
        }
        ']' => {
            // A text of many beginnings is not looked through again to its end for each.
            let within = text.char_indices().take(SEQUENCE_MAX).skip(2);
            let (end, last) = within.clone().find(|(_, c)| matches!(c, '\u{7}' | '\u{1b}' | '\n'))?;
            match last {
                '\u{7}' => end + 1,
                '\u{1b}' if text[end + 1..].starts_with('\\') => end + 2,
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(text.split_at(length))
}

fn push_visible(shown: &mut String, character: char) {
    if !is_hidden(character) {
        shown.push(character);
    } else if character < ' ' {
        // The pictures of control characters stand in the order of what they show.
        shown.push(char::from_u32(0x2400 + u32::from(character)).unwrap_or('\u{fffd}'));
    } else {
        // Writing into a string does not fail.
        let _ = write!(shown, "<U+{:04X}>", u32::from(character));
    }
}

fn is_hidden(character: char) -> bool {
    let is_turn =
        matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (character.is_control() && !matches!(character, '\n' | '\t')) || is_turn
}

/// The arguments as a POSIX shell takes them.
pub(super) fn command_line(arguments: &[String]) -> String {
    arguments.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ")
}

/// One word for the shell. What would not be seen is written in the form `$'…'`, which bash and zsh read.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if !word.chars().any(|c| is_hidden(c) || c == '\n' || c == '\t') {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    let mut text = String::from("$'");
    for character in word.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\'' | '\\' => text.extend(['\\', character]),
            hidden if is_hidden(hidden) => {
                // Writing into a string does not fail.
                let _ = write!(text, "\\U{:08x}", u32::from(hidden));
            }
            other => text.push(other),
        }
    }
    text + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_hidden_is_seen() {
        assert!(matches!(visible("a\tb\nc <b>"), Cow::Borrowed(_)));
        assert_eq!(visible("\u{1b}[1;31merror\u{1b}[0m: x\r\u{0}"), "error: x␍␀");
        assert_eq!(visible("\u{1b}]0;title"), "␛]0;title");
        assert_eq!(visible("\u{1b}]0;title\u{7}a\u{1b}]8;;x\u{1b}\\b\u{1b}]8;;\u{1b}[c"), "ab␛]8;;");
        assert_eq!(visible("a\u{202e}b\u{7f}"), "a<U+202E>b<U+007F>");
    }

    #[test]
    fn what_there_is_no_room_for_is_cut_and_said_to_be() {
        assert_eq!((brief("äöü", 3), brief("äöü", 2), brief("", 0)), ("äöü".into(), "äö…".into(), "".into()));
    }

    #[test]
    fn a_command_line_is_one_for_the_shell() {
        let line =
            |words: &[&str]| command_line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(line(&["/bin/cc", "-o", "a.o", "--x=y"]), "/bin/cc -o a.o --x=y");
        assert_eq!(line(&["sh", "-c", "echo 'a' $b", ""]), r"sh -c 'echo '\''a'\'' $b' ''");
        assert_eq!(line(&["a\nb\\\u{202e}'"]), r"$'a\nb\\\U0000202e\''");
        let words = ["a b", "it's", "<script>", "x\ny\t\u{1}", "$(id)", "ä", "*"];
        let script = format!("printf '%s|' {}", line(&words));
        if let Ok(output) =
            std::process::Command::new("bash").env("LC_ALL", "C.UTF-8").args(["-c", &script]).output()
        {
            assert_eq!(
                String::from_utf8(output.stdout).unwrap(),
                words.map(|word| format!("{word}|")).concat()
            );
        }
    }

    #[test]
    fn counts_are_read_at_a_glance() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (10_217, "10,217"), (1_234_567, "1,234,567")]
        {
            assert_eq!(count(number), text);
        }
        let actions = ("action", "actions");
        assert_eq!(
            [counted(0, actions), counted(1, actions), counted(2_000, actions)],
            ["0 actions", "1 action", "2,000 actions"]
        );
    }

    #[test]
    fn what_was_is_told_from_now_on() {
        for (seconds, text) in [
            (0, "just now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3_600, "1 h ago"),
            (172_799, "47 h ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(since_then(Duration::from_secs(seconds)), text);
        }
        let shown = ago(SystemTime::UNIX_EPOCH).into_string();
        assert!(shown.contains("title=\"1970-01-01 00:00:00 UTC\"") && shown.contains("days ago"), "{shown}");
    }

    #[test]
    fn times_have_three_digits() {
        for (milliseconds, text) in
            [(3, "3.0 ms"), (42, "42 ms"), (1_234, "1.23 s"), (12_345, "12.3 s"), (3_661_000, "1h 1m 1s")]
        {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn a_path_in_an_address_keeps_its_segments() {
        assert_eq!(path("a b/c?d#e/<f>/ü"), "a%20b/c%3Fd%23e/%3Cf%3E/%C3%BC");
    }
}
