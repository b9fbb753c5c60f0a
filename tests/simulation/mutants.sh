#!/usr/bin/env bash
# Does the simulation notice? Breaks the code in one way after the other, in a
# copy of the tree, and expects the simulation to fail each time.
#
#   tests/simulation/mutants.sh            all of them
#   tests/simulation/mutants.sh resend     those whose name contains "resend"
#
# A mutation replaces text that must be in its file exactly once; when the code
# has moved on, the script says so instead of testing nothing.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
# Within the target folder, at one place, so that builds are reused.
tree=$repository/target/mutants
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target}
export SIM_SEEDS=${SIM_SEEDS:-1000}
wanted=${1:-}
caught=0 missed=()

rm -rf "$tree" && mkdir -p "$tree"
git -C "$repository" ls-files -z --cached --others --exclude-standard |
    tar -C "$repository" --null --ignore-failed-read -T - -cf - 2>/dev/null | tar -C "$tree" -xf -
trap 'rm -rf "$tree"' EXIT

simulate() { (cd "$tree" && timeout 600 cargo test --quiet --test simulation invariants 2>&1); }

# mutant NAME FILE FROM TO
mutant() {
    local name=$1 file=$tree/$2 from=$3 to=$4
    [[ $name == *"$wanted"* ]] || return 0
    cp "$file" "$file.whole"
    if ! FROM=$from TO=$to perl -0pi -e '
        my $times = () = /\Q$ENV{FROM}\E/g;
        $times == 1 or do { print STDERR "found $times times\n"; $? = 1; exit 1 };
        s/\Q$ENV{FROM}\E/$ENV{TO}/' "$file"; then
        echo "STALE   $name: its text is not in $2 exactly once" >&2
        exit 2
    fi
    local output
    if output=$(simulate); then
        echo "MISSED  $name"
        missed+=("$name")
    elif grep -q "seeds fail" <<<"$output"; then
        echo "caught  $name: $(grep -m1 -o '[0-9]* of [0-9]* seeds fail' <<<"$output"); $(
            grep -m1 -A1 'violations$' <<<"$output" | tail -1 | sed 's/^ *//' | cut -c1-110)"
        caught=$((caught + 1))
    else
        echo "BROKEN  $name: it does not compile, or hangs" >&2
        tail -20 <<<"$output" >&2
        exit 2
    fi
    # Newer than what was built from the mutated file.
    mv "$file.whole" "$file" && touch "$file"
}

echo "without mutation, $SIM_SEEDS seeds"
simulate >/dev/null || { echo "the simulation fails as it is" >&2; exit 2; }

mutant ticket-not-cleaned-up src/pending.rs \
    'impl Drop for Ticket {
    fn drop(&mut self) {' \
    'impl Drop for Ticket {
    fn drop(&mut self) {
        if self.ended != Ended::Answered { return; }'
mutant resend-what-may-be-in-the-log src/exchange/lane.rs \
    'batch.retain(|parcel| parcel.repeatable);' ''
mutant forget-that-it-may-be-in-the-log src/exchange/lane.rs \
    'parcel.maybe_sent = true;' 'parcel.maybe_sent = false;'
mutant send-after-the-end src/exchange/lane.rs \
    'batch.retain(|parcel| self.begin_send(parcel));' \
    'for parcel in batch.iter() { self.begin_send(parcel); }'
mutant sending-counts-as-not-sent src/exchange/failure.rs \
    'Progress::Queued | Progress::NotSent(_) => Self::NotSent,' \
    'Progress::Queued | Progress::NotSent(_) | Progress::Sending => Self::NotSent,'
mutant refused-counts-as-unknown src/pending.rs \
    '*progress = Progress::NotSent("it never will be".into());' '*progress = Progress::Sending;'
mutant wrong-offsets src/exchange/lane.rs 'base_offset.map(|base| base + n)' 'base_offset.map(|base| base + n / 2)'
mutant halves-in-wrong-order src/exchange/lane.rs \
    'behind.push(batch.split_off(batch.len() / 2));' \
    'let back = batch.split_off(batch.len() / 2); behind.push(std::mem::replace(batch, back));'
mutant last-in-first-out src/exchange/lane.rs \
    'batch.extend(waiting.pop_front());' 'batch.extend(waiting.pop_back());'
mutant keep-a-broken-writer src/exchange/lane.rs \
    'self.not_sent(&batch, &cause);
                    *writer = None;' \
    'self.not_sent(&batch, &cause);'
mutant halve-when-connecting-is-refused src/exchange/lane.rs \
    'ProduceError::Refused(cause) if writer.is_none() =>' 'ProduceError::Refused(cause) if false =>'
mutant one-refused-fails-all src/exchange/lane.rs 'if batch.len() > 1 {' 'if batch.len() > 1_000_000 {'
mutant resolve-by-slot-alone src/pending.rs 'if slot.id != id {' 'if false {'
mutant requests-count-as-replies src/message/dialect/spring.rs \
    'if record.header(REPLY_TOPIC).is_some() {' 'if false {'
mutant reader-goes-on-at-the-end src/exchange/replies.rs 'Some(offset) => Ok(offset),' \
    'Some(_) => reader.end_offset().await,'
mutant made-anew-and-read-from-the-end src/exchange/replies.rs 'next_offset = Some(0);' 'next_offset = None;'
mutant stuck-at-an-undecodable-record src/exchange/replies.rs \
    'self.step_over(offset, &why);
                    offset += 1;' \
    'self.step_over(offset, &why);'
mutant other-shards-replies-are-dropped src/exchange/replies.rs \
    'self.instance.shards().get(usize::from(id.shard()))' \
    'self.instance.shards().get(usize::from(id.shard())).filter(|_| usize::from(id.shard()) == self.shard)'
mutant bytes-not-given-back src/exchange/budget.rs \
    'self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);' ''
mutant hasty-trim src/exchange/heartbeat.rs \
    'let read_to = heart.instance.next_offset(heart.shard);' \
    'let read_to = heart.instance.next_offset(heart.shard) + 2;'
mutant no-deadline src/exchange/flight.rs \
    'timeout_at(limit, self.ticket.wait())' \
    'timeout_at(limit + std::time::Duration::from_millis(50), self.ticket.wait())'

if ((${#missed[@]})); then
    echo "${#missed[@]} not noticed: ${missed[*]}" >&2
    exit 1
fi
echo "all $caught noticed"
