//! Sockets that the service manager opened and handed over (socket activation, sd_listen_fds): while this process is started again, they
//! hold the connections that come.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::error::{Error, Result};

/// The variable that says which process the sockets are for. Without it they may be those of whoever started this process.
const FOR_WHOM: &str = "LISTEN_PID";

/// The variable with the names of the sockets, colons between, as `FileDescriptorName=` gives them.
const NAMES: &str = "LISTEN_FDNAMES";

/// The sockets that this process was given, by name.
#[derive(Debug, Default)]
pub struct Sockets(BTreeMap<String, TcpListener>);

impl Sockets {
    /// Takes what was handed over; there is nothing to take a second time. To be called before there are threads: it changes the
    /// environment, so that no child takes the sockets for its own.
    ///
    /// # Errors
    /// `Invalid` with the socket that is none that listens for TCP, or that has no name of its own.
    pub fn take_inherited() -> Result<Self> {
        if std::env::var_os(FOR_WHOM).is_none() {
            return Ok(Self::default());
        }
        let names = std::env::var(NAMES).unwrap_or_default();
        let mut descriptors = ListenFd::from_env();
        let count = descriptors.len();
        let names: Vec<&str> = names.split(':').collect();
        if count > 0 && names.len() != count {
            return Err(Error::invalid(format!(
                "{count} sockets were handed over with other than {count} names; give each a FileDescriptorName="
            )));
        }
        let mut sockets = Self::default();
        for (number, name) in names.into_iter().take(count).enumerate() {
            let socket = descriptors.take_tcp_listener(number).ok().flatten();
            let listening = socket.filter(|socket| socket_acceptconn(socket).unwrap_or(false));
            let wrong = || {
                let remedy = "its unit needs ListenStream= with an address and a port, and Accept=no";
                Error::invalid(format!("the socket `{name}` does not listen for TCP: {remedy}"))
            };
            sockets.insert(name, listening.ok_or_else(wrong)?)?;
        }
        Ok(sockets)
    }

    /// Adds a socket.
    ///
    /// # Errors
    /// `Invalid` when another has its name.
    fn insert(&mut self, name: &str, socket: TcpListener) -> Result<()> {
        match self.0.insert(name.to_owned(), socket) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("two sockets have the name `{name}`; a listener has one"))),
        }
    }

    /// The names, and where the sockets listen.
    ///
    /// # Errors
    /// `Invalid` when the system does not say where.
    pub fn addresses(&self) -> Result<Vec<(&str, SocketAddr)>> {
        let address = |(name, socket): (_, &TcpListener)| {
            let unknown =
                |error| Error::invalid(format!("the socket `{name}` has no address")).with_source(error);
            Ok((String::as_str(name), socket.local_addr().map_err(unknown)?))
        };
        self.0.iter().map(address).collect()
    }

    /// The socket with this name, if there is one, for whoever serves it.
    pub fn take(&mut self, name: &str) -> Option<TcpListener> {
        self.0.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_sockets_only() {
        let mut sockets = Sockets::default();
        let open = || TcpListener::bind("127.0.0.1:0").unwrap();
        let public = open();
        let address = public.local_addr().unwrap();
        sockets.insert("public", public).unwrap();
        assert_eq!(sockets.addresses().unwrap(), [("public", address)]);
        assert!(sockets.insert("public", open()).is_err());
        assert!(sockets.take("admin").is_none() && sockets.take("public").is_some());
        assert!(sockets.take("public").is_none());
    }
}
