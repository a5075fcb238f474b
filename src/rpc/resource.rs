//! Resource names of the ByteStream service (REv2, `ContentAddressableStorage`), parsed once.
//!
//! `{instance}/blobs/{function/}{hash}/{size}` names a blob to read,
//! `{instance}/uploads/{uuid}/blobs/{function/}{hash}/{size}{/anything}` one to write; `compressed-blobs/zstd` in place of `blobs`
//! means that it is compressed on the wire. An instance name may have slashes, but none of the reserved segments, so the first
//! reserved segment ends it.

use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result, shown};
use crate::proto::RESERVED;

/// Longest resource name that is looked at, in bytes: hash, uuid and size need under 200; the rest is the instance's name.
const LENGTH_MAX: usize = 4096;

/// The form of a blob on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    Plain,
    Zstd,
}

/// A blob to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub instance: String,
    pub digest: Digest,
    pub form: Form,
}

/// A blob to write, and the client's name for this upload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Write {
    pub instance: String,
    pub upload: String,
    pub digest: Digest,
    pub form: Form,
}

impl Read {
    /// # Errors
    /// `Invalid` with the expected form, `Unsupported` for a compression.
    pub fn parse(name: &str) -> Result<Self> {
        let (instance, rest) = split_instance(name)?;
        let (form, rest) = split_form(name, &rest)?;
        Ok(Self { instance, digest: parse_digest(name, rest, Trailing::Refused)?, form })
    }
}

impl Write {
    /// # Errors
    /// `Invalid` with the expected form, `Unsupported` for a compression.
    pub fn parse(name: &str) -> Result<Self> {
        let (instance, rest) = split_instance(name)?;
        let ["uploads", upload, rest @ ..] = rest.as_slice() else {
            return Err(malformed(name));
        };
        let (form, rest) = split_form(name, rest)?;
        if upload.is_empty() {
            return Err(malformed(name));
        }
        let digest = parse_digest(name, rest, Trailing::Ignored)?;
        Ok(Self { instance, upload: (*upload).to_owned(), digest, form })
    }
}

/// Whether segments may follow the size: an upload may carry metadata there, which REv2 tells servers to ignore.
#[derive(Clone, Copy, PartialEq)]
enum Trailing {
    Ignored,
    Refused,
}

fn split_instance(name: &str) -> Result<(String, Vec<&str>)> {
    if name.len() > LENGTH_MAX {
        return Err(Error::invalid(format!("the resource name is longer than {LENGTH_MAX} bytes")));
    }
    let segments: Vec<&str> = name.split('/').collect();
    let start =
        segments.iter().position(|segment| RESERVED.contains(segment)).ok_or_else(|| malformed(name))?;
    let instance = segments[..start].join("/");
    if segments[..start].iter().any(|segment| segment.is_empty()) {
        return Err(malformed(name));
    }
    Ok((instance, segments[start..].to_vec()))
}

