//! Frames and versions: what the broker speaks, reading one request and
//! framing one answer. Nothing here knows what a request means.
//!
//! The decoders of `kafka-protocol` allocate for as many elements as an array
//! claims to have, so every request is first walked along its [`Field`]s: a
//! claim that the frame cannot hold is refused before anything is allocated.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{FRAME_BYTES_MAX, REQUEST_ELEMENTS_MAX};

/// Room for an answer without records; it grows when that is not enough.
const ANSWER_BYTES_GUESS: usize = 512;
/// How much of a frame is allocated before its bytes have come.
const FRAME_BYTES_AHEAD_MAX: usize = 64 * 1024;

/// One field of a request, as far as its extent goes.
pub(super) enum Field {
    /// So many bytes.
    Skip(usize),
    /// A string or null.
    Text,
    /// Bytes or null, with a 32-bit length.
    Blob,
    /// An array of structs.
    Each(&'static [Field]),
    /// An array of plain values.
    Plain(&'static Field),
    /// A field of that version and later ones.
    Since(i16, &'static Field),
    /// A field of versions up to that one.
    Until(i16, &'static Field),
}

use Field::{Blob, Each, Plain, Since, Skip, Text, Until};

/// Declares the APIs: key, versions, first flexible version and shape.
macro_rules! apis {
    ($($(#[$doc:meta])* $name:ident = $key:literal, $min:literal ..= $max:literal, flexible $flexible:literal,
        [$($field:expr),* $(,)?];)+) => {
        /// A request that this broker understands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Api { $($(#[$doc])* $name),+ }

        impl Api {
            /// Every API there is here.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its number in Kafka's protocol.
            pub const fn key(self) -> i16 {
                match self { $(Self::$name => $key),+ }
            }

            /// The first and the last version answered.
            pub const fn versions(self) -> (i16, i16) {
                match self { $(Self::$name => ($min, $max)),+ }
            }

            const fn flexible_from(self) -> i16 {
                match self { $(Self::$name => $flexible),+ }
            }

            const fn shape(self) -> &'static [Field] {
                match self { $(Self::$name => &[$($field),*]),+ }
            }
        }
    };
}

apis! {
    /// Append records.
    Produce = 0, 3..=9, flexible 9, [Text, Skip(6), Each(&[Text, Each(&[Skip(4), Blob])])];
    /// Read records, waiting for them.
    Fetch = 1, 4..=12, flexible 12, [
        Skip(17), Since(7, &Skip(8)),
        Each(&[Text, Each(&[Skip(4), Since(9, &Skip(4)), Skip(8), Since(12, &Skip(4)), Since(5, &Skip(8)), Skip(4)])]),
        Since(7, &Each(&[Text, Plain(&Skip(4))])), Since(11, &Text),
    ];
    /// First, last or dated offset of a partition.
    ListOffsets = 2, 1..=6, flexible 6,
        [Skip(4), Since(2, &Skip(1)), Each(&[Text, Each(&[Skip(4), Since(4, &Skip(4)), Skip(8)])])];
    /// Brokers, topics and partitions.
    Metadata = 3, 0..=9, flexible 9, [Each(&[Text]), Since(4, &Skip(1)), Since(8, &Skip(2))];
    /// Remember how far a group has read.
    OffsetCommit = 8, 2..=8, flexible 8, [
        Text, Skip(4), Text, Since(7, &Text), Until(4, &Skip(8)),
        Each(&[Text, Each(&[Skip(12), Since(6, &Skip(4)), Text])]),
    ];
    /// How far a group has read.
    OffsetFetch = 9, 1..=7, flexible 6, [Text, Each(&[Text, Plain(&Skip(4))]), Since(7, &Skip(1))];
    /// Which broker looks after a group.
    FindCoordinator = 10, 0..=3, flexible 3, [Text, Since(1, &Skip(1))];
    /// Become a member of a group.
    JoinGroup = 11, 0..=7, flexible 6,
        [Text, Skip(4), Since(1, &Skip(4)), Text, Since(5, &Text), Text, Each(&[Text, Blob])];
    /// Stay a member of a group.
    Heartbeat = 12, 0..=4, flexible 4, [Text, Skip(4), Text, Since(3, &Text)];
    /// Leave a group.
    LeaveGroup = 13, 0..=4, flexible 4, [Text, Until(2, &Text), Since(3, &Each(&[Text, Text]))];
    /// Hand out or receive a member's partitions.
    SyncGroup = 14, 0..=5, flexible 4,
        [Text, Skip(4), Text, Since(3, &Text), Since(5, &Text), Since(5, &Text), Each(&[Text, Blob])];
    /// Members of groups, and what each has.
    DescribeGroups = 15, 0..=4, flexible 5, [Plain(&Text), Since(3, &Skip(1))];
    /// Which groups there are.
    ListGroups = 16, 0..=2, flexible 3, [];
    /// Which APIs there are.
    ApiVersions = 18, 0..=3, flexible 3, [Since(3, &Text), Since(3, &Text)];
    /// Create topics.
    CreateTopics = 19, 2..=5, flexible 5,
        [Each(&[Text, Skip(6), Each(&[Skip(4), Plain(&Skip(4))]), Each(&[Text, Text])]), Skip(5)];
    /// Delete topics.
    DeleteTopics = 20, 1..=5, flexible 4, [Plain(&Text), Skip(4)];
    /// Move a partition's first offset forward.
    DeleteRecords = 21, 0..=2, flexible 2, [Each(&[Text, Each(&[Skip(12)])]), Skip(4)];
    /// An id for an idempotent producer.
    InitProducerId = 22, 0..=4, flexible 2, [Text, Skip(4), Since(3, &Skip(10))];
}

/// One request, its body not decoded yet.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) api: Api,
    pub(super) version: i16,
    pub(super) correlation: i32,
    body: Bytes,
}

impl Call {
    /// Reads the header. `None`: not a request that this broker knows.
    pub(super) fn parse(mut frame: Bytes) -> Option<Self> {
        let key = frame.try_get_i16().ok()?;
        let version = frame.try_get_i16().ok()?;
        let correlation = frame.try_get_i32().ok()?;
        let api = *Api::ALL.iter().find(|api| api.key() == key)?;
        let mut call = Self { api, version, correlation, body: frame };
        if call.version_known() {
            let mut walk = Walk { rest: &call.body, version, flexible: false, elements: 0 };
            walk.field(&Text)?;
            if call.flexible() {
                walk.tags()?;
            }
            let header = call.body.len() - walk.rest.len();
            call.body.advance(header);
        }
        Some(call)
    }

    pub(super) fn version_known(&self) -> bool {
        let (min, max) = self.api.versions();
        (min..=max).contains(&self.version)
    }

    fn flexible(&self) -> bool {
        self.version >= self.api.flexible_from()
    }

    /// The decoded body. `None`: it is not what it claims to be.
    pub(super) fn decode<Q: Decodable>(&self) -> Option<Q> {
        let mut walk =
            Walk { rest: &self.body, version: self.version, flexible: self.flexible(), elements: 0 };
        walk.structure(self.api.shape())?;
        Q::decode(&mut self.body.clone(), self.version).ok()
    }

    /// The framed answer. `None`: it has something that this version cannot
    /// say, which is a fault of this broker.
    pub(super) fn encode<A: Answer>(&self, answer: &A) -> Option<BytesMut> {
        let mut out = BytesMut::with_capacity(ANSWER_BYTES_GUESS + answer.payload_bytes());
        out.put_i32(0);
        out.put_i32(self.correlation);
        // Kafka reads the header of an ApiVersions answer before it knows what
        // the broker speaks, so that one never has tagged fields.
        if self.flexible() && self.api != Api::ApiVersions {
            out.put_u8(0);
        }
        if !answer.write(&mut out, self.version) {
            return None;
        }
        let length = i32::try_from(out.len() - 4).ok()?;
        out[..4].copy_from_slice(&length.to_be_bytes());
        Some(out)
    }
}

/// The body of an answer.
pub(super) trait Answer {
    /// Writes the body; false when it cannot be said in this version.
    fn write(&self, out: &mut BytesMut, version: i16) -> bool;

    /// Bytes of records in it.
    fn payload_bytes(&self) -> usize {
        0
    }
}

impl<T: Encodable> Answer for T {
    fn write(&self, out: &mut BytesMut, version: i16) -> bool {
        self.encode(out, version).is_ok()
    }
}

/// Walks along a request without allocating. `None` means malformed.
struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl Walk<'_> {
    fn structure(&mut self, fields: &[Field]) -> Option<()> {
        for field in fields {
            self.field(field)?;
        }
        if self.flexible { self.tags() } else { Some(()) }
    }

    fn field(&mut self, field: &Field) -> Option<()> {
        match field {
            Skip(bytes) => self.skip(*bytes),
            Text => {
                let length =
                    if self.flexible { self.compact()? } else { i64::from(self.rest.try_get_i16().ok()?) };
                self.skip(usize::try_from(length.max(0)).ok()?)
            }
            Blob => {
                let length = self.length()?;
                self.skip(length)
            }
            Each(fields) => self.elements(|walk| walk.structure(fields)),
            Plain(field) => self.elements(|walk| walk.field(field)),
            Since(version, field) if self.version >= *version => self.field(field),
            Until(version, field) if self.version <= *version => self.field(field),
            Since(..) | Until(..) => Some(()),
        }
    }

    fn elements(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        let count = self.length()?;
        self.elements = self.elements.checked_add(count)?;
        if count > self.rest.len() || self.elements > REQUEST_ELEMENTS_MAX {
            return None;
        }
        (0..count).try_for_each(|_| each(self))
    }

    /// A length of an array or of bytes; null counts as none.
    fn length(&mut self) -> Option<usize> {
        let length = if self.flexible { self.compact()? } else { i64::from(self.rest.try_get_i32().ok()?) };
        usize::try_from(length.max(0)).ok()
    }

    /// A length as flexible versions write it: one more than it is, 0 for null.
    fn compact(&mut self) -> Option<i64> {
        self.varint().map(|length| i64::from(length) - 1)
    }

    fn tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let bytes = self.varint()?;
            self.skip(usize::try_from(bytes).ok()?)?;
        }
        Some(())
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.rest.try_get_u8().ok()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }
}

