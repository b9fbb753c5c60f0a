//! `TCP_NODELAY` on rskafka's sockets.
//!
//! rskafka never sets it and writes a frame above 8 KiB in two pieces, so that
//! Nagle's algorithm holds the second back until the broker's delayed
//! acknowledgement of the first: 40 ms for a produce that takes 0.1. It has no
//! hook for its sockets either. So after each connect this module goes through
//! the process's own descriptors and sets the option on every TCP socket that
//! lacks it; our own listeners set it themselves, so nothing else is changed.

#![allow(unsafe_code, reason = "a descriptor that another crate owns can only be borrowed unsafely")]

use std::os::fd::{BorrowedFd, RawFd};

use rustix::net::sockopt;

/// Sets the option wherever it is missing. Costs one or two system calls per
/// open descriptor; where `/proc` is not mounted it does nothing but say so.
pub(super) fn set_on_all_sockets() {
    let listing = match std::fs::read_dir("/proc/self/fd") {
        Ok(listing) => listing,
        Err(error) => {
            tracing::debug!(%error, "TCP_NODELAY can't be set on connections to Kafka");
            return;
        }
    };
    let descriptors: Vec<RawFd> = listing
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for descriptor in descriptors {
        set(descriptor);
    }
}

fn set(descriptor: RawFd) {
    // SAFETY: the number was read from this process's table a moment ago and
    // is not -1. Its owner may have closed it since, and another may have the
    // number by now: then the calls fail with EBADF, or set the option on that
    // socket, which harms neither. No memory is touched and nothing is closed.
    let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
    // Anything but a TCP socket answers with an error and is left alone.
    if matches!(sockopt::tcp_nodelay(socket), Ok(false)) {
        let _ = sockopt::set_tcp_nodelay(socket, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_the_option_gets_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nodelay(false).unwrap();
        set_on_all_sockets();
        assert!(stream.nodelay().unwrap());
    }
}
