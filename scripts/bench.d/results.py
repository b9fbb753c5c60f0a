"""From what was measured to bench/RESULTS.md and its plots."""

import datetime
import platform
import statistics

import svg
from harness import kafka_version, memory_gib, milliseconds, numbers, output, plain, processor, spread, warning
from sessions import CROWD, FIXED_RATE, FULL, LOADS, OVERLOAD_IN_FLIGHT, OVERLOAD_TIMEOUT, ROUTES

OURS = "antiphon"
GATEWAYS = ("antiphon", "spring", "go", "node")
SHORT = {"antiphon": "Antiphon", "spring": "Spring Boot", "go": "Go", "node": "Node", "floor": "floor (no gRPC)", "tonic": "tonic echo (no Kafka)"}
TITLES = {
    "antiphon": "**Antiphon**",
    "spring": "Spring Boot: grpc-java, ReplyingKafkaTemplate",
    "go": "Go: grpc-go, franz-go",
    "node": "Node: grpc-js, @platformatic/kafka",
    "floor": "floor: Kafka without gRPC",
    "tonic": "tonic echo: gRPC without Kafka",
}
COLOURS = {"antiphon": "#2f6f4f", "spring": "#8aa6c1", "go": "#8aa6c1", "node": "#8aa6c1", "floor": "#cccccc", "tonic": "#cccccc"}
# A processor that is this busy, or a process that has this much of one, has no more to give.
BINDS = 0.95
PLOTS = ("cpu-per-call", "calls-per-second", "latency", "memory")


def count(number):
    return f"{number:,.0f}"


def tenth(number):
    return f"{number:.1f}"


def ratio(value, ours):
    return f"{value / ours:.2f}" if value is not None and ours else "-"


def rows(head, lines):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines)])


