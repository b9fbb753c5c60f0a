//! W3C Trace Context: the header `traceparent`.

use std::fmt;

/// What of a trace travels with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Names the trace; never 0.
    pub trace_id: u128,
    /// Names the span of whoever sent it; never 0.
    pub span_id: u64,
    /// Whether whoever sent it records.
    pub sampled: bool,
}

/// `00-` trace id `-` span id `-` flags.
const TEXT_BYTES: usize = 55;

impl Context {
    /// Reads a `traceparent` of any version, as the specification asks for.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let known = text.len() == TEXT_BYTES;
        let later = text.len() > TEXT_BYTES && text[TEXT_BYTES] == b'-' && &text[..2] != b"00";
        if !(known || later) || text[2] != b'-' || text[35] != b'-' || text[52] != b'-' {
            return None;
        }
        let version = hex(&text[..2])?;
        let (trace_id, span_id) = (hex(&text[3..35])?, hex(&text[36..52])?);
        let flags = hex(&text[53..55])?;
        let valid = version != 0xff && trace_id != 0 && span_id != 0;
        // 16 digits fit.
        valid.then_some(Self { trace_id, span_id: span_id as u64, sampled: flags & 1 == 1 })
    }
}

/// As it is written in the header, of version 00.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// Digits in lower case; upper case is against the specification.
fn hex(digits: &[u8]) -> Option<u128> {
    let mut number = 0;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(value);
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_specification_allows_is_read() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = Context::parse(text.as_bytes()).unwrap();
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span_id, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.to_string(), text);
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02-what";
        assert!(!Context::parse(later.as_bytes()).unwrap().sampled);
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_is_read_as_it_was_written(trace_id in 1u128.., span_id in 1u64.., sampled: bool) {
            let context = Context { trace_id, span_id, sampled };
            prop_assert_eq!(Context::parse(context.to_string().as_bytes()), Some(context));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Context::parse(&bytes);
        }
    }
}
