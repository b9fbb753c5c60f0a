//! An HTTP/2 client for calls that all look alike, cheap enough to measure
//! servers with.
//!
//! A general client spends more on a call than a good server does: a task, a
//! map of headers and several allocations each. Here a call is a few bytes
//! appended to a buffer and a place in a queue, and many of them go out in one
//! write. Sockets do not block; who drives a [`Connection`] says when it may
//! read and write.

mod calls;
mod connection;
mod frame;
mod hpack;
mod huffman;

pub(super) use calls::{Call, Outcome};
pub(super) use connection::{Broken, Connection, Done, Endpoint};
