//! What farm, launcher and init say to each other: datagrams over sequenced-packet sockets, some with descriptors.
//!
//! A message is a list of strings, each ended by a NUL, which none of them can contain. Lists of any length are cut into datagrams.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::sys::Usage;

/// Bytes of text in one datagram: well below the smallest default of a socket's buffer (208 KiB).
const DATAGRAM_BYTES: usize = 32 * 1024;

/// The most descriptors that ride on one message: those of [`Left`].
const FDS_MAX: usize = 3;

const LAST: u8 = b'.';
const MORE: u8 = b'+';

/// What an init says of its command: that it cannot be run, or that it begins and how it ended.
#[derive(Debug)]
pub(super) enum Event {
    Fault(String),
    /// The files that the command prints into, to be read while it runs.
    Begun {
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Ended {
        end: End,
        usage: Usage,
        left: Left,
    },
}

/// What a command left behind.
#[derive(Debug)]
pub(super) struct Left {
    /// The exec root.
    pub(super) view: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It returned this code; 126 and 127 when it could not be executed or found, as a shell's.
    Exited(i32),
    /// A signal of its own making ended it.
    Signaled(i32),
    /// It was killed because the farm asked for it.
    Killed,
}

/// A connected pair of sockets, closed in programs that are executed.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Joins `fields` into the text of a message.
///
/// # Errors
/// When a field has a NUL.
pub(super) fn join<'a>(fields: impl IntoIterator<Item = &'a str>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for field in fields {
        if field.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a string contains a NUL character"));
        }
        text.extend_from_slice(field.as_bytes());
        text.push(0);
    }
    Ok(text)
}

/// The datagrams of a message, ready for [`send`].
pub(super) fn datagrams(text: &[u8]) -> Vec<Vec<u8>> {
    let count = text.len().div_ceil(DATAGRAM_BYTES).max(1);
    (0..count)
        .map(|index| {
            let piece = &text[index * DATAGRAM_BYTES..text.len().min((index + 1) * DATAGRAM_BYTES)];
            let mark = if index + 1 == count { LAST } else { MORE };
            [&[mark], piece].concat()
        })
        .collect()
}

/// Receives a message whose sender used [`datagrams`]; `None` when the other end is closed. Blocks.
pub(super) fn receive_text(socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let mut buffer = vec![0; DATAGRAM_BYTES + 1];
    loop {
        let (length, _) = receive(socket.as_fd(), &mut buffer)?;
        let Some((mark, piece)) = buffer[..length].split_first() else { return Ok(None) };
        text.extend_from_slice(piece);
        if *mark == LAST {
            return Ok(Some(text));
        }
    }
}

/// The strings of a message, in order.
pub(super) fn split(text: &[u8]) -> impl Iterator<Item = &str> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    text.split(|byte| *byte == 0).map(|field| std::str::from_utf8(field).unwrap_or_default())
}

/// Sends one datagram with descriptors.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "no message has more descriptors");
    }
    // NOSIGNAL: the launcher gives SIGPIPE its default action before commands run.
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one datagram and its descriptors; no bytes at all mean that the other end is closed.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let result = recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
        match result {
            // A reset says that the other end closed without reading our last word (a kill that came too late), once; what it
            // sent before is still there.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => break result?,
        }
    };
    let mut received_fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            received_fds.extend(fds);
        }
    }
    Ok((received.bytes, received_fds))
}

/// Tells the farm that the action could not be run.
pub(super) fn send_fault(socket: impl AsFd, sentence: &str) -> Result<(), Errno> {
    let bytes: Vec<u8> = [b"F", sentence.as_bytes()].concat();
    send(socket, &bytes[..bytes.len().min(DATAGRAM_BYTES)], &[])
}

/// Tells the farm that the command begins and hands over what it prints into.
pub(super) fn send_begun(socket: impl AsFd, left: &Left) -> Result<(), Errno> {
    send(socket, b"B", &[left.stdout.as_fd(), left.stderr.as_fd()])
}

/// Tells the farm how the command ended and hands over what it left.
pub(super) fn send_end(socket: impl AsFd, end: End, usage: Usage, left: &Left) -> Result<(), Errno> {
    let (kind, number) = match end {
        End::Exited(code) => ("exited", code),
        End::Signaled(signal) => ("signaled", signal),
        End::Killed => ("killed", 0),
    };
    let Usage { user_us, system_us, resident_bytes } = usage;
    let text = format!("E{kind} {number} {user_us} {system_us} {resident_bytes}");
    send(socket, text.as_bytes(), &[left.view.as_fd(), left.stdout.as_fd(), left.stderr.as_fd()])
}

/// Reads a message of an init; `None` for bytes that no init sends.
pub(super) fn parse_event(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Event> {
    let text = std::str::from_utf8(bytes).ok()?;
    if let Some(sentence) = text.strip_prefix('F') {
        return Some(Event::Fault(sentence.to_owned()));
    }
    if text == "B" {
        let [stdout, stderr] = fds.try_into().ok()?;
        return Some(Event::Begun { stdout, stderr });
    }
    let mut words = text.strip_prefix('E')?.split(' ');
    let (kind, number) = (words.next()?, words.next()?.parse().ok()?);
    let end = match kind {
        "exited" => End::Exited(number),
        "signaled" => End::Signaled(number),
        "killed" => End::Killed,
        _ => return None,
    };
    let mut figure = || words.next()?.parse().ok();
    let usage = Usage { user_us: figure()?, system_us: figure()?, resident_bytes: figure()? };
    let [view, stdout, stderr] = fds.try_into().ok()?;
    Some(Event::Ended { end, usage, left: Left { view, stdout, stderr } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_arrives_whole() {
        let (one, other) = pair().expect("a socket pair");
        let fields: Vec<String> = (0..5_000).map(|number| format!("argument {number}")).collect();
        let text = join(fields.iter().map(String::as_str)).expect("no NUL");
        let sender = std::thread::spawn(move || {
            for datagram in datagrams(&text) {
                send(&one, &datagram, &[]).expect("sent");
            }
        });
        let received = receive_text(&other).expect("received").expect("open");
        assert_eq!(split(&received).collect::<Vec<_>>(), fields);
        sender.join().expect("no panic");
        assert!(receive_text(&other).expect("received").is_none(), "the other end is closed");
    }

    #[test]
    fn an_end_arrives_with_what_is_left() {
        let (one, other) = pair().expect("a socket pair");
        let usage = Usage { user_us: 1, system_us: 2, resident_bytes: 3 };
        let fd = || one.try_clone().expect("a descriptor");
        let left = Left { view: fd(), stdout: fd(), stderr: fd() };
        send_begun(&one, &left).expect("sent");
        send_end(&one, End::Signaled(9), usage, &left).expect("sent");
        let mut buffer = [0; 256];
        let (length, fds) = receive(&other, &mut buffer).expect("received");
        assert!(matches!(parse_event(&buffer[..length], fds), Some(Event::Begun { .. })));
        let (length, fds) = receive(&other, &mut buffer).expect("received");
        let event = parse_event(&buffer[..length], fds).expect("an event");
        assert!(
            matches!(event, Event::Ended { end: End::Signaled(9), usage: u, .. } if u == usage),
            "{event:?}"
        );
    }

    #[test]
    fn a_field_with_a_nul_is_refused() {
        assert!(join(["a\0b"]).is_err());
        assert_eq!(split(&join(["a", "", "c"]).expect("no NUL")).collect::<Vec<_>>(), ["a", "", "c"]);
    }
}
