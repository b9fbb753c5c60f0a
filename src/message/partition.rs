//! Which partition a key belongs to, as Kafka's Java client decides it, so that
//! records keyed by other programs land beside ours. Source:
//! `BuiltInPartitioner.partitionForKey` and `Utils.murmur2` of kafka-clients.

/// The partition of `key` in a topic of `partitions` (at least 1).
pub fn partition_of_key(key: &[u8], partitions: i32) -> i32 {
    // `toPositive` clears the sign bit; it does not negate.
    let positive = murmur2(key) & 0x7fff_ffff;
    i32::try_from(positive % partitions.max(1).unsigned_abs()).unwrap_or_default()
}

/// MurmurHash2, 32 bits, with the seed that Kafka uses.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Java hashes an int length; keys are far below 4 GiB.
    let mut hash = SEED ^ (data.len() as u32);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (n, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * n);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The cases of `UtilsTest.testMurmur2` in kafka-clients.
    #[test]
    fn hashes_are_those_of_the_java_client() {
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            (b"abc", 479470107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key) as i32, expected, "{:?}", String::from_utf8_lossy(key));
        }
    }

    proptest! {
        #[test]
        fn a_partition_is_always_in_range(key in proptest::collection::vec(any::<u8>(), 0..64), partitions in 1..1000i32) {
            let partition = partition_of_key(&key, partitions);
            prop_assert!((0..partitions).contains(&partition));
            prop_assert_eq!(partition, partition_of_key(&key, partitions));
        }

        /// A second, independent reading of the Java source, byte by byte.
        #[test]
        fn the_hash_agrees_with_a_literal_translation(key in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(murmur2(&key) as i32, literal_murmur2(&key));
        }
    }

    fn literal_murmur2(data: &[u8]) -> i32 {
        let length = data.len() as i32;
        let m = 0x5bd1e995u32 as i32;
        let mut h = (0x9747b28cu32 as i32) ^ length;
        for i in 0..(length / 4) as usize {
            let at = |n: usize| i32::from(data[4 * i + n]) & 0xff;
            let mut k = at(0) + (at(1) << 8) + (at(2) << 16) + (at(3) << 24);
            k = k.wrapping_mul(m);
            k ^= ((k as u32) >> 24) as i32;
            k = k.wrapping_mul(m);
            h = h.wrapping_mul(m);
            h ^= k;
        }
        let tail = (length & !3) as usize;
        match length % 4 {
            3 => {
                h ^= (i32::from(data[tail + 2]) & 0xff) << 16;
                h ^= (i32::from(data[tail + 1]) & 0xff) << 8;
                h ^= i32::from(data[tail]) & 0xff;
                h = h.wrapping_mul(m);
            }
            2 => {
                h ^= (i32::from(data[tail + 1]) & 0xff) << 8;
                h ^= i32::from(data[tail]) & 0xff;
                h = h.wrapping_mul(m);
            }
            1 => {
                h ^= i32::from(data[tail]) & 0xff;
                h = h.wrapping_mul(m);
            }
            _ => {}
        }
        h ^= ((h as u32) >> 13) as i32;
        h = h.wrapping_mul(m);
        h ^ ((h as u32) >> 15) as i32
    }
}