class Results:
    """`units[subject]` is what each round measured of it."""

    def __init__(self, units):
        self.units = units
        self.gateways = [name for name in GATEWAYS if units.get(name)]

    # ---- numbers ---------------------------------------------------------------

    def runs(self, subject, step):
        return [unit["steps"][step] for unit in self.units.get(subject, []) if step in unit["steps"]]

    def all_runs(self):
        return [run for units in self.units.values() for unit in units for run in unit["steps"].values()]

    def values(self, subject, step, *path):
        return numbers(self.runs(subject, step), *path)

    def median(self, subject, step, *path):
        values = self.values(subject, step, *path)
        return statistics.median(values) if values else None

    def rate(self, subject, step):
        return self.median(subject, step, "calls_per_second")

    def cpu(self, subject, step):
        return self.median(subject, step, "server", "cpu_us_per_call")

    def cell(self, form, subject, step, *path, against=None):
        text = spread(self.values(subject, step, *path), form)
        if against and text != "-" and subject != against:
            text += f", **{ratio(self.median(subject, step, *path), self.median(against, step, *path))}**"
        return text

    def calls(self, subject, step):
        return self.cell(count, subject, step, "calls_per_second", against=OURS)

    def cost(self, subject, step):
        return self.cell(tenth, subject, step, "server", "cpu_us_per_call", against=OURS)

    def time(self, subject, step, which):
        return self.cell(milliseconds, subject, step, "latency_us", which)

    def peak(self, subject, step):
        return [bytes_ / 1048576 for bytes_ in self.values(subject, step, "server", "rss_peak_bytes")]

    def of_units(self, subject, name):
        return numbers(self.units.get(subject, []), name)

    # ---- tables ----------------------------------------------------------------

    def throughput(self):
        steps = [*map(str, LOADS), "crowd"]
        head = ["calls/s", *(f"{load} in flight" for load in (*LOADS, CROWD)), "failed calls"]
        lines = []
        for name in (*self.gateways, "floor"):
            if not self.units.get(name):
                continue
            failed = sum(run["calls"] - run["ok"] for unit in self.units[name] for run in unit["steps"].values())
            lines.append([TITLES[name], *(self.calls(name, step) for step in steps), str(failed)])
        return rows(head, lines)

    def costs(self):
        head = ["CPU µs per call", *(f"{load} in flight" for load in (*LOADS, CROWD)), f"{FIXED_RATE:,} calls/s", "half of its maximum"]
        steps = [*map(str, LOADS), "crowd", "rate", "half"]
        return rows(head, [[TITLES[name], *(self.cost(name, step) for step in steps)] for name in self.gateways])

    def latencies(self):
        head = ["ms", "1 in flight: p50", "p99", f"{FIXED_RATE:,} calls/s: p50", "p99", "half of its maximum: calls/s", "p50", "p99"]
        lines = []
        for name in self.gateways:
            line = [TITLES[name]]
            for step in ("1", "rate", "half"):
                if step == "half":
                    line.append(self.cell(count, name, step, "rate_wanted"))
                line += [self.time(name, step, which) for which in ("p50", "p99")]
            lines.append(line)
        if self.units.get("floor"):
            lines.append([TITLES["floor"], self.time("floor", "1", "p50"), self.time("floor", "1", "p99"), *["-"] * 5])
        return rows(head, lines)

    def footprint(self):
        head = ["", "start to ready, ms", "MiB when ready", f"peak MiB up to {FULL} in flight", f"peak MiB at {CROWD:,}"]
        lines = []
        for name in self.gateways:
            line = [TITLES[name], spread(self.of_units(name, "ready_ms"), count), spread(self.of_units(name, "idle_mib"), tenth)]
            for step in (str(FULL), "crowd"):
                text = spread(self.peak(name, step), count)
                if name != OURS and self.peak(name, step) and self.peak(OURS, step):
                    text += f", **{ratio(statistics.median(self.peak(name, step)), statistics.median(self.peak(OURS, step)))}**"
                line.append(text)
            lines.append(line)
        return rows(head, lines)

    def pinned(self):
        head = ["on one core", "64 in flight: calls/s", "CPU µs per call", f"{FULL}: calls/s", "CPU µs per call", "uses of its core",
                "worker, broker and load use", "strangers use", "what binds", f"calls/s that a full core would be (computed)"]
        lines = []
        for name in (*self.gateways, "floor"):
            step = f"pinned-{FULL}"
            if not self.runs(name, step):
                continue
            cells = [part for load in (64, FULL) for part in (self.calls(name, f"pinned-{load}"), self.cost(name, f"pinned-{load}"))]
            own, others, strangers, rest = (statistics.median(each) for each in zip(*map(used, self.runs(name, step))))
            lines.append([TITLES[name], *cells, f"{own:.2f}", f"{others:.2f}", f"{strangers:.2f}",
                          binding(own, others, strangers, rest), count(1e6 / self.cpu(name, step))])
        return rows(head, lines) if lines else "Not measured: it takes `taskset` and two processors."

    def tonics(self):
        names = {
            "64": ("64 in flight, closed loop", "64"),
            str(FULL): (f"{FULL} in flight, closed loop", str(FULL)),
            "rate": (f"{FIXED_RATE:,} calls/s, open loop", "rate"),
            "half": ("half of Antiphon's maximum, open loop", "half"),
            "waits": ("64 in flight, closed loop, tonic answering after as long as Kafka takes", "64"),
            "same": ("open loop at the rate that Antiphon reached at 64 in flight, against its closed loop", "64"),
        }
        lines = [[text, self.cell(count, "tonic", step, "calls_per_second"), self.cell(tenth, "tonic", step, "server", "cpu_us_per_call"),
                  self.cell(tenth, OURS, ours, "server", "cpu_us_per_call"), ratio(self.cpu(OURS, ours), self.cpu("tonic", step))]
                 for step, (text, ours) in names.items() if self.runs("tonic", step)]
        return rows(["tonic echo", "calls/s", "CPU µs per call", "Antiphon's", "ratio"], lines)

    def bottleneck(self):
        """Whether the worker is what everyone waits for."""
        lines = []
        for name in (*self.gateways, "floor"):
            for step in (str(FULL), "crowd"):
                runs = self.runs(name, step)
                if not runs:
                    continue
                shares = [numbers(runs, "shares", who) for who in ("subject", "worker", "broker", "load")]
                shares = [f"{statistics.median(share):.2f}" if share else "-" for share in shares]
                total = statistics.median(sum(run["processors"].values()) for run in runs)
                lines.append([TITLES[name], f"{CROWD if step == 'crowd' else step}", self.cell(count, name, step, "calls_per_second"), *shares, f"{total:.2f}"])
        return rows(["processors used", "in flight", "calls/s", "subject", "worker", "broker", "load", "all of the machine"], lines)

    def worker_line(self):
        fastest = max((self.rate("floor", step), step) for step in [*map(str, LOADS), "crowd"] if self.rate("floor", step))
        gateway = max((self.rate(name, step), name) for name in self.gateways for step in [*map(str, LOADS), "crowd"])
        share = self.median("floor", fastest[1], "shares", "worker")
        return (f"The worker is not what binds: the floor drove the same worker to {fastest[0]:,.0f} calls/s, at which it "
                f"used {share:.2f} of a processor; the fastest gateway ({SHORT[gateway[1]]}) came to {gateway[0]:,.0f}.")

    def flat(self):
        if not self.units.get("flat"):
            return "Not measured in this run."
        names = {"two-shards": "2 shards", **{f"routes-{n}": f"{n:,} route{'s'[:n > 1]}" for n in ROUTES}}
        replies = self.units["flat"][0]["backlog"]
        names |= {"no-backlog": "no earlier replies on the reply topic", "backlog": f"{replies:,} earlier replies"}
        base = {step: "no-backlog" if "backlog" in step else f"routes-{ROUTES[0]}" for step in names}
        lines = []
        for step, title in names.items():
            against = ratio(self.cpu("flat", step), self.cpu("flat", base[step]))
            lines.append([title, self.cell(tenth, "flat", step, "server", "cpu_us_per_call"), "1" if base[step] == step else against,
                          self.cell(count, "flat", step, "calls_per_second"), spread(self.values("flat", step, "ready_ms"), count)])
        return rows(["64 in flight", "CPU µs per call", "ratio", "calls/s", "start to ready, ms"], lines)

    def overload(self):
        if not self.units.get("overload"):
            return "Not measured in this run."
        columns = []
        for held in OVERLOAD_IN_FLIGHT:
            full, twice = self.runs("overload", f"full-{held}"), self.runs("overload", f"twice-{held}")
            columns.append([
                spread(numbers(full, "calls_per_second"), count),
                spread(numbers(twice, "rate_wanted"), count),
                spread([run["calls"] / run["seconds"] for run in twice], count),
                spread([run["ok"] / run["seconds"] for run in twice], count),
                spread(self.answered(held), lambda n: f"{n:.0%}"),
                spread([outcome(run, "RESOURCE_EXHAUSTED") / run["seconds"] for run in twice], count),
                both(twice, "failures_from_sending_us"),
                both(twice, "latency_from_sending_us"),
                str(sum(run["calls"] - run["ok"] - outcome(run, "RESOURCE_EXHAUSTED") for run in twice)),
                spread(numbers(twice, "shares", "load"), lambda n: f"{n:.2f}"),
                spread(numbers(twice, "shares", "subject"), lambda n: f"{n:.2f}"),
            ])
        titles = ["its maximum, calls/s", "offered", "of these sent", "answered in time", "answered, of its maximum", "refused",
                  "refusals, from sending: p50, p99 ms", "all calls, from sending: p50, p99 ms", "failed otherwise, calls",
                  "processors that the load used", "processors that the gateway used"]
        return rows(["at twice its maximum", *(f"{held} held" for held in OVERLOAD_IN_FLIGHT)], [list(line) for line in zip(titles, *columns)])

    def answered(self, held):
        pairs = zip(self.runs("overload", f"twice-{held}"), self.runs("overload", f"full-{held}"))
        return [twice["ok"] / twice["seconds"] / full["calls_per_second"] for twice, full in pairs]

    def settled(self):
        """How long each had to be driven, and who never got steady."""
        parts = []
        for name in self.gateways:
            found = [unit["settled"] for unit in self.units[name]]
            unsettled = sum(not one["settled"] for one in found)
            text = f"{SHORT[name]} {spread([one['seconds'] for one in found], count)} s"
            parts.append(text + (f" (still getting cheaper in {unsettled} of {len(found)})" if unsettled else ""))
        return ", ".join(parts)

    # ---- targets ---------------------------------------------------------------

    def targets(self):
        lines = []

        def add(text, measured, holds, form=lambda n: f"{n:.2f}"):
            if measured is not None:
                lines.append([text, form(measured), "yes" if holds(measured) else "**no**"])

        def over(above, below):
            return above / below if above is not None and below else None

        for name, least in (("spring", 5), ("node", 5), ("go", 2)):
            add(f"CPU per call at 64 in flight: {SHORT[name]}'s at least {least} times ours", over(self.cpu(name, "64"), self.cpu(OURS, "64")), lambda n, least=least: n >= least)
        for step, text in (("waits", "64 in flight, both in a closed loop, tonic answering after as long as Kafka takes"), ("half", "half of our maximum, both in an open loop"), ("rate", f"{FIXED_RATE:,} calls/s, both in an open loop"), ("same", "our rate at 64 in flight, tonic in an open loop, ours in a closed one")):
            add(f"CPU per call at most 1.6 times tonic's at {text}", over(self.cpu(OURS, "64" if step in ("same", "waits") else step), self.cpu("tonic", step)), lambda n: n <= 1.6)
        add("two shards cost at most 1.05 times one", over(self.cpu("flat", "two-shards"), self.cpu("flat", f"routes-{ROUTES[0]}")), lambda n: n <= 1.05)
        for which, most in (("p50", 1.10), ("p99", 1.25)):
            add(f"{which} at 1 in flight at most {most:.2f} times the floor's", over(self.median(OURS, "1", "latency_us", which), self.median("floor", "1", "latency_us", which)), lambda n, most=most: n <= most)
        for where, step in (("", str(FULL)), (", on one core", f"pinned-{FULL}")):
            add(f"calls/s at {FULL} in flight{where} at least 0.9 of the floor's, where the broker binds", over(self.rate(OURS, step), self.rate("floor", step)), lambda n: n >= 0.9)
        for name, least in (("spring", 3), ("node", 3), ("go", 1.5)):
            step = f"pinned-{FULL}"
            add(f"calls/s at {FULL} in flight on one core, where that binds: at least {least} times {SHORT[name]}'s", over(self.rate(OURS, step), self.rate(name, step)), lambda n, least=least: n >= least)
        peaks = {name: statistics.median(self.peak(name, "crowd")) for name in (OURS, "spring") if self.peak(name, "crowd")}
        add(f"peak memory at {CROWD:,} in flight under a tenth of Spring's", over(peaks.get(OURS), peaks.get("spring")), lambda n: n < 0.1)
        ready = self.of_units(OURS, "ready_ms")
        add("start to READY under 300 ms", statistics.median(ready) if ready else None, lambda n: n < 300, lambda n: f"{n:.0f} ms")
        add(f"CPU per call at {CROWD:,} in flight at most 1.2 times that at 64", over(self.cpu(OURS, "crowd"), self.cpu(OURS, "64")), lambda n: n <= 1.2)
        for routes in ROUTES[1:]:
            add(f"{routes:,} routes cost what {ROUTES[0]} does, within 5 %", over(self.cpu("flat", f"routes-{routes}"), self.cpu("flat", f"routes-{ROUTES[0]}")), lambda n: n <= 1.05)
        add("earlier replies on the topic cost nothing, within 5 %", over(self.cpu("flat", "backlog"), self.cpu("flat", "no-backlog")), lambda n: n <= 1.05)
        for held in OVERLOAD_IN_FLIGHT:
            answered = self.answered(held)
            add(f"at twice the maximum with {held} held, at least 90 % of it is answered in time", statistics.median(answered) if answered else None, lambda n: n >= 0.9, lambda n: f"{n:.0%}")
        return rows(["target", "measured", "holds"], lines)

    # ---- plots -----------------------------------------------------------------

    def bars(self, subjects, values):
        found = [(SHORT[name], values(name), COLOURS[name]) for name in subjects if self.units.get(name)]
        return [(label, statistics.median(several), min(several), max(several), colour) for label, several, colour in found if several]

    def plot(self, folder):
        gateways, note = self.gateways, f"medians of {len(self.units.get(OURS) or next(iter(self.units.values())))} rounds; the line is the range"
        cpu = [(f"{load} in flight", self.bars(gateways, lambda name, step=step: self.values(name, step, "server", "cpu_us_per_call")), lambda n: f"{n:.1f} µs")
               for step, load in (("64", 64), (str(FULL), FULL), ("crowd", CROWD))]
        svg.panels(folder / "cpu-per-call.svg", "CPU time of the gateway's process per call", f"less is better; {note}", cpu)
        calls = [(f"{load} in flight", self.bars((*gateways, "floor"), lambda name, step=step: self.values(name, step, "calls_per_second")), lambda n: f"{n:,.0f}")
                 for step, load in [*((str(load), load) for load in LOADS), ("crowd", CROWD)]]
        if self.runs(OURS, f"pinned-{FULL}"):
            calls.append((f"{FULL} in flight, the gateway on one core", self.bars((*gateways, "floor"), lambda name: self.values(name, f"pinned-{FULL}", "calls_per_second")), count))
        svg.panels(folder / "calls-per-second.svg", "Calls per second", f"more is better; {note}", calls)
        times = [(f"{title}, {which}", self.bars(gateways, lambda name, step=step, which=which: [us / 1000 for us in self.values(name, step, "latency_us", which)]), lambda n: f"{n:.2f} ms")
                 for step, title in (("1", "1 in flight"), ("rate", f"{FIXED_RATE:,} calls/s, open loop")) for which in ("p50", "p99")]
        svg.panels(folder / "latency.svg", "Latency", f"less is better; {note}", times)
        memory = [("start to ready, ms", self.bars(gateways, lambda name: self.of_units(name, "ready_ms")), count),
                  (f"peak resident memory at {CROWD:,} in flight, MiB", self.bars(gateways, lambda name: self.peak(name, "crowd")), count)]
        svg.panels(folder / "memory.svg", "Start and memory", f"less is better; {note}", memory)

    # ---- the page --------------------------------------------------------------

    def page(self, given, subjects, commands, processors):
        loads = [run["load_average"] for run in self.all_runs()]
        rounds = max(len(units) for units in self.units.values())
        versions = "\n".join(f"| {SHORT[name]} | {subjects[name].versions()} |" for name in self.gateways)
        names = {str(given.antiphon): "antiphon", **{text: name for text, name in given.names.items()}}
        shown = "\n".join(dict.fromkeys(plain(command, names) for command in commands.values()))
        return PAGE.format(
            rounds=rounds, warning=warning(loads, processors), targets=self.targets(), throughput=self.throughput(), costs=self.costs(),
            latencies=self.latencies(), footprint=self.footprint(), pinned=self.pinned(), tonics=self.tonics() if self.units.get("tonic") else "Not measured in this run.",
            bottleneck=self.bottleneck(), worker=self.worker_line() if self.units.get("floor") and self.gateways else "",
            flat=self.flat(), overload=self.overload(), given=given, versions=versions, loads=spread(loads, tenth), commands=shown,
            date=datetime.date.today(), processor=processor(), processors=processors, memory=memory_gib(), kafka=kafka_version(),
            java=output("java", "-version"), system=f"{platform.system()} {platform.release()}", full=FULL, crowd=f"{CROWD:,}",
            plots="\n".join(f"![{name}]({name}.svg)" for name in PLOTS), fixed=f"{FIXED_RATE:,}", settled=self.settled(), within=OVERLOAD_TIMEOUT,
        )