fn split_form<'a>(name: &str, segments: &'a [&'a str]) -> Result<(Form, &'a [&'a str])> {
    match segments {
        ["blobs", rest @ ..] => Ok((Form::Plain, rest)),
        ["compressed-blobs", "zstd", rest @ ..] => Ok((Form::Zstd, rest)),
        ["compressed-blobs", compressor, ..] => Err(not_offered(compressor)),
        _ => Err(malformed(name)),
    }
}

fn parse_digest(name: &str, segments: &[&str], trailing: Trailing) -> Result<Digest> {
    let named = segments.first().and_then(|segment| Function::of_segment(segment));
    let segments = if named.is_some() { &segments[1..] } else { segments };
    let [hash, size, rest @ ..] = segments else {
        return Err(malformed(name));
    };
    let function = named.unwrap_or_else(|| Function::of_length(hash.len()));
    if trailing == Trailing::Refused && !rest.is_empty() {
        return Err(malformed(name));
    }
    let is_number = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let size = size.parse().ok().filter(|_| is_number).ok_or_else(|| malformed(name))?;
    Ok(Digest::parse(function, hash, size)?)
}

fn malformed(name: &str) -> Error {
    let shown = shown(name);
    Error::invalid(format!(
        "resource name `{shown}` is neither {{instance}}/blobs/{{hash}}/{{size}} \
         nor {{instance}}/uploads/{{uuid}}/blobs/{{hash}}/{{size}}"
    ))
}

fn not_offered(compressor: &str) -> Error {
    let shown: String = compressor.chars().take(20).collect();
    Error::new(
        Kind::Unsupported,
        format!("compressor `{shown}` is not offered; the capabilities list what is"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn names_of_both_forms_are_read() {
        let read = Read::parse(&format!("blobs/{HASH}/3")).unwrap();
        assert_eq!((read.instance.as_str(), read.digest), ("", Function::Sha256.hash(b"abc")));
        let read = Read::parse(&format!("a/b/c/blobs/{HASH}/3")).unwrap();
        assert_eq!(read.instance, "a/b/c");
        let write = Write::parse(&format!("x/uploads/u-1/blobs/{HASH}/3/some/file.txt")).unwrap();
        assert_eq!((write.instance.as_str(), write.upload.as_str()), ("x", "u-1"));
        for function in Function::ALL {
            let digest = function.hash(b"abc");
            assert_eq!(Read::parse(&format!("blobs/{digest}")).unwrap().digest, digest);
            let named = format!("blobs/{}/{}/3", function.name(), digest.hex());
            assert_eq!(Read::parse(&named).unwrap().digest, digest, "{named}");
        }
    }

    #[test]
    fn malformed_names_are_refused_with_the_form() {
        let names = [
            String::new(),
            "blobs".into(),
            format!("blobs/{HASH}"),
            format!("blobs/{HASH}/"),
            format!("blobs/{HASH}/+3"),
            format!("blobs/{HASH}/3/more"),
            format!("/blobs/{HASH}/3"),
            format!("a//b/blobs/{HASH}/3"),
            format!("uploads/blobs/{HASH}/3"),
            format!("actions/x/blobs/{HASH}/3"),
            format!("blobs/{HASH}/99999999999999999999"),
        ];
        for name in names {
            let error = Read::parse(&name).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{name}");
            assert!(error.to_string().contains("{instance}/blobs/{hash}/{size}"), "{name}: {error}");
            assert_eq!(Write::parse(&name).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
        let negative = Read::parse(&format!("blobs/{HASH}/-1")).unwrap_err();
        assert_eq!(negative.to_string(), "size -1 is negative");
    }

    #[test]
    fn a_compression_that_is_not_offered_is_named() {
        let error = Read::parse(&format!("compressed-blobs/brotli/{HASH}/3")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("`brotli`"));
        let error = Write::parse(&format!("uploads/u/compressed-blobs/deflate/{HASH}/3")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(name in "(uploads|blobs|compressed-blobs|zstd|blake3|vso|[a-f0-9]{64}|-?[0-9]{0,22}|/|.){0,12}") {
            let _ = (Read::parse(&name), Write::parse(&name));
        }

        #[test]
        fn what_is_written_is_read_back(
            instance in "([a-z]{1,8}(/[a-z]{1,8}){0,3})?", content in any::<Vec<u8>>(),
            function in prop::sample::select(Function::ALL.to_vec()),
        ) {
            prop_assume!(!instance.split('/').any(|segment| RESERVED.contains(&segment)));
            let digest = function.hash(&content);
            let prefix = if instance.is_empty() { String::new() } else { format!("{instance}/") };
            for (form, segments) in [(Form::Plain, "blobs"), (Form::Zstd, "compressed-blobs/zstd")] {
                let read = Read::parse(&format!("{prefix}{segments}/{digest}")).unwrap();
                prop_assert_eq!(&read, &Read { instance: instance.clone(), digest, form });
                let write = Write::parse(&format!("{prefix}uploads/u/{segments}/{digest}")).unwrap();
                prop_assert_eq!(write, Write { instance: instance.clone(), upload: "u".into(), digest, form });
            }
        }
    }
}
