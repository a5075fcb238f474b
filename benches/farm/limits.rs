//! What the machine can do without us.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;

/// Bytes that a system call carries, the same as one chunk of ours.
const PIECE: usize = 256 << 10;

/// Bytes per second of `content` over a socket on loopback, into memory that is used again and again.
pub(crate) fn socket(content: &[u8]) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut connection, _) = listener.accept().unwrap();
            for piece in content.chunks(PIECE) {
                connection.write_all(piece).unwrap();
            }
        });
        let mut connection = TcpStream::connect(address).unwrap();
        let start = Instant::now();
        let mut buffer = vec![0; PIECE];
        let mut read = 0;
        while read < content.len() {
            read += connection.read(&mut buffer).unwrap();
        }
        content.len() as f64 / start.elapsed().as_secs_f64()
    })
}

/// Bytes per second of `content` written to the new file `path` and synced. The file stays, as a blob does: memory that a deleted file
/// gave back is warm, and writing into that is up to three times as fast, above all in a virtual machine.
pub(crate) fn synced_file(path: &Path, content: &[u8]) -> f64 {
    let start = Instant::now();
    let mut file = File::create(path).unwrap();
    for piece in content.chunks(PIECE) {
        file.write_all(piece).unwrap();
    }
    file.sync_data().unwrap();
    content.len() as f64 / start.elapsed().as_secs_f64()
}

/// Blobs per second when `count` of them are appended to one file that is synced after every `group`.
pub(crate) fn synced_groups(directory: &Path, blob: &[u8], count: usize, group: usize) -> f64 {
    let path = directory.join("limit");
    let start = Instant::now();
    let mut file = File::create(&path).unwrap();
    for _ in 0..count / group {
        for _ in 0..group {
            file.write_all(blob).unwrap();
        }
        file.sync_data().unwrap();
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path).unwrap();
    rate
}

/// Bare processes per second, started from as many threads as there are cores.
pub(crate) fn processes(count: usize) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..count / threads {
                    assert!(Command::new("/bin/true").status().unwrap().success());
                }
            });
        }
    });
    count as f64 / start.elapsed().as_secs_f64()
}

/// Bytes per second of all `contents` over sockets on loopback, each over its own.
pub(crate) fn sockets(contents: &[Bytes]) -> f64 {
    at_once(contents, socket)
}

/// Bytes per second of all `contents` written to new files at the same time, each synced.
pub(crate) fn synced_files(directory: &Path, contents: &[Bytes]) -> f64 {
    at_once(contents, |content| {
        let number = content.as_ptr() as usize;
        synced_file(&directory.join(format!("limit-{number}")), content)
    })
}

/// Bytes per second of `work` on all `contents`, on a thread for each.
fn at_once(contents: &[Bytes], work: impl Fn(&[u8]) -> f64 + Sync) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for content in contents {
            scope.spawn(|| work(content));
        }
    });
    contents.iter().map(Bytes::len).sum::<usize>() as f64 / start.elapsed().as_secs_f64()
}

/// Exchanges per second of a request and a response of so many bytes over `connections` on loopback, `count` in all.
pub(crate) fn exchanges(request: usize, response: usize, count: usize, connections: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let each = count.div_ceil(connections);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(move || {
                exchange(TcpStream::connect(address).unwrap(), each, (&vec![1; request], response))
            });
            let connection = listener.accept().unwrap().0;
            scope.spawn(move || answer(connection, each, (request, &vec![1; response])));
        }
    });
    (each * connections) as f64 / start.elapsed().as_secs_f64()
}

fn exchange(mut connection: TcpStream, count: usize, (request, response): (&[u8], usize)) {
    connection.set_nodelay(true).unwrap();
    let mut buffer = vec![0; response];
    for _ in 0..count {
        connection.write_all(request).unwrap();
        connection.read_exact(&mut buffer).unwrap();
    }
}

fn answer(mut connection: TcpStream, count: usize, (request, response): (usize, &[u8])) {
    connection.set_nodelay(true).unwrap();
    let mut buffer = vec![0; request];
    for _ in 0..count {
        connection.read_exact(&mut buffer).unwrap();
        connection.write_all(response).unwrap();
    }
}