/// Reads one frame. `None`: the peer is gone, or what it sends is no frame.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Option<Bytes> {
    let length = usize::try_from(reader.read_i32().await.ok()?).ok()?;
    if length > FRAME_BYTES_MAX {
        return None;
    }
    let mut frame = BytesMut::with_capacity(length.min(FRAME_BYTES_AHEAD_MAX));
    let mut body = reader.take(length as u64);
    while frame.len() < length {
        if body.read_buf(&mut frame).await.ok()? == 0 {
            return None;
        }
    }
    Some(frame.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::MetadataRequest;

    fn frame(api: Api, version: i16, body: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_i16(api.key());
        out.put_i16(version);
        out.put_i32(7);
        out.put_i16(-1);
        out.put_slice(body);
        out.freeze()
    }

    #[test]
    fn a_count_that_the_frame_cannot_hold_is_refused_before_allocating() {
        let claim = frame(Api::Metadata, 1, &i32::MAX.to_be_bytes());
        let call = Call::parse(claim).unwrap();
        assert!(call.decode::<MetadataRequest>().is_none());
        // Flexible: header tags, then a compact array of nearly 2^32.
        let claim = frame(Api::Metadata, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(Call::parse(claim).unwrap().decode::<MetadataRequest>().is_none());
    }

    #[test]
    fn more_elements_than_the_bound_are_refused() {
        let count = REQUEST_ELEMENTS_MAX + 1;
        let mut body = i32::try_from(count).unwrap().to_be_bytes().to_vec();
        body.resize(4 + 2 * count, 0);
        let call = Call::parse(frame(Api::Metadata, 1, &body)).unwrap();
        assert!(call.decode::<MetadataRequest>().is_none());
    }

    #[test]
    fn any_bytes_at_all_are_survived() {
        use rand::rngs::ChaCha8Rng;
        use rand::{Rng as _, SeedableRng as _};
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for round in 0..20_000_u32 {
            let mut body = vec![0_u8; (round % 97) as usize];
            random.fill_bytes(&mut body);
            let api = Api::ALL[round as usize % Api::ALL.len()];
            let (min, max) = api.versions();
            for version in min..=max {
                if let Some(call) = Call::parse(frame(api, version, &body)) {
                    super::super::api::decodes(&call);
                }
            }
        }
    }

    #[tokio::test]
    async fn frames_beyond_the_bound_or_cut_short_are_refused() {
        assert!(read_frame(&mut &b"GET / HTTP/1.1\r\n\r\n"[..]).await.is_none());
        assert!(read_frame(&mut &[0xff, 0xff, 0xff, 0xff, 1][..]).await.is_none());
        assert!(read_frame(&mut &[0, 0, 0, 9, 1][..]).await.is_none());
        assert_eq!(read_frame(&mut &[0, 0, 0, 1, 1][..]).await.unwrap(), [1][..]);
    }
}
