#!/usr/bin/env bash
# Does the simulation notice? Breaks the code in one way after the other, and
# expects the simulation to fail each time.
#
#   tests/simulation/mutants.sh            all of them
#   tests/simulation/mutants.sh resend     those whose name contains "resend"
#
# All mutations go into one copy of the tree, which is built once; the variable
# MUTANT says which of them is on. A mutation replaces text that must be in its
# file exactly once; when the code has moved on, the script says so instead of
# testing nothing. In what it puts there, @ stands for "this one is on".
#
# A mutant runs until five seeds have failed, or until SIM_SEEDS (1000) are
# through; SIM_FAILURES_MAX sets another number.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
# Within the target folder, at one place, so that builds are reused.
tree=$repository/target/mutants
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target}
export SIM_SEEDS=${SIM_SEEDS:-1000} SIM_FAILURES_MAX=${SIM_FAILURES_MAX:-5}
unset MUTANT
wanted=${1:-}
names=()
stale=0

rm -rf "$tree" && mkdir -p "$tree"
git -C "$repository" ls-files -z --cached --others --exclude-standard |
    tar -C "$repository" --null --ignore-failed-read -T - -cf - 2>/dev/null | tar -C "$tree" -xf -
trap 'rm -rf "$tree"' EXIT

# mutant NAME FILE FROM TO
mutant() {
    local name=$1 file=$tree/$2
    if ! FROM=$3 TO=${4//@/crate::mutated(\"$name\")} perl -0pi -e '
        my $times = () = /\Q$ENV{FROM}\E/g;
        $times == 1 or do { print STDERR "found $times times\n"; $? = 1; exit 1 };
        s/\Q$ENV{FROM}\E/$ENV{TO}/' "$file"; then
        echo "STALE   $name: its text is not in $2 exactly once" >&2
        stale=2
        return
    fi
    names+=("$name")
}

# Whether calls end, and what their callers are told.
mutant ticket-not-cleaned-up src/pending.rs \
    'impl Drop for Ticket {
    fn drop(&mut self) {' \
    'impl Drop for Ticket {
    fn drop(&mut self) {
        if @ && self.ended != Ended::Answered { return; }'
mutant no-deadline src/exchange/flight.rs \
    'timeout_at(limit, self.ticket.wait())' \
    'timeout_at(limit + std::time::Duration::from_millis(if @ { 50 } else { 0 }), self.ticket.wait())'
mutant bytes-not-given-back src/exchange/budget.rs \
    'self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);' \
    'if !@ { self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed); }'
mutant sending-counts-as-not-sent src/exchange/failure.rs \
    'Progress::Queued | Progress::NotSent(_) => Self::NotSent,' \
    'Progress::Sending if @ => Self::NotSent,
            Progress::Queued | Progress::NotSent(_) => Self::NotSent,'
mutant refused-counts-as-unknown src/pending.rs \
    '*progress = Progress::NotSent("it never will be".into());' \
    '*progress = if @ { Progress::Sending } else { Progress::NotSent("it never will be".into()) };'
mutant wrong-offsets src/exchange/lane.rs \
    'i64::try_from(records).unwrap_or_default());' \
    'i64::try_from(if @ { records / 2 } else { records }).unwrap_or_default());'

# Whether requests are sent as often as they may be, and in order.
mutant resend-what-may-be-in-the-log src/exchange/lane.rs \
    'batch.retain(|parcel| parcel.repeatable);' 'batch.retain(|parcel| parcel.repeatable || @);'
mutant forget-that-it-may-be-in-the-log src/exchange/lane.rs \
    'parcel.maybe_sent = true;' 'parcel.maybe_sent = !@;'
mutant send-after-the-end src/exchange/lane.rs \
    'batch.retain(|parcel| self.begin_send(parcel, now));' \
    'batch.retain(|parcel| self.begin_send(parcel, now) || @);'
mutant halves-in-wrong-order src/exchange/lane.rs \
    'behind.push(batch.split_off(batch.len() / 2));' \
    'let back = batch.split_off(batch.len() / 2);
            behind.push(if @ { std::mem::replace(batch, back) } else { back });'
mutant last-in-first-out src/exchange/lane.rs \
    'batch.extend(waiting.pop_front());' \
    'batch.extend(if @ { waiting.pop_back() } else { waiting.pop_front() });'
mutant keep-a-broken-writer src/exchange/lane.rs \
    'self.not_sent(&batch, &cause);
                    *writer = None;' \
    'self.not_sent(&batch, &cause);
                    if !@ { *writer = None; }'
mutant halve-when-connecting-is-refused src/exchange/lane.rs \
    'ProduceError::Refused(cause) if writer.is_none() =>' \
    'ProduceError::Refused(cause) if writer.is_none() && !@ =>'
mutant one-refused-fails-all src/exchange/lane.rs \
    'if batch.len() > 1 {' 'if batch.len() > if @ { 1_000_000 } else { 1 } {'

# Whether replies reach their calls, and no other.
mutant resolve-by-slot-alone src/pending.rs 'if slot.id != id {' 'if slot.id != id && !@ {'
mutant requests-count-as-replies src/message/dialect/mod.rs \
    'Some((family, _)) if asks[family as usize] =>' 'Some((family, _)) if asks[family as usize] && !@ =>'
mutant reader-goes-on-at-the-end src/exchange/replies.rs 'Some(offset) => Ok(offset),' \
    'Some(_) if @ => reader.end_offset().await,
            Some(offset) => Ok(offset),'
mutant made-anew-and-read-from-the-end src/exchange/replies.rs \
    'next_offset = Some(0);' 'next_offset = if @ { None } else { Some(0) };'
mutant stuck-at-an-undecodable-record src/exchange/replies.rs \
    'self.step_over(offset, &why);
                    offset += 1;' \
    'self.step_over(offset, &why);
                    offset += i64::from(!@);'
mutant other-shards-replies-are-dropped src/exchange/replies.rs \
    'self.reading.instance.shards().get(usize::from(id.shard()))' \
    'self.reading.instance.shards().get(usize::from(id.shard()))
            .filter(|_| !@ || i32::from(id.shard()) == self.place.partition())'
mutant hasty-trim src/exchange/heartbeat.rs \
    'Trim::Read | Trim::Never => heart.place.dispensable(),' \
    'Trim::Read | Trim::Never => heart.place.dispensable()
                .map(|up_to| if @ { heart.place.next_offset() + 1 } else { up_to }),'

# Dead letters, and late replies beside them.
mutant no-dead-letter src/exchange/flight.rs \
    'self.dead_letter(DeadLetterOn::Timeout, &why, &trace);' \
    'if !@ { self.dead_letter(DeadLetterOn::Timeout, &why, &trace); }'
mutant dead-letter-of-an-answered-call src/exchange/flight.rs \
    'Ok(reply) => Ok(Answer { reply, trace }),' \
    'Ok(reply) => {
                if @ { self.dead_letter(DeadLetterOn::Timeout, &Why::TimedOut, &trace); }
                Ok(Answer { reply, trace })
            }'
mutant dead-letter-of-what-was-not-sent src/exchange/flight.rs \
    'if trace.outcome == Outcome::NotSent {' 'if trace.outcome == Outcome::NotSent && !@ {'
mutant dead-letter-that-nobody-asked-for src/exchange/flight.rs \
    'if !self.route.dead_letter_on.contains(&class) {' \
    'if !self.route.dead_letter_on.contains(&class) && !@ {'
mutant two-dead-letters src/exchange/flight.rs \
    'if let Some((request, held)) = self.request.take() {' \
    'if let Some((request, held)) = if @ { self.request.clone() } else { self.request.take() } {'
mutant dead-letter-elsewhere src/exchange/aftermath.rs \
    'Some(partitions) if partitions > 0 => partition % partitions,' \
    'Some(partitions) if partitions > 0 => (partition + i32::from(@)) % partitions,'
mutant dead-letter-sent-but-once src/exchange/aftermath.rs 'repeatable: true,' 'repeatable: !@,'
mutant loss-not-counted src/exchange/lane.rs \
    'self.metrics.aftermath_lost.inc();' 'if !@ { self.metrics.aftermath_lost.inc(); }'
mutant late-reply-forgotten src/exchange/replies.rs \
    'self.reading.scribe.late_reply(id, self.place.partition(), record);' \
    'if !@ { self.reading.scribe.late_reply(id, self.place.partition(), record); }'
mutant late-reply-twice src/exchange/aftermath.rs \
    'inner.0.remove(&id)' 'if @ { inner.0.get(&id).cloned() } else { inner.0.remove(&id) }'

# Cancel records.
mutant no-cancel-record src/exchange/aftermath.rs \
    'self.write(&route.request_topic, partition, "cancel record", id, record, None);' \
    'if !@ { self.write(&route.request_topic, partition, "cancel record", id, record, None); }'
mutant cancel-record-that-nobody-asked-for src/exchange/flight.rs \
    'if self.route.cancel_record && sent {' 'if (self.route.cancel_record || @) && sent {'
mutant cancel-record-of-what-was-not-sent src/exchange/flight.rs \
    'let sent = !matches!' 'let sent = @ || !matches!'
mutant cancel-record-of-a-call-that-has-ended src/exchange/flight.rs \
    'if self.landed {' 'if self.landed && !@ {'
mutant cancel-record-elsewhere src/exchange/flight.rs \
    'self.exchange.scribe().cancel(&self.route, self.id(), self.partition, self.key.take());' \
    'let place = if @ { 0 } else { self.partition };
            self.exchange.scribe().cancel(&self.route, self.id(), place, self.key.take());'
mutant cancel-record-with-a-value src/exchange/aftermath.rs \
    'let record = Record { key, value: None, headers };' \
    'let record = Record { key, value: @.then(Bytes::new), headers };'

# Idempotency keys.
mutant other-message-joins src/exchange/idempotency.rs \
    'return if entry.fingerprint == fingerprint {' 'return if entry.fingerprint == fingerprint || @ {'
mutant known-keys-are-not-found src/exchange/idempotency.rs \
    'if let Some(entry) = inner.entries.get(&key) {' \
    'if let Some(entry) = inner.entries.get(&key).filter(|_| !@) {'
mutant answers-are-not-kept src/exchange/idempotency.rs 'Ok(_) => true,' 'Ok(_) => !@,'
mutant not-sent-is-kept src/exchange/idempotency.rs \
    'Err(failure) => failure.trace.outcome != Outcome::NotSent,' \
    'Err(failure) => failure.trace.outcome != Outcome::NotSent || @,'
mutant late-answer-is-not-waited-for src/exchange/idempotency.rs \
    'flight.arrive_by(entry.expires).await.unwrap_or(Err(failure))' \
    'if @ { Err(failure) } else { flight.arrive_by(entry.expires).await.unwrap_or(Err(failure)) }'
mutant keys-outlive-their-window src/exchange/idempotency.rs \
    'self.order.first_key_value()' 'self.order.first_key_value().filter(|_| !@)'

# Circuits.
mutant circuit-never-closes src/exchange/circuit.rs \
    '*circuit = Circuit::default();' 'if !@ { *circuit = Circuit::default(); }'
mutant circuit-opens-late src/exchange/circuit.rs \
    'circuit.timeouts_in_a_row >= self.config.timeouts_max' \
    'circuit.timeouts_in_a_row >= self.config.timeouts_max + u32::from(@)'
mutant several-try-an-open-circuit src/exchange/circuit.rs \
    'circuit.probe = Some(self.probes.fetch_add(1, Ordering::Relaxed));' \
    'circuit.probe = (!@).then(|| self.probes.fetch_add(1, Ordering::Relaxed));'
mutant one-try-and-no-other src/exchange/circuit.rs 'circuit.probe = None;' 'if !@ { circuit.probe = None; }'

((stale == 0)) || exit "$stale"

cat >>"$tree/src/lib.rs" <<'RUST'

/// Whether this mutation is on.
pub fn mutated(name: &str) -> bool {
    static ON: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var("MUTANT").unwrap_or_default());
    *ON == name
}
RUST

echo "building, ${#names[@]} mutations in one"
built=$(cd "$tree" && cargo test --quiet --test simulation --no-run --message-format=json-render-diagnostics)
program=$(grep -o '"executable":"[^"]*/simulation-[^"]*"' <<<"$built" | tail -1 | cut -d'"' -f4)
[ -x "$program" ] || { echo "the simulation was not built" >&2; exit 2; }
simulate() { (cd "$tree" && timeout 600 "$program" invariants 2>&1); }

echo "without mutation, $SIM_SEEDS seeds"
if ! output=$(simulate); then
    tail -20 <<<"$output" >&2
    echo "the simulation fails as it is" >&2
    exit 2
fi
caught=0 missed=()
for name in "${names[@]}"; do
    [[ $name == *"$wanted"* ]] || continue
    if output=$(MUTANT=$name simulate); then
        echo "MISSED  $name"
        missed+=("$name")
    elif grep -q "seeds fail" <<<"$output"; then
        echo "caught  $name: $(grep -m1 -o '[0-9]* of [0-9]* seeds fail' <<<"$output"); $(
            grep -m1 -A1 'violations$' <<<"$output" | tail -1 | sed 's/^ *//' | cut -c1-110)"
        caught=$((caught + 1))
    else
        echo "BROKEN  $name: it hangs, or panics" >&2
        tail -20 <<<"$output" >&2
        exit 2
    fi
done
if ((${#missed[@]})); then
    echo "${#missed[@]} not noticed: ${missed[*]}" >&2
    exit 1
fi
((caught)) || { echo "no mutation is named like $wanted" >&2; exit 2; }
echo "all $caught noticed"
