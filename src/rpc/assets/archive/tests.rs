//! Archives that are well and archives that are not.

use std::io::{Cursor, Write};
use std::sync::Arc;

use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;

use super::*;
use crate::digest::Function;
use crate::proto::rev2;
use crate::store::{Memory, Verified};

const BYTES_MAX: u64 = 4 << 20;

/// A stored tree, or why there is none.
struct Unpacked {
    cas: Cas,
    root: Result<Digest>,
}

async fn unpack_part(archive: &[u8], directory: Option<&str>) -> Unpacked {
    let directory_of_files = tempfile::tempdir().unwrap();
    let spools = Spools::open(directory_of_files.path().join("fetch")).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before").unwrap();
    file.write_all(archive).unwrap();
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let outbox = Outbox { function: Function::Sha256, spools, bytes_left: BYTES_MAX, sender };
    let unpacking = Unpacking {
        section: Section::new(Arc::new(file), 6, archive.len() as u64),
        named: None,
        unmarked: None,
        directory: directory.map(ToOwned::to_owned),
        outbox,
    };
    let cas = Cas::new(Arc::new(Verified::new(Arc::new(Memory::new(64 << 20)))));
    let reading = tasks::blocking(move || unpacking.run());
    outbox::store(&cas, receiver).await.unwrap();
    Unpacked { cas, root: reading.await }
}

async fn unpack(archive: &[u8]) -> Unpacked {
    unpack_part(archive, None).await
}

impl Unpacked {
    /// All that is under the root, one line each, in the order of the messages.
    async fn list(&self) -> Vec<String> {
        let (mut lines, mut folders) = (Vec::new(), vec![(String::new(), *self.root.as_ref().unwrap())]);
        while let Some((path, digest)) = folders.pop() {
            let folder: rev2::Directory = self.cas.message(&digest).await.unwrap().unwrap();
            for file in &folder.files {
                let digest = Digest::from_proto(Function::Sha256, file.digest.as_ref()).unwrap();
                let content = self.cas.read(&digest, BYTES_MAX).await.unwrap().unwrap();
                let mark = if file.is_executable { "*" } else { "" };
                let shown = String::from_utf8_lossy(&content[..content.len().min(9)]).into_owned();
                lines.push(format!("{path}{}{mark} {} {shown}", file.name, content.len()));
            }
            lines
                .extend(folder.symlinks.iter().map(|link| format!("{path}{} -> {}", link.name, link.target)));
            for child in &folder.directories {
                let digest = Digest::from_proto(Function::Sha256, child.digest.as_ref()).unwrap();
                lines.push(format!("{path}{}/", child.name));
                folders.push((format!("{path}{}/", child.name), digest));
            }
        }
        lines.sort();
        lines
    }

    fn kind(&self) -> Kind {
        self.root.as_ref().unwrap_err().kind()
    }
}

/// An entry with a name that the crate would refuse to write.
fn entry(kind: EntryType, path: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
    if is_link {
        header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
    }
    header.set_size(if is_link { 0 } else { content.len() as u64 });
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    if !is_link {
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes
}

fn tarball(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn file(path: &str, content: &str) -> Vec<u8> {
    entry(EntryType::Regular, path, content.as_bytes())
}

fn symlink(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path, target.as_bytes())
}

/// A tree with all that is allowed, as the crate writes it.
fn good_tarball() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add("top/run", 0o755, b"program");
    add("top/data", 0o644, b"data");
    add(&format!("top/{}/{}", "d".repeat(120), "n".repeat(120)), 0o644, b"long");
    add("top/large", 0o600, &vec![b'x'; 1 << 20]);
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(archive.len() - 1024);
    archive.extend(tarball(&[
        entry(EntryType::XGlobalHeader, "pax_global_header", b"19 comment=abcdefg\n"),
        entry(EntryType::XHeader, "x", b"17 path=top/\xc3\xa4\xc3\xb6\n"),
        file("overridden", "pax"),
        entry(EntryType::Directory, "./top/empty/", b""),
        symlink("top/empty/link", "../data"),
        entry(EntryType::Link, "top/hard", b"top/run"),
        file("top/data", "later"),
    ]));
    archive
}

