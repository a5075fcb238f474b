//! The two forms in which requests and answers cross a tool's pipes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde::{Deserialize, Serialize};

use crate::proto::persistent::{WorkRequest, WorkResponse};

/// Bytes of an answer: what a compiler prints for people is far less.
const RESPONSE_MAX: usize = 16 << 20;
/// Bytes of the largest number that stands before a message.
const PREFIX_MAX: usize = 10;
/// The fields of a [`WorkResponse`], from 1 on.
const FIELDS: u32 = 4;

/// In which form a tool takes its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Messages, each with its length before it.
    Proto,
    /// Objects, one after the other.
    Json,
}

/// What a tool has written is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    arguments: &'a [String],
    inputs: Vec<Input<'a>>,
    request_id: i32,
}

#[derive(Serialize)]
struct Input<'a> {
    path: &'a str,
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Response {
    exit_code: i32,
    output: String,
    request_id: i32,
    was_cancelled: bool,
}

impl Protocol {
    /// The protocol that goes by this name, if it is known; without one it is that of messages.
    pub(super) fn named(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "proto") => Some(Self::Proto),
            Some("json") => Some(Self::Json),
            Some(_) => None,
        }
    }

    pub(super) fn encode(self, request: &WorkRequest) -> Vec<u8> {
        if self == Self::Proto {
            return request.encode_length_delimited_to_vec();
        }
        // As protobuf maps bytes to JSON.
        let input = |input: &'_ crate::proto::persistent::Input| STANDARD.encode(&input.digest);
        let inputs = request.inputs.iter().map(|entry| Input { path: &entry.path, digest: input(entry) });
        let request = Request {
            arguments: &request.arguments,
            inputs: inputs.collect(),
            request_id: request.request_id,
        };
        let mut line = serde_json::to_vec(&request).expect("strings and numbers can be written");
        line.push(b'\n');
        line
    }
}

/// An answer as it comes.
pub(super) struct Decoder {
    protocol: Protocol,
    bytes: Vec<u8>,
    object: Object,
}

/// How far an object has been looked through for its end. Parsing it whenever more of it has come would take time by the square of its size.
#[derive(Default)]
struct Object {
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl Decoder {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, bytes: Vec::new(), object: Object::default() }
    }

    /// Whether there is a part of an answer.
    pub(super) fn has_begun(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Takes more of the one answer; `None` while it is incomplete.
    ///
    /// # Errors
    /// When the bytes are no answer, one that is too large, or more than one.
    pub(super) fn push(&mut self, more: &[u8]) -> Result<Option<WorkResponse>, Garbled> {
        if self.bytes.len() + more.len() > RESPONSE_MAX + PREFIX_MAX {
            return Err(Garbled);
        }
        match self.protocol {
            Protocol::Proto => {
                self.bytes.extend_from_slice(more);
                decode_message(&self.bytes)
            }
            Protocol::Json => {
                // What stands between objects, such as the end of the line before this one.
                let more = if self.has_begun() { more } else { more.trim_ascii_start() };
                self.bytes.extend_from_slice(more);
                self.push_object(more)
            }
        }
    }

    fn push_object(&mut self, more: &[u8]) -> Result<Option<WorkResponse>, Garbled> {
        if self.bytes.first().is_some_and(|first| *first != b'{') {
            return Err(Garbled);
        }
        let Some(end) = more.iter().position(|byte| self.object.ends_with(*byte)) else { return Ok(None) };
        if !more[end + 1..].trim_ascii().is_empty() {
            return Err(Garbled);
        }
        let response = serde_json::from_slice::<Response>(&self.bytes).map_err(|_| Garbled)?;
        let Response { exit_code, output, request_id, was_cancelled } = response;
        Ok(Some(WorkResponse { exit_code, output, request_id, was_cancelled }))
    }
}

impl Object {
    /// Whether the object's end is this byte, which is its next.
    fn ends_with(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.is_in_string => self.is_escaped = true,
            b'"' => self.is_in_string = !self.is_in_string,
            b'{' if !self.is_in_string => self.depth += 1,
            b'}' if !self.is_in_string => self.depth -= 1,
            _ => return false,
        }
        self.depth == 0
    }
}

fn decode_message(bytes: &[u8]) -> Result<Option<WorkResponse>, Garbled> {
    let has_length = bytes.iter().take(PREFIX_MAX).any(|byte| byte & 0x80 == 0);
    if !has_length {
        return if bytes.len() < PREFIX_MAX { Ok(None) } else { Err(Garbled) };
    }
    let mut rest = bytes;
    let length = decode_varint(&mut rest).map_err(|_| Garbled)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= RESPONSE_MAX).ok_or(Garbled)?;
    if rest.len() < length {
        return Ok(None);
    }
    if rest.len() > length || !has_known_fields(rest) {
        return Err(Garbled);
    }
    WorkResponse::decode(rest).map(Some).map_err(|_| Garbled)
}

