//! HTTP/2 frames, as far as a client of unary calls needs them (RFC 9113).

/// Length, kind, flags and stream, in front of every frame.
pub(super) const HEAD_BYTES: usize = 9;
/// The largest payload that may be sent to a peer that has not said otherwise.
/// We do not say otherwise, so none that we get is larger.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;
/// Flow-control window of a stream, and of a connection, before either side
/// says otherwise.
pub(super) const WINDOW_DEFAULT: u32 = 65_535;
/// Bytes that a HPACK table may hold before the peer says otherwise.
pub(super) const TABLE_BYTES_DEFAULT: u32 = 4_096;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Of SETTINGS and PING.
pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

pub(super) const SETTING_TABLE_BYTES: u16 = 1;
pub(super) const SETTING_ENABLE_PUSH: u16 = 2;
pub(super) const SETTING_STREAMS_MAX: u16 = 3;
pub(super) const SETTING_WINDOW: u16 = 4;
pub(super) const SETTING_PAYLOAD_MAX: u16 = 5;

/// Error code of a stream that its caller has given up.
pub(super) const CANCEL: u32 = 8;

/// What stands in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// `None`: too few bytes yet.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & !(1 << 31),
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload of HEADERS or DATA without padding and priority. `None`:
    /// the padding is longer than the frame.
    pub(super) fn content<'a>(&self, mut payload: &'a [u8]) -> Option<&'a [u8]> {
        let mut padding = 0;
        if self.has(PADDED) {
            let (first, rest) = payload.split_first()?;
            padding = usize::from(*first);
            payload = rest;
        }
        if self.kind == HEADERS && self.has(PRIORITY) {
            payload = payload.get(5..)?;
        }
        payload.get(..payload.len().checked_sub(padding)?)
    }
}

/// Writes the head of a frame. Its payload follows.
pub(super) fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    // Our payloads are at most `PAYLOAD_BYTES_MAX` long.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Lets the peer send `bytes` more; stream 0 is the connection.
pub(super) fn put_window_update(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    put_head(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&bytes.to_be_bytes());
}

/// Gives a stream up.
pub(super) fn put_reset(out: &mut Vec<u8>, stream: u32, code: u32) {
    put_head(out, 4, RST_STREAM, 0, stream);
    out.extend_from_slice(&code.to_be_bytes());
}

/// Says how we want it.
pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, settings.len() * 6, SETTINGS, 0, 0);
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// The settings in a payload, in order.
pub(super) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload
        .chunks_exact(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
}

/// The number that a payload begins with.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().copied().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let mut out = Vec::new();
        put_head(&mut out, 0x01_02_03, HEADERS, END_HEADERS, 7);
        assert_eq!(out, [1, 2, 3, 1, 4, 0, 0, 0, 7]);
        let head = Head { length: 0x01_02_03, kind: HEADERS, flags: END_HEADERS, stream: 7 };
        assert_eq!(Head::parse(&out), Some(head));
        assert_eq!(Head::parse(&out[..8]), None);
    }

    #[test]
    fn padding_and_priority_are_left_out() {
        let head = Head { length: 9, kind: HEADERS, flags: PADDED | PRIORITY, stream: 1 };
        assert_eq!(head.content(&[2, 0, 0, 0, 0, 0, 9, 0, 0]), Some(&[9][..]));
        assert_eq!(head.content(&[9, 0, 0, 0, 0, 0, 9, 0, 0]), None);
        let data = Head { length: 2, kind: DATA, flags: 0, stream: 1 };
        assert_eq!(data.content(&[1, 2]), Some(&[1, 2][..]));
    }
}
