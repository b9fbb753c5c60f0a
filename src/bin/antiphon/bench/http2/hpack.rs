//! HPACK (RFC 7541): all of decoding, of which only the status fields are
//! kept, and as much of encoding as one request's headers need, which are the
//! same in each call.

use std::collections::VecDeque;

use super::frame::TABLE_BYTES_DEFAULT;
use super::huffman;

/// What the RFC adds to the size of a table's entry.
const ENTRY_BYTES: usize = 32;
/// Entries of the static table; the dynamic one's come after them.
const STATIC_ENTRIES: usize = 61;

/// Names of the static table, without the first 14, which have values too.
const STATIC_NAMES: [&str; 47] = [
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// The first entries of the static table.
const STATIC_FIELDS: [(&str, &str); 14] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
];

/// A header block that can't be decoded; the connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// What a call ends with.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Fields {
    /// `:status`.
    pub(super) http: Option<u16>,
    /// `grpc-status`.
    pub(super) grpc: Option<u8>,
    /// `grpc-message`, percent-encoded as it came.
    pub(super) message: Vec<u8>,
}

/// Name and value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// One end of a connection's header compression: reads what the server sends.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Newest first.
    table: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        let bytes_max = TABLE_BYTES_DEFAULT as usize;
        Self { table: VecDeque::new(), bytes: 0, bytes_max, name: Vec::new(), value: Vec::new() }
    }

    /// Reads a whole header block.
    pub(super) fn decode(&mut self, mut block: &[u8], fields: &mut Fields) -> Result<(), Malformed> {
        while let Some(first) = block.first().copied() {
            match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    let (name, value) = self.entry(index)?;
                    keep(name, value, fields);
                }
                0x40.. => {
                    self.literal(&mut block, 6)?;
                    keep(&self.name, &self.value, fields);
                    self.insert();
                }
                0x20.. => {
                    let bytes_max = integer(&mut block, 5)?;
                    if bytes_max > TABLE_BYTES_DEFAULT as usize {
                        return Err(Malformed);
                    }
                    self.bytes_max = bytes_max;
                    self.evict(0);
                }
                _ => {
                    self.literal(&mut block, 4)?;
                    keep(&self.name, &self.value, fields);
                }
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let place = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = STATIC_FIELDS.get(place) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        if let Some(name) = STATIC_NAMES.get(place - STATIC_FIELDS.len()) {
            return Ok((name.as_bytes(), if index == 16 { b"gzip, deflate" } else { b"" }));
        }
        let (name, value) = self.table.get(place - STATIC_ENTRIES).ok_or(Malformed)?;
        Ok((name, value))
    }

    /// Reads name and value.
    fn literal(&mut self, block: &mut &[u8], prefix_bits: u32) -> Result<(), Malformed> {
        let index = integer(block, prefix_bits)?;
        let mut name = std::mem::take(&mut self.name);
        name.clear();
        if index == 0 {
            string(block, &mut name)?;
        } else {
            name.extend_from_slice(self.entry(index)?.0);
        }
        self.name = name;
        self.value.clear();
        string(block, &mut self.value)
    }

    fn insert(&mut self) {
        let bytes = self.name.len() + self.value.len() + ENTRY_BYTES;
        self.evict(bytes);
        if bytes <= self.bytes_max {
            self.bytes += bytes;
            self.table.push_front((self.name.as_slice().into(), self.value.as_slice().into()));
        }
    }

    /// Makes room for so many bytes.
    fn evict(&mut self, bytes: usize) {
        while self.bytes + bytes > self.bytes_max {
            let Some((name, value)) = self.table.pop_back() else { return };
            self.bytes -= name.len() + value.len() + ENTRY_BYTES;
        }
    }
}

fn keep(name: &[u8], value: &[u8], fields: &mut Fields) {
    let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u16>().ok());
    match name {
        b":status" => fields.http = number(),
        b"grpc-status" => fields.grpc = number().and_then(|code| u8::try_from(code).ok()),
        b"grpc-message" => fields.message = value.to_vec(),
        _ => {}
    }
}

