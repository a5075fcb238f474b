//! What must hold for names, digests and build events that clients send.

use crate::builds::{Builds, Position, Publisher};
use crate::digest::{Digest, Function};
use crate::proto;
use crate::proto::build_events::{BuildEvent, build_event};

use super::build_events;
use super::resource::{Form, Read, Write};

/// A resource name that is accepted names what it says: written again from its parts it is read as the same.
pub fn resource_name(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else { return };
    if let Ok(read) = Read::parse(name) {
        let again = format!("{}{}", prefix(&read.instance), blob(read.form, &read.digest));
        assert_eq!(Read::parse(&again).expect("it was accepted"), read, "{again}");
    }
    if let Ok(write) = Write::parse(name) {
        let (instance, upload) = (prefix(&write.instance), &write.upload);
        let again = format!("{instance}uploads/{upload}/{}", blob(write.form, &write.digest));
        assert_eq!(Write::parse(&again).expect("it was accepted"), write, "{again}");
    }
}

fn prefix(instance: &str) -> String {
    assert!(proto::is_instance_name(instance), "{instance}");
    if instance.is_empty() { String::new() } else { format!("{instance}/") }
}

fn blob(form: Form, digest: &Digest) -> String {
    let form = match form {
        Form::Plain => "blobs",
        Form::Zstd => "compressed-blobs/zstd",
    };
    let function = digest.function().segment().map_or(String::new(), |segment| format!("{segment}/"));
    format!("{form}/{function}{}/{}", digest.hex(), digest.size())
}

/// A digest that is accepted has the length of its function's hashes and comes back from a message as it was. The bytes are the
/// function's number, eight bytes of size and the hash.
pub fn digest(bytes: &[u8]) {
    let Some((function, rest)) = bytes.split_first() else { return };
    let Some((size, hash)) = rest.split_first_chunk() else { return };
    let Ok(hash) = std::str::from_utf8(hash) else { return };
    let Ok(Some(function)) = Function::from_proto(i32::from(*function)) else { return };
    if let Ok(digest) = Digest::parse(function, hash, i64::from_le_bytes(*size)) {
        assert_eq!((digest.hash().len(), digest.hex().as_str()), (function.hash_bytes(), hash));
        assert_eq!(Digest::from_proto(function, Some(&digest.to_proto())).expect("it was accepted"), digest);
    }
}

/// Whatever Bazel tells, and be it told twice, there is at most one target and one run of a test more.
pub fn build_event(bytes: &[u8]) {
    let type_url = "type.googleapis.com/build_event_stream.BuildEvent".to_owned();
    let any = proto::Any { type_url, value: bytes.to_vec() };
    let event = BuildEvent { event: Some(build_event::Event::BazelEvent(any)) };
    let (event, _) = build_events::read(Some(event));
    let builds = Builds::default();
    let publisher = Publisher { instance: "", identity: "", account: "" };
    for sequence in 1..3 {
        let position = Position { invocation: "invocation", build: "build", component: 3, sequence };
        builds.tell(&position, &publisher, event.clone()).expect("it is its turn");
        let (invocation, _) = builds.invocation("invocation").expect("it is told of");
        let Some(told) = invocation.told else { continue };
        let totals = [told.targets.total, told.tests.total, told.runs.total];
        assert!(totals.iter().all(|total| *total <= 1), "{event:?}");
        let texts = [&told.patterns[..], &told.options, &told.problems].concat();
        assert!(texts.iter().all(|text| text.chars().count() <= 512), "{event:?}");
    }
}
