//! What commands print, as a terminal shows it as far as a page can: colours, and carriage returns as ends of lines.

use maud::{Markup, html};

use super::text;

/// How text looks from some place on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Look {
    is_bold: bool,
    /// From 1 on: red, green, yellow, blue, magenta, cyan. What is black or white on a terminal has the colour of text here.
    colour: Option<u16>,
}

/// Bytes as text with its colours. What a browser would hide is made visible, what only moves the cursor is left out.
pub(super) fn show(bytes: &[u8]) -> Markup {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
    let (mut look, mut rest, mut pieces) = (Look::default(), text.as_str(), Vec::new());
    while !rest.is_empty() {
        if let Some((sequence, after)) = text::sequence(rest) {
            look = look.after(sequence);
            rest = after;
            continue;
        }
        // The first character is no sequence, even if it begins like one.
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let end = rest[first..].find('\u{1b}').map_or(rest.len(), |at| first + at);
        pieces.push((look, &rest[..end]));
        rest = &rest[end..];
    }
    html! {
        @for (look, piece) in pieces {
            @match look.class() {
                Some(class) => span class=(class) { (text::visible(piece)) },
                None => (text::visible(piece)),
            }
        }
    }
}

impl Look {
    /// As it is after a control sequence; only those that end in `m` say how text looks.
    fn after(mut self, sequence: &str) -> Self {
        let parameters = sequence.strip_prefix("\u{1b}[").and_then(|rest| rest.strip_suffix('m'));
        let Some(parameters) = parameters else { return self };
        let mut numbers = parameters.split([';', ':']).map(|number| number.parse().unwrap_or(0_u16));
        while let Some(number) = numbers.next() {
            match number {
                0 => self = Self::default(),
                1 => self.is_bold = true,
                22 => self.is_bold = false,
                30..=37 => self.colour = colour(number - 30),
                90..=97 => self.colour = colour(number - 90),
                // One of 256 colours, the first of which are those above, or a mixture, which has the colour of text here.
                38 => self.colour = palette(&mut numbers),
                48 => {
                    palette(&mut numbers);
                }
                39 => self.colour = None,
                _ => {}
            }
        }
        self
    }

    fn class(self) -> Option<String> {
        let bold = self.is_bold.then(|| "bold".to_owned());
        let colour = self.colour.map(|colour| format!("colour-{colour}"));
        let classes: Vec<String> = bold.into_iter().chain(colour).collect();
        (!classes.is_empty()).then(|| classes.join(" "))
    }
}

fn colour(number: u16) -> Option<u16> {
    (1..=6).contains(&number).then_some(number)
}

/// Takes the parameters of a colour: `5;NUMBER` or `2;RED;GREEN;BLUE`.
fn palette(numbers: &mut impl Iterator<Item = u16>) -> Option<u16> {
    match numbers.next()? {
        5 => numbers.next().filter(|number| *number < 16).and_then(|number| colour(number % 8)),
        2 => numbers.nth(2).and(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        show(text.as_bytes()).into_string()
    }

    #[test]
    fn colours_are_shown_and_what_is_coloured_is_text() {
        for (text, html) in [
            ("plain <b>\n", "plain &lt;b&gt;\n"),
            ("\u{1b}[1;31m<i>\u{1b}[0m: x", "<span class=\"bold colour-1\">&lt;i&gt;</span>: x"),
            ("\u{1b}[92mok\u{1b}[m", "<span class=\"colour-2\">ok</span>"),
            ("\u{1b}[1ma\u{1b}[22mb", "<span class=\"bold\">a</span>b"),
            ("\u{1b}[36ma\u{1b}[39mb", "<span class=\"colour-6\">a</span>b"),
            ("\u{1b}[38;5;12ma\u{1b}[38;5;200mb", "<span class=\"colour-4\">a</span>b"),
            ("\u{1b}[38;2;1;31;3;1ma", "<span class=\"bold\">a</span>"),
            ("\u{1b}[48;5;1ma\u{1b}[37mb\u{1b}[99999999mc", "abc"),
        ] {
            assert_eq!(shown(text), html, "{text:?}");
        }
    }

    #[test]
    fn what_moves_the_cursor_is_left_out_and_lines_end_where_it_returns() {
        for (text, html) in [
            ("10%\r20%\r\ndone", "10%\n20%\ndone"),
            ("\u{1b}[2K\u{1b}[1Aa", "a"),
            ("\u{1b}]8;;http://x\u{1b}\\name\u{1b}]8;;\u{7}!", "name!"),
            ("\u{1b}]never ends", "␛]never ends"),
            ("\u{1b}\u{1b}[31ma", "␛<span class=\"colour-1\">a</span>"),
            ("\u{1b}", "␛"),
            ("a\u{202e}", "a&lt;U+202E&gt;"),
        ] {
            assert_eq!(shown(text), html, "{text:?}");
        }
        assert_eq!(show(b"\xff\xfe").into_string(), "\u{fffd}\u{fffd}");
    }
}
