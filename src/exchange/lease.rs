//! The lease of a reply partition: what its records mean, and who holds it.
//!
//! Claims, heartbeats and releases are records in the partition itself. Whoever
//! reads them in the order of their offsets comes to the same holder, so Kafka's
//! log is all that decides; no clocks are compared. This file is that reading
//! and nothing else; `lessee` acts on it, and `model` checks it.
//!
//! - A claim names the last offset that its author had read. It is valid only
//!   if no lease record of anyone lies between that offset and the claim: a
//!   compare-and-set through the log. The offset of a valid claim is its *term*.
//! - A heartbeat and a release name the term that they belong to. Those of an
//!   older term change nothing: they are fenced off.
//! - One who began to read behind the log's start learns the holder from its
//!   next heartbeat. What can't be judged makes a partition neither held nor
//!   vacant, and costs its reader a wait.

#[cfg(test)]
mod model;

use std::fmt;

/// Who holds a partition: one shard of one life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Tenant {
    pub(super) life: u64,
    pub(super) shard: u8,
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}", self.life, self.shard)
    }
}

/// A lease record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Entry {
    /// Its author wants the partition, and has read up to and with `seen`.
    Claim { by: Tenant, seen: i64 },
    /// The holder lives; `written_ms` is for its author alone.
    Beat { by: Tenant, term: i64, written_ms: u64 },
    /// The holder goes.
    Release { by: Tenant, term: i64 },
}

impl Entry {
    /// The value of its record.
    pub(super) fn encode(&self) -> String {
        match self {
            Self::Claim { by, seen } => format!("claim {by} {seen}"),
            Self::Beat { by, term, written_ms } => format!("beat {by} {term} {written_ms}"),
            Self::Release { by, term } => format!("release {by} {term}"),
        }
    }

    /// Reads the value of a record; `None` for anything else.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        let (kind, by) = (words.next()?, words.next()?);
        let (life, shard) = by.split_once('/')?;
        let by = Tenant { life: u64::from_str_radix(life, 16).ok()?, shard: shard.parse().ok()? };
        let number = words.next()?.parse().ok()?;
        let entry = match kind {
            "claim" => Self::Claim { by, seen: number },
            "beat" => Self::Beat { by, term: number, written_ms: words.next()?.parse().ok()? },
            "release" => Self::Release { by, term: number },
            _ => return None,
        };
        words.next().is_none().then_some(entry)
    }
}

/// What the records read so far come to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ledger {
    /// Where the reading began.
    from: i64,
    /// Whether there was nothing before that, ever.
    whole: bool,
    /// The last lease record, whatever it was worth.
    last: Option<i64>,
    /// The highest term that was held, -1 for none.
    term: i64,
    holder: Option<Tenant>,
    /// Whether the holder's claim has been read and was valid; else it is known
    /// by its heartbeats alone, which may be from before a claim that was missed.
    proven: bool,
}

impl Ledger {
    /// Nothing read yet, and the next record is that at `from`.
    pub(super) const fn beginning_at(from: i64) -> Self {
        Self { from, whole: from == 0, last: None, term: -1, holder: None, proven: false }
    }

    /// Takes in the lease record at `offset`, which is behind all before.
    pub(super) fn apply(&mut self, offset: i64, entry: &Entry) {
        match *entry {
            Entry::Claim { by, seen } => {
                let contested = self.last.is_some_and(|last| last > seen);
                let judged = seen + 1 >= self.from;
                if judged && !contested {
                    self.holder = Some(by);
                    self.term = offset;
                    self.proven = true;
                }
            }
            Entry::Beat { by, term, .. } => {
                if term > self.term && term < offset {
                    self.holder = Some(by);
                    self.term = term;
                    self.proven = false;
                }
            }
            Entry::Release { by, term } => {
                if self.is_held_by(by, term) {
                    self.holder = None;
                }
            }
        }
        self.last = Some(offset);
    }

    /// Who holds the partition, and since which offset; as far as is known.
    pub(super) fn holder(&self) -> Option<(Tenant, i64)> {
        self.holder.map(|by| (by, self.term))
    }

    /// The same, where it is certain: only then may the holder act on it.
    pub(super) fn proven(&self) -> Option<(Tenant, i64)> {
        self.holder().filter(|_| self.proven)
    }

