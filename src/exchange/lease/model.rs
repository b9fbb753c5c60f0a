//! The lease protocol, every way that it can go within small bounds.
//!
//! Some instances, one partition. Whatever is written is under way for as long as
//! it likes, lands in any order or never; any instance may stand still between any
//! two steps, and one that is dead stands still for good; whoever watches may run out of patience at any
//! moment, since the other may have stood still for that long; one who joins may
//! see the end of the log only. What a reader makes of the log is the product's
//! own [`Ledger`]. What must hold is said by a second reading of the log that
//! knows all of it, and by the calls:
//!
//! - who believes to hold the partition holds it, as of the record it has read;
//!   so of those who have read all, one at most;
//! - nobody is deposed who was heard of after its rival had last looked, nor
//!   leaves without having been;
//! - the reply to a call that waits is read by the instance that waits, and is
//!   there until then.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use super::{Entry, Ledger, Tenant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Record {
    Lease(Entry),
    Reply { to: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Not there yet, or gone.
    Absent,
    /// Looks, and perhaps waits for its own claim to show up.
    Watching,
    Holding {
        term: i64,
    },
    /// Has lost the lease, and reads on for its call.
    Leaving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    None,
    Waiting,
    Answered,
    GivenUp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Member {
    stage: Stage,
    next: i64,
    ledger: Ledger,
    call: Call,
    joins_left: u8,
    claims_left: u8,
    beats_left: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// All of it, trimmed or not.
    log: Vec<Record>,
    /// What is left begins here.
    start: i64,
    flying: Vec<Record>,
    members: Vec<Member>,
}

/// What is taken out of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A claim counts whatever came since its author looked.
    CompareAndSet,
    /// A heartbeat counts whatever term it is of.
    Terms,
    /// One who has lost the lease stops to read.
    ReadingOn,
    /// A holder drops all that it has read.
    Keeping,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    members: usize,
    log: usize,
    flying: usize,
    claims: u8,
    beats: u8,
    joins: u8,
    /// Whether there are calls, and trimming, which endangers their replies.
    calls: bool,
    states_max: usize,
}

fn tenant(member: usize) -> Tenant {
    Tenant { life: member as u64, shard: 0 }
}

impl World {
    fn new(bounds: Bounds) -> Self {
        let member = Member {
            stage: Stage::Absent,
            next: 0,
            ledger: Ledger::beginning_at(0),
            call: Call::None,
            joins_left: bounds.joins,
            claims_left: bounds.claims,
            beats_left: bounds.beats,
        };
        Self { log: Vec::new(), start: 0, flying: Vec::new(), members: vec![member; bounds.members] }
    }

    fn end(&self) -> i64 {
        self.log.len() as i64
    }

    fn fly(&mut self, record: Record) {
        self.flying.push(record);
        self.flying.sort_unstable();
    }

    /// Who holds the partition by the first `upto` records, by the words of the
    /// protocol and with nothing hidden.
    fn holder_at(&self, upto: i64) -> Option<(Tenant, i64)> {
        let mut holder = None;
        let mut last = -1;
        for (offset, record) in (0..upto).zip(&self.log) {
            let Record::Lease(entry) = record else { continue };
            match *entry {
                Entry::Claim { by, seen } if last <= seen => holder = Some((by, offset)),
                Entry::Release { by, term } if holder == Some((by, term)) => holder = None,
                _ => {}
            }
            last = offset;
        }
        holder
    }
}

