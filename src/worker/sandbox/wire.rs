//! What farm, launcher and init say to each other: datagrams over sequenced-packet sockets, some with descriptors.
//!
//! What the farm says is JSON, cut into datagrams where it may be long.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sys::Usage;

/// Bytes of text in one datagram: well below the smallest default of a socket's buffer (208 KiB).
const DATAGRAM_BYTES: usize = 32 * 1024;

/// A datagram with a piece of a value, and the mark that says whether more follow.
pub(super) const PIECE_BYTES: usize = DATAGRAM_BYTES + 1;

/// The most descriptors that ride on one message: those of [`Left`] and a tree of mounts.
const FDS_MAX: usize = 4;

const LAST: u8 = b'.';
const MORE: u8 = b'+';

/// What an init says of its command: that it cannot be run, or that it begins and how it ended; and what those say that serve residents.
#[derive(Debug)]
pub(super) enum Event {
    Fault(String),
    /// The files that the command prints into, to be read while it runs.
    Begun {
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Ended {
        account: Account,
        left: Left,
    },
    /// The exec root of a request to a resident, as a tree of mounts that is nowhere attached, and what its command would leave.
    Staged {
        left: Left,
        tree: OwnedFd,
    },
    /// The farm's ends of a resident's pipes, and the file that its errors go to.
    Piped {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A resident sees the inputs of its next request, or none.
    Exchanged,
}

/// What an init knows of a command that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) end: End,
    pub(super) usage: Usage,
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

/// The datagrams of a value, ready for [`send`].
///
/// # Errors
/// When a path in it is not UTF-8.
pub(super) fn datagrams(value: &impl Serialize) -> io::Result<Vec<Vec<u8>>> {
    let text = serde_json::to_vec(value)?;
    let last = text.len().div_ceil(DATAGRAM_BYTES) - 1;
    let pieces = text.chunks(DATAGRAM_BYTES).enumerate();
    Ok(pieces.map(|(index, piece)| [&[if index == last { LAST } else { MORE }], piece].concat()).collect())
}

/// Receives a value whose sender used [`datagrams`]; `None` when the other end is closed. Blocks.
pub(super) fn receive_value<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<T>> {
    let mut buffer = vec![0; PIECE_BYTES];
    let (length, _) = receive(socket.as_fd(), &mut buffer)?;
    receive_rest(&buffer[..length], socket)
}

/// Receives what follows `first`, the first datagram of a value; `None` when the other end is closed. Blocks.
pub(super) fn receive_rest<T: DeserializeOwned>(first: &[u8], socket: impl AsFd) -> io::Result<Option<T>> {
    let mut text = Vec::new();
    let mut next = Vec::new();
    let mut datagram = first;
    loop {
        let Some((mark, piece)) = datagram.split_first() else { return Ok(None) };
        if *mark == LAST && text.is_empty() {
            return Ok(Some(serde_json::from_slice(piece)?));
        }
        text.extend_from_slice(piece);
        if *mark == LAST {
            return Ok(Some(serde_json::from_slice(&text)?));
        }
        next.resize(PIECE_BYTES, 0);
        let (length, _) = receive(socket.as_fd(), &mut next)?;
        datagram = &next[..length];
    }
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
pub(super) fn send_end(socket: impl AsFd, account: &Account, left: &Left) -> Result<(), Errno> {
    let fds = [left.view.as_fd(), left.stdout.as_fd(), left.stderr.as_fd()];
    send(socket, &account.to_bytes(), &fds)
}

/// Gives the farm its ends of a resident's pipes and the file that its errors go to.
pub(super) fn send_piped(socket: impl AsFd, fds: [&OwnedFd; 3]) -> Result<(), Errno> {
    send(socket, b"P", &fds.map(AsFd::as_fd))
}

/// Hands a request's exec root to the farm.
pub(super) fn send_staged(socket: impl AsFd, left: &Left, tree: &OwnedFd) -> Result<(), Errno> {
    send(socket, b"T", &[left.view.as_fd(), left.stdout.as_fd(), left.stderr.as_fd(), tree.as_fd()])
}

/// Reads a message of an init; `None` for bytes that no init sends.
pub(super) fn parse_event(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Event> {
    match bytes {
        [b'F', sentence @ ..] => Some(Event::Fault(std::str::from_utf8(sentence).ok()?.to_owned())),
        b"B" => {
            let [stdout, stderr] = fds.try_into().ok()?;
            Some(Event::Begun { stdout, stderr })
        }
        b"P" => {
            let [stdin, stdout, stderr] = fds.try_into().ok()?;
            Some(Event::Piped { stdin, stdout, stderr })
        }
        b"T" => {
            let [view, stdout, stderr, tree] = fds.try_into().ok()?;
            Some(Event::Staged { left: Left { view, stdout, stderr }, tree })
        }
        b"X" => Some(Event::Exchanged),
        bytes => {
            let account = Account::from_bytes(bytes.try_into().ok()?)?;
            let [view, stdout, stderr] = fds.try_into().ok()?;
            Some(Event::Ended { account, left: Left { view, stdout, stderr } })
        }
    }
}

/// Bytes of an [`Account`]: a letter for all, one for the end, its number, and three amounts.
const ACCOUNT_BYTES: usize = 2 + 4 + 3 * 8;

impl Account {
    /// Not JSON: an init has cold memory, and a serializer would be much of what it touches.
    fn to_bytes(self) -> [u8; ACCOUNT_BYTES] {
        let (end, number) = match self.end {
            End::Exited(code) => (b'e', code),
            End::Signaled(signal) => (b's', signal),
            End::Killed => (b'k', 0),
        };
        let mut bytes = [0; ACCOUNT_BYTES];
        bytes[..2].copy_from_slice(&[b'E', end]);
        bytes[2..6].copy_from_slice(&number.to_le_bytes());
        let Usage { user_us, system_us, resident_bytes } = self.usage;
        for (to, amount) in bytes[6..].chunks_exact_mut(8).zip([user_us, system_us, resident_bytes]) {
            to.copy_from_slice(&amount.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; ACCOUNT_BYTES]) -> Option<Self> {
        let number = i32::from_le_bytes(bytes[2..6].try_into().ok()?);
        let end = match &bytes[..2] {
            b"Ee" => End::Exited(number),
            b"Es" => End::Signaled(number),
            b"Ek" => End::Killed,
            _ => return None,
        };
        let mut amounts =
            bytes[6..].chunks_exact(8).map(|amount| Some(u64::from_le_bytes(amount.try_into().ok()?)));
        let mut amount = || amounts.next().flatten();
        Some(Self {
            end,
            usage: Usage { user_us: amount()?, system_us: amount()?, resident_bytes: amount()? },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_arrives_whole() {
        let (one, other) = pair().expect("a socket pair");
        let fields: Vec<String> = (0..5_000).map(|number| format!("argument {number}")).collect();
        let pieces = datagrams(&fields).expect("UTF-8");
        let sender = std::thread::spawn(move || {
            for datagram in pieces {
                send(&one, &datagram, &[]).expect("sent");
            }
        });
        let received: Vec<String> = receive_value(&other).expect("received").expect("open");
        assert_eq!(received, fields);
        sender.join().expect("no panic");
        let next: Option<Vec<String>> = receive_value(&other).expect("received");
        assert!(next.is_none(), "the other end is closed");
    }

    #[test]
    fn an_end_arrives_with_what_is_left() {
        let (one, other) = pair().expect("a socket pair");
        let usage = Usage { user_us: 1, system_us: 2, resident_bytes: 3 };
        let fd = || one.try_clone().expect("a descriptor");
        let left = Left { view: fd(), stdout: fd(), stderr: fd() };
        send_begun(&one, &left).expect("sent");
        let sent = Account { end: End::Signaled(9), usage };
        send_end(&one, &sent, &left).expect("sent");
        let mut buffer = [0; 256];
        let (length, fds) = receive(&other, &mut buffer).expect("received");
        assert!(matches!(parse_event(&buffer[..length], fds), Some(Event::Begun { .. })));
        let (length, fds) = receive(&other, &mut buffer).expect("received");
        let event = parse_event(&buffer[..length], fds).expect("an event");
        assert!(matches!(&event, Event::Ended { account, .. } if *account == sent), "{event:?}");
    }
}