fn good_list() -> Vec<String> {
    let long = format!("top/{}/", "d".repeat(120));
    let mut lines = vec![
        "top/".to_owned(),
        "top/data 5 later".to_owned(),
        "top/empty/".to_owned(),
        "top/empty/link -> ../data".to_owned(),
        "top/hard* 7 program".to_owned(),
        "top/large 1048576 xxxxxxxxx".to_owned(),
        "top/run* 7 program".to_owned(),
        "top/äö 3 pax".to_owned(),
        format!("{long}{} 4 long", "n".repeat(120)),
        long,
    ];
    lines.sort();
    lines
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_tree_comes_out_of_every_form_of_tar() {
    let plain = good_tarball();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let root = unpack(&plain).await.root.unwrap();
    for archive in [plain.clone(), gzip(&plain), zstd] {
        let unpacked = unpack(&archive).await;
        assert_eq!(unpacked.list().await, good_list());
        assert_eq!(*unpacked.root.as_ref().unwrap(), root);
    }
}

#[tokio::test]
async fn a_directory_of_the_archive_is_the_root_where_it_is_wanted() {
    let archive = good_tarball();
    let unpacked = unpack_part(&archive, Some("top")).await;
    let expected = good_list();
    let expected: Vec<_> = expected
        .iter()
        .filter_map(|line| line.strip_prefix("top/"))
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(unpacked.list().await, expected);
    assert_eq!(unpack_part(&archive, Some("top/absent")).await.kind(), Kind::NotFound);
    assert_eq!(unpack_part(&archive, Some("top/data")).await.kind(), Kind::NotFound);
    // The link of this directory leads out of it, which matters only to those who take it alone.
    assert_eq!(unpack_part(&archive, Some("top/empty")).await.kind(), Kind::Aborted);
}

#[tokio::test]
async fn a_hostile_tarball_is_refused() {
    let deep = format!("{}f", "d/".repeat(49));
    let deeper = |levels: usize| {
        let path = format!("{}f", "d/".repeat(levels));
        let pax = format!("{} path={path}\n", path.len() + 10);
        tarball(&[entry(EntryType::XHeader, "x", pax.as_bytes()), file("y", "")])
    };
    assert!(unpack(&tarball(&[file(&deep, "")])).await.root.is_ok());
    assert!(unpack(&deeper(128)).await.root.is_ok());
    let cases = [
        ("climbs", tarball(&[file("a/../../b", "x")])),
        ("absolute", tarball(&[file("/etc/passwd", "x")])),
        ("dots", tarball(&[file("..", "x")])),
        ("no name", tarball(&[file("./", "x"), file(".", "x")])),
        ("not UTF-8", tarball(&[entry(EntryType::XHeader, "x", b"11 path=\xff\xff\n"), file("y", "")])),
        ("zero byte", tarball(&[entry(EntryType::XHeader, "x", b"12 path=a\0b\n"), file("y", "")])),
        ("device", tarball(&[entry(EntryType::Char, "dev", b"")])),
        ("fifo", tarball(&[entry(EntryType::Fifo, "fifo", b"")])),
        ("sparse", tarball(&[entry(EntryType::GNUSparse, "sparse", b"")])),
        ("absolute link", tarball(&[symlink("a", "/etc/passwd")])),
        ("climbing link", tarball(&[symlink("d/a", "../../x")])),
        ("link that hides its climb", tarball(&[symlink("d/up", ".."), symlink("a", "d/up/../..")])),
        ("empty link", tarball(&[symlink("a", "")])),
        ("through a link", tarball(&[symlink("a", "b"), file("a/x", "x")])),
        ("file and directory", tarball(&[file("a", "x"), file("a/x", "x")])),
        ("directory and file", tarball(&[file("a/x", "x"), file("a", "x")])),
        ("hard link to nothing", tarball(&[entry(EntryType::Link, "a", b"absent")])),
        ("hard link out", tarball(&[entry(EntryType::Link, "a", b"../x")])),
        ("hard link to a link", tarball(&[symlink("a", "b"), entry(EntryType::Link, "c", b"a")])),
        ("deep", deeper(129)),
        ("large header", tarball(&[entry(EntryType::GNULongName, "x", &[b'n'; 70_000]), file("y", "")])),
        ("long name", tarball(&[entry(EntryType::GNULongName, "x", &[b'n'; 5_000]), file("y", "")])),
        ("another size", tarball(&[entry(EntryType::XHeader, "x", b"10 size=9\n"), file("y", "")])),
        ("truncated", file("a", &"x".repeat(5000))[..2000].to_vec()),
        ("truncated in gzip", gzip(&good_tarball())[..3000].to_vec()),
        ("no archive", b"<html>not found</html>".to_vec()),
        ("nothing", Vec::new()),
    ];
    for (name, archive) in cases {
        let unpacked = unpack(&archive).await;
        assert!(unpacked.root.is_err(), "{name}");
        assert_eq!(unpacked.kind(), Kind::Aborted, "{name}: {:?}", unpacked.root);
    }
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_goes_off() {
    let mut header = Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_mode(0o644);
    header.set_size(BYTES_MAX + 1);
    header.set_cksum();
    let mut bomb = header.as_bytes().to_vec();
    bomb.resize(BYTES_MAX as usize + 8192, 0);
    for archive in [gzip(&bomb), zstd::encode_all(bomb.as_slice(), 1).unwrap(), header.as_bytes().to_vec()] {
        assert_eq!(unpack(&archive).await.kind(), Kind::Exhausted);
    }
    let small: Vec<_> = (0..5).map(|number| file(&number.to_string(), &"x".repeat(1 << 20))).collect();
    assert_eq!(unpack(&tarball(&small)).await.kind(), Kind::Exhausted);
    assert!(unpack(&tarball(&small[..3])).await.root.is_ok());
}

#[tokio::test]
async fn names_without_content_are_not_free() {
    let again = entry(EntryType::Directory, "same", b"").repeat(BYTES_MAX as usize / 512 + 1);
    assert_eq!(unpack(&gzip(&again)).await.kind(), Kind::Exhausted);
    let mut header = Header::new_ustar();
    header.set_path("folder").unwrap();
    header.set_entry_type(EntryType::Directory);
    header.set_size(BYTES_MAX);
    header.set_cksum();
    assert_eq!(unpack(header.as_bytes()).await.kind(), Kind::Exhausted);
}

/// Each entry costs what it is packed into, which a few bytes of directory may name again and again.
#[tokio::test]
async fn a_zip_whose_entries_overlap_is_refused() {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    writer
        .start_file("a", SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored))
        .unwrap();
    writer.write_all(&[b'x'; 1000]).unwrap();
    let good = writer.finish().unwrap().into_inner();
    let end = good.len() - 22;
    let start = u32::from_le_bytes(*good[end + 16..].first_chunk().unwrap()) as usize;
    let second = changed(&good[start..end], b"a", b"b");
    let mut last = good[end..].to_vec();
    (last[8], last[10]) = (2, 2);
    last[12..16].copy_from_slice(&(2 * second.len() as u32).to_le_bytes());
    let archive = [&good[..end], &second, &last].concat();
    assert!(unpack(&good).await.root.is_ok());
    assert_eq!(unpack(&archive).await.kind(), Kind::Aborted);
}

fn good_zip() -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    writer.add_directory("top/empty", options).unwrap();
    let deflated = options.compression_method(zip::CompressionMethod::Deflated);
    writer.start_file("top/run", deflated.unix_permissions(0o755)).unwrap();
    writer.write_all(b"program").unwrap();
    writer.start_file("top/large", deflated.large_file(true)).unwrap();
    writer.write_all(&vec![b'x'; 1 << 20]).unwrap();
    let stored = options.compression_method(zip::CompressionMethod::Stored);
    writer.start_file("top/data", stored).unwrap();
    writer.write_all(b"data").unwrap();
    writer.add_symlink("top/empty/link", "../data", options).unwrap();
    writer.set_comment("PK\x05\x06 is not the end");
    writer.finish().unwrap().into_inner()
}

