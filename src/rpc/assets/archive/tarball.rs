//! Reads archives of tar.
//!
//! The crate reads raw entries only: it would take the extensions that carry long names into memory whole, whatever their size.

use std::io::Read;

use tar::{Entry, EntryType, PaxExtensions};

use super::outbox::Outbox;
use super::tree::{File, PATH_BYTES_MAX, Tree};
use super::{broken, refused};
use crate::error::Result;

/// Bytes of an entry beside its content.
const HEADER_BYTES: u64 = 512;

/// Bytes of one extension: a path, a target and some attributes.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// The bit of the mode that makes a file executable for its owner, which is the one that REv2 knows.
const EXECUTABLE: u32 = 0o100;

/// What extensions say of the next entry.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

/// Adds all that the archive holds to the tree.
///
/// # Errors
/// `Aborted` when the archive is broken or holds what is no file, directory or link.
pub(super) fn read(source: impl Read, tree: &mut Tree, outbox: &mut Outbox) -> Result<()> {
    let mut archive = tar::Archive::new(source);
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        // Entries without content are not free: a stream of them may be packed into next to nothing.
        outbox.charge(HEADER_BYTES)?;
        if !extensions.take(&mut entry, outbox)? {
            add(entry, std::mem::take(&mut extensions), (tree, outbox))?;
        }
    }
    Ok(())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the types are the crate's, and any other one is refused")]
fn add<R: Read>(
    entry: Entry<'_, R>,
    extensions: Extensions,
    (tree, outbox): (&mut Tree, &mut Outbox),
) -> Result<()> {
    let header = entry.header();
    let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let target = || {
        let target = extensions.target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        target.ok_or_else(|| refused("a link of the archive leads nowhere"))
    };
    if !matches!(header.entry_type(), EntryType::Regular | EntryType::Continuous) || path.ends_with(b"/") {
        // What has no content may claim some all the same, which is unpacked to be skipped.
        outbox.charge(entry.size())?;
    }
    match header.entry_type() {
        EntryType::Directory => tree.add_folder(&path),
        // Before there was a type for directories, a slash at the end made one.
        EntryType::Regular if path.ends_with(b"/") => tree.add_folder(&path),
        EntryType::Regular | EntryType::Continuous => {
            let is_executable = header.mode().map_err(broken)? & EXECUTABLE != 0;
            let digest = outbox.file(entry.size(), entry)?;
            tree.add_file(&path, File { digest, is_executable })
        }
        EntryType::Symlink => tree.add_symlink(&path, &target()?),
        EntryType::Link => tree.add_hard_link(&path, &target()?),
        other => {
            let path = String::from_utf8_lossy(&path).into_owned();
            Err(refused(format!(
                "the archive holds what is no file, directory or link: `{path}` ({other:?})"
            )))
        }
    }
}

impl Extensions {
    /// Whether the entry was an extension, which is taken in then.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the types are the crate's")]
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>, outbox: &mut Outbox) -> Result<bool> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(long_name(entry, outbox)?),
            EntryType::GNULongLink => self.target = Some(long_name(entry, outbox)?),
            EntryType::XHeader => self.take_pax(&content(entry, outbox)?)?,
            // What holds for the whole archive is a comment in practice, such as the commit that git made it of.
            EntryType::XGlobalHeader => drop(content(entry, outbox)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_pax(&mut self, content: &[u8]) -> Result<()> {
        for pair in PaxExtensions::new(content) {
            let pair = pair.map_err(broken)?;
            let value = pair.value_bytes().to_vec();
            match pair.key_bytes() {
                b"path" => self.path = Some(value),
                b"linkpath" => self.target = Some(value),
                // The crate goes by the size in the header, so an entry with another one would be cut in the wrong place.
                b"size" => return Err(refused("the archive has a file of 8 GiB or more")),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(refused("the archive has a sparse file"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn long_name<R: Read>(entry: &mut Entry<'_, R>, outbox: &mut Outbox) -> Result<Vec<u8>> {
    let mut name = content(entry, outbox)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    if name.len() > PATH_BYTES_MAX {
        return Err(refused(format!("a name of the archive has more than {PATH_BYTES_MAX} bytes")));
    }
    Ok(name)
}

fn content<R: Read>(entry: &mut Entry<'_, R>, outbox: &mut Outbox) -> Result<Vec<u8>> {
    if entry.size() > EXTENSION_BYTES_MAX {
        return Err(refused(format!("a header of the archive has more than {EXTENSION_BYTES_MAX} bytes")));
    }
    outbox.charge(entry.size())?;
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(broken)?;
    Ok(content)
}