/// What happened: what, whose, and where.
type Step = (&'static str, usize, i64);

struct Model {
    bounds: Bounds,
    without: Without,
    seen: HashSet<u64>,
    hasher: RandomState,
    path: Vec<Step>,
    violation: Option<String>,
}

impl Model {
    fn check(bounds: Bounds, without: Without) -> Self {
        let (seen, hasher) = (HashSet::new(), RandomState::new());
        let mut model = Self { bounds, without, seen, hasher, path: Vec::new(), violation: None };
        model.visit(&World::new(bounds));
        model
    }

    fn visit(&mut self, world: &World) {
        if self.violation.is_some() || !self.seen.insert(self.hasher.hash_one(world)) {
            return;
        }
        assert!(self.seen.len() <= self.bounds.states_max, "more states than expected");
        if let Err(what) = judge(world) {
            return self.violated(&what, world);
        }
        for member in 0..world.members.len() {
            self.steps_of(world, member);
        }
        for flying in 0..world.flying.len() {
            self.land(world, flying);
        }
    }

    fn violated(&mut self, what: &str, world: &World) {
        self.violation.get_or_insert(format!("{what}\nafter {:#?}\nin {world:#?}", self.path));
    }

    fn go(&mut self, what: Step, world: &World) {
        self.path.push(what);
        self.visit(world);
        self.path.pop();
    }

    fn steps_of(&mut self, world: &World, i: usize) {
        let member = &world.members[i];
        let step = |change: &dyn Fn(&mut World)| {
            let mut next = world.clone();
            change(&mut next);
            next
        };
        if member.stage == Stage::Absent {
            if member.joins_left > 0 {
                self.join(world, i);
            }
            return;
        }
        if member.next < world.end() {
            self.read(world, i);
        }
        let room = world.flying.len() < self.bounds.flying;
        if member.stage == Stage::Watching && member.claims_left > 0 && room {
            let claimed = step(&|world| {
                let seen = world.members[i].next - 1;
                world.members[i].claims_left -= 1;
                world.fly(Record::Lease(Entry::Claim { by: tenant(i), seen }));
            });
            self.go(("claims", i, member.next), &claimed);
        }
        if let Stage::Holding { term } = member.stage {
            self.hold(world, i, term, room);
        }
        if member.call == Call::Waiting {
            self.go(("gives its call up", i, 0), &step(&|w| w.members[i].call = Call::GivenUp));
        }
        if member.stage == Stage::Leaving && member.call != Call::Waiting {
            self.go(("has left", i, 0), &step(&|w| w.members[i].stage = Stage::Absent));
        }
        if member.stage == Stage::Leaving && self.without == Without::ReadingOn {
            self.go(("looks elsewhere", i, 0), &step(&|w| w.members[i].stage = Stage::Watching));
        }
    }

    fn hold(&mut self, world: &World, i: usize, term: i64, room: bool) {
        let member = &world.members[i];
        let step = |change: &dyn Fn(&mut World)| {
            let mut next = world.clone();
            change(&mut next);
            next
        };
        if room && member.beats_left > 0 {
            let beating = step(&|world| {
                world.members[i].beats_left -= 1;
                world.fly(Record::Lease(Entry::Beat { by: tenant(i), term, written_ms: 0 }));
            });
            self.go(("beats", i, term), &beating);
        }
        if room && member.call != Call::Waiting {
            let released = step(&|world| {
                world.members[i].stage = Stage::Absent;
                world.fly(Record::Lease(Entry::Release { by: tenant(i), term }));
            });
            self.go(("releases", i, term), &released);
        }
        if room && self.bounds.calls && member.call == Call::None {
            let calling = step(&|world| {
                world.members[i].call = Call::Waiting;
                world.fly(Record::Reply { to: i });
            });
            self.go(("calls", i, term), &calling);
        }
        let trimmed = self.trim(world, i);
        if self.bounds.calls && trimmed > world.start {
            self.go(("trims", i, trimmed), &step(&|world| world.start = trimmed));
        }
    }

    /// What was read so long ago that no call waits for it.
    fn trim(&self, world: &World, i: usize) -> i64 {
        let read = world.members[i].next;
        if self.without == Without::Keeping {
            return read;
        }
        let needed = |record: &Record| match record {
            Record::Reply { to } => world.members[*to].call == Call::Waiting,
            Record::Lease(_) => false,
        };
        let first_needed = (0..read).find(|offset| needed(&world.log[*offset as usize]));
        first_needed.unwrap_or(read)
    }

    fn join(&mut self, world: &World, i: usize) {
        for tail in [1, i64::MAX] {
            let mut next = world.clone();
            let from = world.start.max(world.end().saturating_sub(tail));
            let member = &mut next.members[i];
            member.joins_left -= 1;
            member.stage = Stage::Watching;
            member.call = Call::None;
            member.next = from;
            member.ledger = Ledger::beginning_at(from);
            self.go(("joins", i, from), &next);
        }
    }

    fn read(&mut self, world: &World, i: usize) {
        let mut next = world.clone();
        let member = &mut next.members[i];
        if member.next < world.start {
            // Out of range: what is gone may have held a rival's claim.
            member.next = world.start;
            member.ledger = Ledger::beginning_at(world.start);
            member.stage = match member.stage {
                Stage::Holding { .. } | Stage::Leaving => Stage::Leaving,
                other => other,
            };
            return self.go(("finds its place again", i, world.start), &next);
        }
        let offset = member.next;
        member.next += 1;
        match world.log[offset as usize] {
            Record::Reply { to } => {
                if to == i && member.call == Call::Waiting {
                    member.call = Call::Answered;
                }
            }
            Record::Lease(entry) => {
                member.ledger.apply(offset, &self.weakened(offset, entry));
                let mine = member.ledger.proven().filter(|(holder, _)| *holder == tenant(i));
                member.stage = match (member.stage, mine) {
                    (Stage::Holding { term }, _) if !member.ledger.is_held_by(tenant(i), term) => {
                        Stage::Leaving
                    }
                    (Stage::Watching, Some((_, term))) => Stage::Holding { term },
                    (stage, _) => stage,
                };
            }
        }
        if let (Stage::Holding { term }, Stage::Leaving) = (world.members[i].stage, next.members[i].stage)
            && world.holder_at(offset + 1) == Some((tenant(i), term))
        {
            return self.violated(&format!("{i} leaves though it holds the partition"), &next);
        }
        self.go(("reads", i, offset), &next);
    }

    /// The record as one would take it without a part of the protocol.
    fn weakened(&self, offset: i64, entry: Entry) -> Entry {
        match entry {
            Entry::Claim { by, .. } if self.without == Without::CompareAndSet => {
                Entry::Claim { by, seen: offset - 1 }
            }
            Entry::Beat { by, written_ms, .. } if self.without == Without::Terms => {
                Entry::Beat { by, term: offset - 1, written_ms }
            }
            entry => entry,
        }
    }

    fn land(&mut self, world: &World, flying: usize) {
        if world.log.len() >= self.bounds.log {
            return;
        }
        let mut next = world.clone();
        let record = next.flying.remove(flying);
        let offset = world.end();
        next.log.push(record);
        if let Record::Lease(entry) = record
            && let Entry::Claim { by, seen } = entry
            && let Some((holder, term)) = world.holder_at(offset)
        {
            let mut ledger = Ledger::beginning_at(0);
            for (at, record) in (0..).zip(&next.log) {
                if let Record::Lease(entry) = record {
                    ledger.apply(at, &self.weakened(at, *entry));
                }
            }
            let of_holder = |at: &i64| match world.log[*at as usize] {
                Record::Lease(Entry::Beat { by, term: of, .. }) => (by, of) == (holder, term),
                Record::Lease(Entry::Claim { .. }) => *at == term,
                _ => false,
            };
            if ledger.is_held_by(by, offset) && (seen + 1..offset).any(|at| of_holder(&at)) {
                return self.violated("one who was heard of is deposed", &next);
            }
        }
        self.go(("lands, of those under way", flying, offset), &next);
    }
}

/// What must hold at any moment.
fn judge(world: &World) -> Result<(), String> {
    let mut up_to_date = 0;
    for (i, member) in world.members.iter().enumerate() {
        if let Stage::Holding { term } = member.stage {
            if world.holder_at(member.next) != Some((tenant(i), term)) {
                return Err(format!("{i} believes to hold what it does not hold"));
            }
            up_to_date += u8::from(member.next == world.end());
        }
        if member.call != Call::Waiting || member.stage == Stage::Absent {
            continue;
        }
        if !matches!(member.stage, Stage::Holding { .. } | Stage::Leaving) {
            return Err(format!("{i} waits for a reply and does not read"));
        }
        for (offset, record) in (0..).zip(&world.log) {
            if *record == (Record::Reply { to: i }) && (offset < world.start || offset < member.next) {
                return Err(format!("the reply at {offset} is gone, and {i} waits for it"));
            }
        }
    }
    if up_to_date > 1 {
        return Err("two hold the partition, and both have read all".to_owned());
    }
    Ok(())
}

/// Two, with calls: a takeover, and what was under way by then.
const DUEL: Bounds = Bounds {
    members: 2,
    log: 4,
    flying: 2,
    claims: 1,
    beats: 1,
    joins: 1,
    calls: true,
    states_max: 1_000_000,
};

/// Two that claim again and again.
const FEUD: Bounds = Bounds { claims: 2, calls: false, ..DUEL };

/// Three, of whom two want what the third had.
const CROWD: Bounds = Bounds { members: 3, log: 3, calls: false, ..DUEL };

#[test]
fn the_protocol_holds_in_every_way_that_it_can_go() {
    for bounds in [DUEL, FEUD, CROWD] {
        let model = Model::check(bounds, Without::Nothing);
        println!("{} states of {bounds:?}", model.seen.len());
        assert!(model.violation.is_none(), "{}", model.violation.unwrap_or_default());
        assert!(model.seen.len() > 1_000, "{} states are too few to say much", model.seen.len());
    }
}

/// The model notices when a part of the protocol is taken out.
#[test]
fn no_part_of_the_protocol_is_there_for_nothing() {
    let cases = [
        (Without::CompareAndSet, "is deposed"),
        (Without::Terms, "leaves though it holds"),
        (Without::ReadingOn, "does not read"),
        (Without::Keeping, "is gone"),
    ];
    for (without, expected) in cases {
        let found = Model::check(DUEL, without).violation;
        let found = found.unwrap_or_else(|| panic!("without {without:?} nothing is violated"));
        assert!(found.contains(expected), "without {without:?}: {found}");
    }
}