#[tokio::test]
async fn a_tree_comes_out_of_a_zip() {
    let expected = [
        "top/",
        "top/data 4 data",
        "top/empty/",
        "top/empty/link -> ../data",
        "top/large 1048576 xxxxxxxxx",
        "top/run* 7 program",
    ];
    assert_eq!(unpack(&good_zip()).await.list().await, expected);
    let empty = zip::ZipWriter::new(Cursor::new(Vec::new())).finish().unwrap().into_inner();
    assert_eq!(unpack(&empty).await.list().await, Vec::<String>::new());
}

/// The archive with `with` in the place of `what`, wherever that stands.
fn changed(archive: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    assert_eq!(what.len(), with.len());
    let mut archive = archive.to_vec();
    let places: Vec<usize> =
        (0..=archive.len() - what.len()).filter(|at| archive[*at..].starts_with(what)).collect();
    assert!(!places.is_empty());
    for at in places {
        archive[at..at + what.len()].copy_from_slice(with);
    }
    archive
}

#[tokio::test]
async fn a_hostile_zip_is_refused() {
    let good = good_zip();
    let end = good.len() - 22 - "PK\x05\x06 is not the end".len();
    let with_end = |at: usize, bytes: &[u8]| {
        let mut archive = good.clone();
        archive[end + at..end + at + bytes.len()].copy_from_slice(bytes);
        archive
    };
    let cases = [
        ("climbs", changed(&good, b"top/run", b"../root")),
        ("absolute", changed(&good, b"top/run", b"/tp/run")),
        ("climbing link", changed(&good, b"../data", b"../../d")),
        ("wrong content", changed(&good, b"data", b"dada")),
        ("too few bytes", good[..good.len() - 1].to_vec()),
        ("more entries than there are", with_end(8, &[0xf0, 0xff, 0xf0, 0xff])),
        ("a directory behind the end", with_end(16, &[0xf0, 0xff, 0xff, 0x0f])),
        ("a pointer that is not there", with_end(16, &[0xff; 4])),
        ("no directory", with_end(12, &[0; 4])),
    ];
    for (name, archive) in cases {
        let unpacked = unpack(&archive).await;
        assert!(unpacked.root.is_err(), "{name}");
        assert_eq!(unpacked.kind(), Kind::Aborted, "{name}: {:?}", unpacked.root);
    }
    for cut in (0..good.len()).step_by(97) {
        assert!(unpack(&good[..cut]).await.root.is_err());
    }
}