def used(run):
    """Processors that the subject, what belongs to the run besides it, and
    strangers used; and how many the second had to themselves. /proc/stat alone
    would take the strangers' work for ours."""
    shares = run["shares"]
    own = shares["subject"]
    others = shares["worker"] + shares["broker"] + (shares["load"] or 0)
    return own, others, max(0, sum(run["processors"].values()) - own - others), len(run["processors"]) - 1


def binding(own, others, strangers, rest):
    found = [text for text, full in (("its core", own >= BINDS), ("the others' core: broker, worker, load", others >= BINDS * rest)) if full]
    if found:
        return " and ".join(found)
    return "undecided: strangers took it" if strangers >= 1 - BINDS else "neither: waiting"


def outcome(run, name):
    return sum(calls for error, calls in run["errors"].items() if name in error.upper().replace(" ", "_"))


def both(runs, which):
    runs = [run for run in runs if which in run]
    return ", ".join(spread(numbers(runs, which, quantile), milliseconds) for quantile in ("p50", "p99"))


PAGE = """# Results

Written by `scripts/bench-peers`; run it again to replace this file. Every number is the median of
{rounds} rounds, with the lowest and the highest; **bold** is the ratio to Antiphon's median. Trust
ratios within a table more than numbers between machines.
{warning}
{plots}

## Targets

<!-- ANCHOR: targets -->

{targets}

<!-- ANCHOR_END: targets -->

## Calls a second

Closed loop; nothing is pinned, so gateway, load, worker and broker share the machine.

<!-- ANCHOR: calls -->

{throughput}

<!-- ANCHOR_END: calls -->

{worker}

{bottleneck}

The shares are of one processor, over the whole run with its warm-up.

## CPU per call

Of the gateway's process alone, from /proc, in ticks of 10 ms.

<!-- ANCHOR: cpu -->

{costs}

<!-- ANCHOR_END: cpu -->

{tonics}

tonic echo is tonic on hyper on one thread, messages left as bytes, nothing behind it. Calls that
come one by one cost it several times what calls that come together do, since each wakes it. So
compare where both have the same load: the open loops, with the same rate and connections, and the
closed loop in which tonic answers after as long as Kafka takes, so that both have 64 calls in flight
and about as many a second. In the other closed loops tonic runs many times faster, its calls coming
together; in the last row they come evenly and the gateway's in batches, which favours the gateway.

## Latency

At a fixed rate calls start when they are due, however slow the server is, and what they waited for
that is in their time (open loop).

<!-- ANCHOR: latency -->

{latencies}

<!-- ANCHOR_END: latency -->

## Memory and start

<!-- ANCHOR: memory -->

{footprint}

<!-- ANCHOR_END: memory -->

Peaks are of one process that went through all loads above, in this order.

## On one core

The gateway has the first processor to itself; load, worker and broker share the others. A gateway
that is cheap enough leaves its core idle and waits for them. What binds is told from the processor
time of these processes; what strangers used is the rest of what the machine was busy with. The
last column is no measurement: it is what the CPU per call here would allow.

{pinned}

## What does not change the cost

{flat}

The 2 shards are compared with 1 route on 1 shard. Replies of the past were on the reply topic
when the gateway started, under a fixed instance name; it reads from the end on.

## Above capacity

Antiphon alone, deadline {within}, `limits.in_flight_max` as the columns say: twice what it answers
with so many in flight is offered, in an open loop. With few held, that limit makes the maximum.
With many the machine is full already, and what offers and refuses calls takes its processors from
broker and worker: this says what load and gateway together do on this machine.

{overload}

## How

{date}, {rounds} rounds of {given.duration} a run after {given.warm_up} of warm-up, payload
{given.payload_bytes} bytes, deadline {given.call_timeout}. Gateways take turns, in another order every round, and
each is first driven at {full} in flight, {given.settle} at a time, until its calls get no cheaper (at most
{given.settle_max}): {settled}. One broker, one
worker process, one reply topic with one partition for each gateway, acks=all. All gateways leave
messages as bytes. Requests have no key; the gateways spread them as their clients do: Antiphon and
Node in turn, Java and Go a batch to a partition.

| | |
|---|---|
| processors | {processors} × {processor} |
| memory | {memory} GiB |
| system | {system} |
| load average during runs | {loads} |
| Apache Kafka | {kafka}, {java} |
{versions}

The load average counts the run itself.

```sh
scripts/bench-peers --rounds {given.rounds} --duration {given.duration} --warm-up {given.warm_up} --settle {given.settle} --settle-max {given.settle_max} --payload-bytes {given.payload_bytes} --call-timeout {given.call_timeout} --backlog {given.backlog}
# which ran, among others:
{commands}
```
"""
