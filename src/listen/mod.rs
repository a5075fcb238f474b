//! Sockets: bind, accept, serve, drain.
