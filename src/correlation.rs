//! Correlation ids: UUIDs that tell where their call waits.
//!
//! A reply carries nothing but this id, so the id itself leads to the waiting
//! call: shard and slot are read out of it, and the slot's whole id must be
//! equal, so a stale, foreign or invented id never reaches a call.
//!
//! The layout is that of a version 8 UUID ([RFC 9562, section 5.8][rfc]), most
//! significant bit first:
//!
//! ```text
//! slot 24 | shard 8 | instance 16 | version 4 | random 12 | variant 2 | random 62
//! ```
//!
//! The 74 random bits come from ChaCha8, seeded by the operating system once a
//! shard. It is a cryptographic generator, so ids can't be guessed from earlier
//! ones, at a few nanoseconds each instead of a system call.
//!
//! [rfc]: https://www.rfc-editor.org/rfc/rfc9562#section-5.8

use std::fmt;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};

/// Bits of a slot number.
pub const SLOT_BITS: u32 = 24;

/// Names one call, in records and in trailers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CorrelationId(u128);

impl CorrelationId {
    /// The slot in which the call waits.
    pub const fn slot(self) -> u32 {
        (self.0 >> 104) as u32
    }

    /// The shard that has the call.
    pub const fn shard(self) -> u8 {
        (self.0 >> 96) as u8
    }

    /// Which instance gave the id out: enough to tell foreign replies from
    /// late ones for the counters, never to deliver one.
    pub const fn instance(self) -> u16 {
        (self.0 >> 80) as u16
    }

    /// The 16 bytes, most significant first, as `ReplyingKafkaTemplate` writes
    /// them.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The 36 characters of the hyphenated form, lower case.
    pub fn to_text(self) -> [u8; 36] {
        let mut text = [0; 36];
        uuid::Uuid::from_u128(self.0).hyphenated().encode_lower(&mut text);
        text
    }

    /// Reads either form: 16 bytes, or 36 characters of any case.
    ///
    /// Returns `None` for anything else; whether the id belongs to a call is
    /// not looked at here.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            16 => bytes.try_into().ok().map(|b| Self(u128::from_be_bytes(b))),
            36 => uuid::Uuid::try_parse_ascii(bytes).ok().map(|id| Self(id.as_u128())),
            _ => None,
        }
    }
}

impl CorrelationId {
    /// Bits that are as good as random.
    pub const fn random_bits(self) -> u64 {
        self.0 as u64
    }

    /// Whether its form is that of an id of ours, version 8. Frameworks make up
    /// ids of their own, of version 4.
    pub const fn is_of_our_form(self) -> bool {
        (self.0 >> 76) & 0xf == 8
    }
}

/// Whether these bytes are an id of our form that another instance gave out.
/// Looks at a few bytes only: most of what an instance reads on a topic that it
/// shares is that.
pub fn is_foreign(bytes: &[u8], instance: u16) -> bool {
    match bytes.len() {
        16 => bytes[6] >> 4 == 8 && bytes[4..6] != instance.to_be_bytes(),
        36 => {
            let tag = std::str::from_utf8(&bytes[9..13]).ok();
            let tag = tag.and_then(|digits| u16::from_str_radix(digits, 16).ok());
            bytes[14] == b'8' && tag.is_some_and(|tag| tag != instance)
        }
        _ => false,
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Gives out the correlation ids of one shard.
#[derive(Debug)]
pub struct Minter {
    shard: u8,
    instance: u16,
    random: ChaCha8Rng,
}

impl Minter {
    /// A minter for `shard` of `instance`, seeded with `seed`.
    pub fn new(shard: u8, instance: u16, seed: [u8; 32]) -> Self {
        Self { shard, instance, random: ChaCha8Rng::from_seed(seed) }
    }

    /// A new id that leads to `slot`, of which the low 24 bits count.
    pub fn mint(&mut self, slot: u32) -> CorrelationId {
        const VERSION: u128 = 0x8 << 76;
        const VARIANT: u128 = 0b10 << 62;
        const RANDOM: u128 = !((0xf << 76) | (0b11 << 62)) & ((1 << 80) - 1);

        let high = u128::from(self.random.next_u64() & 0xffff) << 64;
        let random = (high | u128::from(self.random.next_u64())) & RANDOM;
        let place = u128::from(slot) << 104 | u128::from(self.shard) << 96 | u128::from(self.instance) << 80;
        CorrelationId(place | VERSION | VARIANT | random)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_leads_back_and_reads_back(shard: u8, instance: u16, slot in 0u32..1 << SLOT_BITS, seed: [u8; 32]) {
            let id = Minter::new(shard, instance, seed).mint(slot);
            prop_assert_eq!((id.shard(), id.instance(), id.slot()), (shard, instance, slot));
            prop_assert_eq!(CorrelationId::parse(&id.to_bytes()), Some(id));
            prop_assert_eq!(CorrelationId::parse(&id.to_text()), Some(id));
            prop_assert_eq!(CorrelationId::parse(&id.to_text().to_ascii_uppercase()), Some(id));

            for bytes in [&id.to_bytes()[..], &id.to_text(), &id.to_text().to_ascii_uppercase()] {
                prop_assert!(!is_foreign(bytes, instance) && is_foreign(bytes, instance.wrapping_add(1)));
            }

            let uuid = uuid::Uuid::from_bytes(id.to_bytes());
            prop_assert_eq!(uuid.get_version_num(), 8);
            prop_assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        }

        #[test]
        fn garbage_is_no_id(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if bytes.len() != 16 && bytes.len() != 36 {
                prop_assert_eq!(CorrelationId::parse(&bytes), None);
                prop_assert!(!is_foreign(&bytes, 0));
            }
        }
    }

    #[test]
    fn ids_do_not_repeat() {
        let mut minter = Minter::new(0, 0, [7; 32]);
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| minter.mint(1)).collect();
        assert_eq!(ids.len(), 10_000);
    }
}