    /// Whether this term still holds.
    pub(super) fn is_held_by(&self, by: Tenant, term: i64) -> bool {
        self.holder() == Some((by, term))
    }

    /// Whether nobody holds it, for certain: it may be claimed at once.
    pub(super) const fn is_vacant(&self) -> bool {
        let released = self.term >= 0;
        let untouched = self.whole && self.last.is_none();
        self.holder.is_none() && (released || untouched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Tenant = Tenant { life: 10, shard: 0 };
    const B: Tenant = Tenant { life: 11, shard: 0 };

    fn read(from: i64, entries: &[(i64, Entry)]) -> Ledger {
        let mut ledger = Ledger::beginning_at(from);
        for (offset, entry) in entries {
            ledger.apply(*offset, entry);
        }
        ledger
    }

    const fn claim(by: Tenant, seen: i64) -> Entry {
        Entry::Claim { by, seen }
    }

    const fn beat(by: Tenant, term: i64) -> Entry {
        Entry::Beat { by, term, written_ms: 1 }
    }

    #[test]
    fn the_first_claim_after_what_was_seen_wins() {
        assert!(read(0, &[]).is_vacant());
        assert_eq!(read(0, &[(0, claim(A, -1)), (1, claim(B, -1))]).holder(), Some((A, 0)));
        let taken_over = [(0, claim(A, -1)), (3, beat(A, 0)), (9, claim(B, 8))];
        assert_eq!(read(0, &taken_over).holder(), Some((B, 9)));
        let alive = [(0, claim(A, -1)), (3, beat(A, 0)), (5, beat(A, 0)), (9, claim(B, 4))];
        assert_eq!(read(0, &alive).holder(), Some((A, 0)));
    }

    #[test]
    fn an_older_term_is_fenced_off() {
        let log =
            [(0, claim(A, -1)), (4, claim(B, 3)), (5, beat(A, 0)), (6, Entry::Release { by: A, term: 0 })];
        assert_eq!(read(0, &log).holder(), Some((B, 4)));
        // One who came later believes the highest term.
        assert_eq!(read(5, &log[2..]).holder(), None);
        assert_eq!(read(5, &[log[2], (7, beat(B, 4)), (8, beat(A, 0))]).holder(), Some((B, 4)));
    }

    /// The model found it: one who was deposed, and has forgotten, must not take
    /// its own late heartbeat for a lease.
    #[test]
    fn hearsay_is_no_lease() {
        let ledger = read(2, &[(3, beat(A, 0))]);
        assert_eq!((ledger.holder(), ledger.proven()), (Some((A, 0)), None));
        let ledger = read(2, &[(3, beat(A, 0)), (7, claim(A, 6))]);
        assert_eq!(ledger.proven(), Some((A, 7)));
    }

    #[test]
    fn a_release_leaves_it_vacant_and_doubt_does_not() {
        let released = [(0, claim(A, -1)), (1, beat(A, 0)), (2, Entry::Release { by: A, term: 0 })];
        assert!(read(0, &released).is_vacant());
        // A heartbeat that was under way then changes nothing.
        let mut ledger = read(0, &released);
        ledger.apply(3, &beat(A, 0));
        assert!(ledger.is_vacant());
        assert!(!read(2, &released[2..]).is_vacant(), "whose release it is can't be known");
        assert!(!read(5, &[]).is_vacant(), "what was before 5 can't be known");
        assert!(!read(5, &[(6, claim(A, 2))]).is_vacant());
        assert_eq!(read(5, &[(6, claim(A, 2))]).holder(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(life: u64, shard: u8, number: i64, written_ms: u64) {
            let by = Tenant { life, shard };
            let entries = [
                Entry::Claim { by, seen: number },
                Entry::Beat { by, term: number, written_ms },
                Entry::Release { by, term: number },
            ];
            for entry in entries {
                prop_assert_eq!(Entry::parse(entry.encode().as_bytes()), Some(entry));
            }
        }

        #[test]
        fn garbage_is_no_entry(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(entry) = Entry::parse(&value) {
                prop_assert!(Entry::parse(entry.encode().as_bytes()) == Some(entry));
            }
        }
    }
}
