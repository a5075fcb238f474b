//! Differences planted in texts, archives, ELF files and plain bytes.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::digest::Function;
use crate::store::{Memory, Verified};

/// An archive with one member a name: as `ar` writes it, with this date and content.
fn archive(members: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut file = b"!<arch>\n".to_vec();
    for (name, date, content) in members {
        let name = format!("{name}/");
        let size = content.len();
        file.extend(format!("{name:<16}{date:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 644).bytes());
        file.extend_from_slice(content);
        file.resize(file.len().next_multiple_of(2), b'\n');
    }
    file
}

/// A 64-bit ELF file whose sections have these names and contents.
fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = vec![0];
    let mut contents = vec![0; 64];
    let mut headers = vec![[0_u64; 8]];
    let strings = (".shstrtab", &[][..]);
    for (name, content) in sections.iter().chain([&strings]) {
        let at = names.len() as u64;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        let is_strings = *name == strings.0;
        let content = if is_strings { names.as_slice() } else { content };
        let kind = if is_strings { 3 } else { 1 };
        headers.push([at | (kind << 32), 0, 0, contents.len() as u64, content.len() as u64, 0, 1, 0]);
        contents.extend_from_slice(content);
    }
    let start = contents.len() as u64;
    let count = u16::try_from(headers.len()).unwrap();
    contents[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    contents[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
    contents[40..48].copy_from_slice(&start.to_le_bytes());
    contents[52..54].copy_from_slice(&64_u16.to_le_bytes());
    contents[58..60].copy_from_slice(&64_u16.to_le_bytes());
    contents[60..62].copy_from_slice(&count.to_le_bytes());
    contents[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    contents.extend(headers.iter().flatten().flat_map(|word| word.to_le_bytes()));
    contents
}

#[test]
fn a_text_is_located_by_its_line() {
    let location = within(b"one\nbuilt at 12:00\nend\n", b"one\nbuilt at 12:01\nend\n");
    let (before, again) = ("built at 12:00".into(), "built at 12:01".into());
    assert_eq!(location, Location::Text { line: 2, before, again });
    let longer = within(b"a\n", b"a\nb\n");
    assert_eq!(longer, Location::Text { line: 2, before: String::new(), again: "b".into() });
}

#[test]
fn what_is_shown_of_a_line_is_short_and_harmless() {
    let line =
        |end: &str| format!("{}\x1b[31m{end}{}", "x".repeat(100_000), "y".repeat(100_000)).into_bytes();
    let Location::Text { before, again, .. } = within(&line("1"), &line("2")) else { panic!("a text") };
    assert!(before.contains("\\u{1b}[31m1") && again.contains("\\u{1b}[31m2"), "{before}");
    assert!(before.len() < 2 * (BEFORE_BYTES_MAX + SHOWN_BYTES_MAX), "{before}");
}

#[test]
fn a_timestamp_in_an_archive_is_located_by_its_member() {
    let one = archive(&[("a.o", 7, b"same"), ("b.o", 100, b"same"), ("c.o", 0, b"x")]);
    let other = archive(&[("a.o", 7, b"same"), ("b.o", 200, b"same"), ("c.o", 0, b"y")]);
    let members = vec!["b.o (date)".to_owned(), "c.o (content)".to_owned()];
    assert_eq!(within(&one, &other), Location::Archive { members, unlisted: 0 });
    let fewer = archive(&[("a.o", 7, b"same")]);
    let members = vec!["3 members, then 1".to_owned()];
    assert_eq!(within(&one, &fewer), Location::Archive { members, unlisted: 0 });
}

#[test]
fn an_elf_file_is_located_by_its_sections_even_where_all_after_them_has_moved() {
    let file = |id: &[u8]| elf(&[(".text", b"code"), (".note.gnu.build-id", id), (".data", b"data")]);
    let sections = vec![".note.gnu.build-id".to_owned()];
    assert_eq!(within(&file(b"1"), &file(b"2")), Location::Elf { sections: sections.clone(), unlisted: 0 });
    assert_eq!(within(&file(b"1"), &file(b"longer")), Location::Elf { sections, unlisted: 0 });
    let mut other = file(b"1");
    other[48] = 1;
    assert_eq!(within(&file(b"1"), &other), Location::Elf { sections: Vec::new(), unlisted: 0 });
}

#[test]
fn sections_are_named_within_the_members_of_an_archive() {
    let file = |date: &[u8]| elf(&[(".text", b"code"), (".rodata.str1.1", date)]);
    let (one, other) = (file(b"Nov 22"), file(b"Nov 23"));
    let library = |object: &[u8]| archive(&[("main.o", 0, object)]);
    let members = vec!["main.o (.rodata.str1.1)".to_owned()];
    assert_eq!(within(&library(&one), &library(&other)), Location::Archive { members, unlisted: 0 });
}

#[test]
fn other_files_are_located_by_their_bytes() {
    let (one, other) = (*b"\0aaaa", *b"\0abab!");
    let expected = Location::Bytes { offset: 2, differing: 2, before_bytes: 5, again_bytes: 6 };
    assert_eq!(within(&one, &other), expected);
}

#[tokio::test]
async fn large_files_are_compared_without_being_held_in_memory() {
    let cas = Cas::new(Arc::new(Verified::new(Arc::new(Memory::new(1 << 30)))));
    let size = usize::try_from(WHOLE_BYTES_MAX).unwrap() + 10;
    let mut content = vec![0_u8; size];
    let one = cas.put_bytes(Function::Blake3, Bytes::from(content.clone())).await.unwrap();
    content[size - 5] = 1;
    content.push(0);
    let other = cas.put_bytes(Function::Blake3, Bytes::from(content)).await.unwrap();
    let (size, offset) = (size as u64, size as u64 - 5);
    let expected = Location::Bytes { offset, differing: 1, before_bytes: size, again_bytes: size + 1 };
    assert_eq!(find(&cas, (one, other)).await.unwrap(), Some(expected));
    let gone = Function::Blake3.hash(b"gone");
    assert_eq!(find(&cas, (one, gone)).await.unwrap(), None);
}

proptest! {
    #[test]
    fn a_planted_byte_is_found_in_whatever_is_no_text(content in prop::collection::vec(any::<u8>(), 1..300), at in any::<prop::sample::Index>()) {
        let one = [&[0][..], &content].concat();
        let mut other = one.clone();
        let offset = at.index(content.len()) + 1;
        other[offset] ^= 1;
        let size = one.len() as u64;
        let expected = Location::Bytes { offset: offset as u64, differing: 1, before_bytes: size, again_bytes: size };
        prop_assert_eq!(within(&one, &other), expected);
    }

    #[test]
    fn broken_objects_are_located_somehow(cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let file = archive(&[("a.o", 7, &elf(&[(".text", b"code"), (".data", b"data")]))]);
        for file in [&file[..], &file[68..]] {
            let mut broken = file[..cut.index(file.len()) + 1].to_vec();
            let place = at.index(broken.len());
            broken[place] = byte;
            within(file, &broken).to_string();
        }
    }
}
