//! The messages of `simulation.proto`.

use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(uint64, tag = "1")]
    pub(crate) call: u64,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
    #[prost(int32, tag = "3")]
    pub(crate) partition: i32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) padding: Bytes,
}

/// What a one-way method returns.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ack {
    #[prost(string, tag = "1")]
    pub(crate) topic: String,
    #[prost(int32, tag = "2")]
    pub(crate) partition: i32,
    #[prost(int64, tag = "3")]
    pub(crate) offset: i64,
}