fn integer(block: &mut &[u8], prefix_bits: u32) -> Result<usize, Malformed> {
    let (first, rest) = block.split_first().ok_or(Malformed)?;
    *block = rest;
    let mask = (1usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (next, rest) = block.split_first().ok_or(Malformed)?;
        *block = rest;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn string(block: &mut &[u8], into: &mut Vec<u8>) -> Result<(), Malformed> {
    let coded = block.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    if coded {
        huffman::decode(text, into).ok_or(Malformed)
    } else {
        into.extend_from_slice(text);
        Ok(())
    }
}

/// The headers of every request on a connection. As any client's would, they
/// go into the server's table with the first call and are numbers after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    /// Puts all of them into the table.
    pub(super) first: Vec<u8>,
    /// Refers to the table.
    pub(super) again: Vec<u8>,
    /// Uses no table, for a server that wants none.
    pub(super) plain: Vec<u8>,
}

impl Template {
    /// `headers` without `:method` and `:scheme`.
    pub(super) fn new(headers: &[(String, String)]) -> Self {
        const POST_OVER_HTTP: [u8; 2] = [0x83, 0x86];
        let mut first = POST_OVER_HTTP.to_vec();
        let mut again = POST_OVER_HTTP.to_vec();
        // A table of no bytes, as has to be said in front of the first block.
        let mut plain = vec![0x20];
        plain.extend(POST_OVER_HTTP);
        for (n, (name, value)) in headers.iter().enumerate() {
            put_literal(&mut first, 0x40, name, value);
            put_literal(&mut plain, 0x00, name, value);
            put_integer(&mut again, 0x80, 7, STATIC_ENTRIES + headers.len() - n);
        }
        let bytes: usize = headers.iter().map(|(n, v)| n.len() + v.len() + ENTRY_BYTES).sum();
        if bytes > TABLE_BYTES_DEFAULT as usize {
            return Self { first: plain.clone(), again: plain.clone(), plain };
        }
        Self { first, again, plain }
    }
}

fn put_literal(out: &mut Vec<u8>, pattern: u8, name: &str, value: &str) {
    out.push(pattern);
    for text in [name, value] {
        put_integer(out, 0, 7, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix_bits: u32, value: usize) {
    let mask = (1usize << prefix_bits) - 1;
    let low = |value: usize| value.to_le_bytes()[0];
    if value < mask {
        return out.push(pattern | low(value));
    }
    out.push(pattern | low(mask));
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Fields {
        let mut fields = Fields::default();
        decoder.decode(block, &mut fields).unwrap();
        fields
    }

    #[test]
    fn a_status_is_found_wherever_it_stands() {
        let mut decoder = Decoder::new();
        let mut block = vec![0x88];
        put_literal(&mut block, 0x40, "grpc-status", "13");
        put_literal(&mut block, 0x00, "grpc-message", "no");
        let expected = Fields { http: Some(200), grpc: Some(13), message: b"no".to_vec() };
        assert_eq!(fields(&mut decoder, &block), expected);
        assert_eq!(fields(&mut decoder, &[0x80 | 62]).grpc, Some(13));
    }

    #[test]
    fn the_table_forgets_the_oldest() {
        let mut decoder = Decoder::new();
        let mut block = Vec::new();
        put_literal(&mut block, 0x40, "grpc-status", "5");
        fields(&mut decoder, &block);
        for n in 0..100 {
            let mut block = Vec::new();
            put_literal(&mut block, 0x40, "x-correlation-id", &format!("{n:0>40}"));
            fields(&mut decoder, &block);
        }
        assert!(decoder.bytes <= 4_096 && decoder.table.len() == 4_096 / (16 + 40 + 32));
        fields(&mut decoder, &[0x20]);
        assert_eq!((decoder.bytes, decoder.table.len()), (0, 0));
    }

    #[test]
    fn a_template_reads_back() {
        let headers = [
            (":path".to_owned(), "/a.B/C".to_owned()),
            ("grpc-status".to_owned(), "7".to_owned()),
            ("x-long".to_owned(), "l".repeat(300)),
        ];
        let template = Template::new(&headers);
        let mut decoder = Decoder::new();
        assert_eq!(fields(&mut decoder, &template.first).grpc, Some(7));
        assert_eq!(decoder.table.len(), 3);
        assert_eq!(fields(&mut decoder, &template.again).grpc, Some(7));
        assert_eq!(fields(&mut decoder, &template.plain).grpc, Some(7));
        assert_eq!(decoder.table.len(), 0);
    }

    #[test]
    fn nonsense_is_refused_and_does_not_panic() {
        let mut fields = Fields::default();
        for block in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x40, 0x05], &[0x3f, 0xff, 0x7f]]
        {
            assert_eq!(Decoder::new().decode(block, &mut fields), Err(Malformed), "{block:?}");
        }
        for seed in 0..10_000u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let block: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            let _ = Decoder::new().decode(&block, &mut fields);
        }
    }
}