/// Whether there is nothing but fields of an answer: text that a tool has printed by mistake may well be a message of other fields.
fn has_known_fields(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Ok((field, kind)) = decode_key(&mut bytes) else { return false };
        let is_known =
            (1..=FIELDS).contains(&field) && matches!(kind, WireType::Varint | WireType::LengthDelimited);
        if !is_known || skip_field(kind, field, &mut bytes, DecodeContext::default()).is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::persistent;

    fn answer(output: &str) -> WorkResponse {
        WorkResponse { exit_code: 3, output: output.into(), request_id: 0, was_cancelled: false }
    }

    #[test]
    fn requests_are_what_bazel_writes() {
        let input = persistent::Input { path: "a/b".into(), digest: "0f".into() };
        let request =
            WorkRequest { arguments: vec!["-x".into(), "é\n".into()], inputs: vec![input], request_id: 0 };
        let line = "{\"arguments\":[\"-x\",\"é\\n\"],\"inputs\":[{\"path\":\"a/b\",\"digest\":\"MGY=\"}],\"requestId\":0}\n";
        assert_eq!(String::from_utf8(Protocol::Json.encode(&request)).unwrap(), line);
        let message = b"\x14\x0a\x02-x\x0a\x03\xc3\xa9\n\x12\x09\x0a\x03a/b\x12\x020f".to_vec();
        assert_eq!(Protocol::Proto.encode(&request)[1..], message[1..]);
    }

    fn decode(protocol: Protocol, bytes: &[u8]) -> Result<Option<WorkResponse>, Garbled> {
        let whole = Decoder::new(protocol).push(bytes);
        let mut decoder = Decoder::new(protocol);
        let in_pieces = bytes.iter().map(|byte| decoder.push(&[*byte])).find(|result| *result != Ok(None));
        // More than one answer may have its end in another piece.
        if whole != Err(Garbled) {
            assert_eq!(whole, in_pieces.unwrap_or(Ok(None)));
        }
        whole
    }

    #[test]
    fn an_answer_in_pieces_is_read_when_it_is_whole() {
        let long = answer(&"{é}\n".repeat(100));
        let json = "{\"exitCode\": 3,\n \"output\": \"}\\\"{é}\\\\\", \"requestId\": 0, \"new\": [{}]}\n"
            .as_bytes()
            .to_vec();
        for (protocol, bytes, expected) in [
            (Protocol::Proto, long.encode_length_delimited_to_vec(), long.clone()),
            (Protocol::Json, json[..json.len() - 1].to_vec(), answer("}\"{é}\\")),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(decode(protocol, &bytes[..end]), Ok(None), "{protocol:?} {end}");
            }
            assert_eq!(decode(protocol, &bytes), Ok(Some(expected)));
        }
        assert_eq!(
            decode(Protocol::Json, &json),
            Ok(Some(answer("}\"{é}\\"))),
            "an end of line says nothing"
        );
        assert_eq!(decode(Protocol::Proto, &[0]), Ok(Some(WorkResponse::default())));
        assert_eq!(decode(Protocol::Json, b"{}"), Ok(Some(WorkResponse::default())));
    }

    #[test]
    fn what_is_no_answer_is_told_from_one_that_is_incomplete() {
        let two = [answer("x").encode_length_delimited_to_vec(), vec![0]].concat();
        let proto: [&[u8]; 6] = [
            b"\x05hello",
            b"\nINFO: all\n",
            &[0xff; 10],
            b"\xff\xff\xff\xff\x0f",
            b"\x04\x28\x01\x28\x01",
            &two,
        ];
        for bytes in proto {
            assert_eq!(decode(Protocol::Proto, bytes), Err(Garbled), "{bytes:?}");
        }
        let json: [&[u8]; 6] = [b"hello", b"{]}", b"{\"exitCode\": \"x\"}", b"{} {}", b"[{}", b"}"];
        for bytes in json {
            assert_eq!(decode(Protocol::Json, bytes), Err(Garbled), "{bytes:?}");
        }
        assert_eq!(decode(Protocol::Json, b" \n"), Ok(None));
        let large = [b"{".as_slice(), &vec![b' '; RESPONSE_MAX + PREFIX_MAX]].concat();
        assert_eq!(decode(Protocol::Json, &large), Err(Garbled));
    }

    #[test]
    fn a_protocol_that_nobody_knows_is_none() {
        assert_eq!(Protocol::named(None), Some(Protocol::Proto));
        assert_eq!(Protocol::named(Some("json")), Some(Protocol::Json));
        assert_eq!(Protocol::named(Some("xml")), None);
    }
}
