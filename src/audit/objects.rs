//! Where ELF files and `ar` archives differ, by the names that their own tables give. The only file that knows the crate `object`.

use std::collections::BTreeMap;

use object::read::archive::{ArchiveFile, ArchiveMember};
use object::{Object, ObjectSection};

use super::locate::Location;
use super::printable;

/// Names that are listed: enough to see a pattern.
const NAMES_MAX: usize = 8;

/// Characters of a name that are shown.
const NAME_CHARS_MAX: usize = 80;

const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Where two ELF files differ; `None` unless both are such files.
pub(super) fn elves(before: &[u8], again: &[u8]) -> Option<Location> {
    let (sections, unlisted) = bounded(differing_sections(before, again)?);
    Some(Location::Elf { sections, unlisted })
}

/// Where two archives differ; `None` unless both are archives.
pub(super) fn archives(before: &[u8], again: &[u8]) -> Option<Location> {
    let (one, other) = (members(before)?, members(again)?);
    let mut differing = Vec::new();
    for (left, right) in one.iter().zip(&other) {
        let name = shown(left.name());
        if left.name() != right.name() {
            differing.push(format!("{name}, then {}", shown(right.name())));
            break;
        }
        let parts = parts(before, left, again, right);
        if !parts.is_empty() {
            differing.push(format!("{name} ({})", parts.join(", ")));
        }
    }
    if one.len() != other.len() {
        differing.push(format!("{} members, then {}", one.len(), other.len()));
    }
    let (members, unlisted) = bounded(differing);
    Some(Location::Archive { members, unlisted })
}

/// The names of the sections that are not in both files with the same content; equal names are told apart by their order.
fn differing_sections(before: &[u8], again: &[u8]) -> Option<Vec<String>> {
    let (one, other) = (sections(before)?, sections(again)?);
    let mut names: Vec<_> = one.keys().chain(other.keys()).collect();
    names.sort();
    names.dedup();
    let differs = |key: &&&(Vec<u8>, usize)| one.get(**key) != other.get(**key);
    let mut shown: Vec<String> = names.iter().filter(differs).map(|(name, _)| self::shown(name)).collect();
    shown.dedup();
    Some(shown)
}

/// Contents by the name of their section, and its number among those of the name.
type Sections<'a> = BTreeMap<(Vec<u8>, usize), &'a [u8]>;

fn sections(file: &[u8]) -> Option<Sections<'_>> {
    if !file.starts_with(ELF_MAGIC) {
        return None;
    }
    let parsed = object::File::parse(file).ok()?;
    let (mut sections, mut seen) = (BTreeMap::new(), BTreeMap::new());
    for section in parsed.sections() {
        let name = section.name_bytes().ok()?.to_vec();
        let number = seen.entry(name.clone()).or_insert(0_usize);
        sections.insert((name, *number), section.data().unwrap_or_default());
        *number += 1;
    }
    Some(sections)
}

fn members(file: &[u8]) -> Option<Vec<ArchiveMember<'_>>> {
    ArchiveFile::parse(file).ok()?.members().collect::<Result<_, _>>().ok()
}

/// What differs in a member: fields of its header, its content, and of that the sections where there are any.
fn parts(before: &[u8], left: &ArchiveMember<'_>, again: &[u8], right: &ArchiveMember<'_>) -> Vec<String> {
    let fields = [
        ("date", left.date() != right.date()),
        ("owner", (left.uid(), left.gid()) != (right.uid(), right.gid())),
        ("mode", left.mode() != right.mode()),
    ];
    let mut parts: Vec<String> =
        fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()).collect();
    let (one, other) = (left.data(before).unwrap_or_default(), right.data(again).unwrap_or_default());
    if one != other {
        let (names, _) = bounded(differing_sections(one, other).unwrap_or_default());
        if names.is_empty() { parts.push("content".to_owned()) } else { parts.extend(names) }
    }
    parts
}

fn bounded(mut names: Vec<String>) -> (Vec<String>, usize) {
    let unlisted = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    (names, unlisted)
}

fn shown(name: &[u8]) -> String {
    let name: String = String::from_utf8_lossy(name).chars().take(NAME_CHARS_MAX).collect();
    printable(&name)
}
