"""Towards Kafka: every way to prove who we are, right and wrong."""

import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from broker import SESSION_SECONDS
from common import ECHO, Gateway, Table, bench_worker, echo, write
from harness import Failure, check, wait_until
from transactional import TransactionalWorker

START_TIMEOUT = 8
EXIT_SECONDS_MAX = START_TIMEOUT + 12
UNAVAILABLE, CONFIG = 69, 78
ECHO_ONLY = ["echo/v1/echo.proto"]
RIGHT_SECONDS_MAX = 60


class Way:
    """One way to Kafka: a listener and what is said there."""

    def __init__(self, bench, name, listener="SASL", mechanism=None, user="gateway", password=None, ca=None,
                 certificate=None, tls=True):  # fmt: skip
        self.bench, self.name = bench, name
        self.slug = "".join(c if c.isalnum() else "-" for c in name)
        broker, folder = bench.broker, bench.folder
        lines = [f'[kafka]\nbootstrap_servers = ["{broker.address(listener)}"]\nconnect_timeout = "3s"\n']
        if tls:
            lines += [f'[kafka.tls]\nca_file = "{ca or broker.ca_file}"']
            if certificate:
                pem, key = certificate
                lines += [f'cert_file = "{write(folder / f"{self.slug}.crt", pem)}"']
                lines += [f'key_file = "{write(folder / f"{self.slug}.key", key)}"']
        self.password_file = folder / f"{self.slug}.password"
        if mechanism:
            write(self.password_file, (password or broker.passwords.get(user, "")) + "\n")
            lines += ["", "[kafka.sasl]", f'mechanism = "{mechanism}"', f'password_file = "{self.password_file}"']
            lines += [f'username = "{user}"'] if mechanism != "OAUTHBEARER" else []
        self.config = "\n".join(lines) + '\n\n[grpc]\nlisten = "127.0.0.1:0"\n\n[log]\nfilter = "debug,h2=info,hyper=info"\n'
        self.config += '\n[service."echo.v1.EchoService"]\ntimeout = "10s"\n'

    def gateway(self):
        timeout = f"{(START_TIMEOUT / 2 if self.bench.quick else START_TIMEOUT) if self.wrong else RIGHT_SECONDS_MAX:.0f}s"
        it = Gateway(self.bench.folder, self.bench.antiphon, f"kafka-{self.slug}", self.config, timeout, ECHO_ONLY)
        return self.bench.child(it)

    wrong = False

    def check_shows_no_secret(self):
        gateway = self.bench.children[-1]
        ran = subprocess.run([str(self.bench.antiphon), "check", *gateway.arguments], capture_output=True, check=False)
        (self.bench.folder / f"check-{self.slug}.out").write_bytes(ran.stdout + ran.stderr)
        return ran.returncode


# ---- right -------------------------------------------------------------------


def right(way, table):
    gateway = way.gateway().wait_ready(RIGHT_SECONDS_MAX)
    answered = echo(gateway.grpc)
    for page in ("/metrics", "/ready", "/live"):
        (way.bench.folder / f"{way.slug}{page.replace('/', '-')}.page").write_text(gateway.page(page)[1])
    checked = way.check_shows_no_secret()
    there = gateway.reply_topic in way.bench.broker.topics()
    gateway.signal(signal.SIGTERM)
    code = gateway.exit_code(40)
    gone = gateway.reply_topic not in way.bench.broker.topics()
    wrong = [
        words
        for words, bad in [
            (answered, answered != "OK"), (f"exit {code}", code != 0), (f"check ends with {checked}", checked != 0),
            ("no reply topic", not there), ("the reply topic stays", not gone),
        ]
        if bad
    ]  # fmt: skip
    seen = f"READY, call {answered}, exit {code}, reply topic {'removed' if gone else 'left'}"
    table.row(way.name, seen, "", wrong="; ".join(wrong))


def right_ways(bench):
    broker = bench.broker
    yield Way(bench, "PLAIN", mechanism="PLAIN")
    yield Way(bench, "SCRAM-SHA-256", mechanism="SCRAM-SHA-256")
    yield Way(bench, "SCRAM-SHA-512", mechanism="SCRAM-SHA-512")
    yield Way(bench, "OAUTHBEARER", mechanism="OAUTHBEARER", password=broker.issuer.token())
    yield Way(bench, "client certificate", "MTLS", certificate=broker.clients.issue("gateway"))


# ---- wrong -------------------------------------------------------------------


def wrong_ways(bench):
    """Each with words that the message must have."""
    broker, secret = bench.broker, bench.secrets.password
    refused = ["SASL authentication failed"]

    def user(name, mechanism):
        return [*refused, f'user "{name}" with {mechanism}']

    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        yield Way(bench, f"{mechanism}, wrong password", mechanism=mechanism, password=secret()), user("gateway", mechanism)
        yield Way(bench, f"{mechanism}, unknown user", mechanism=mechanism, user="nobody", password=secret()), user("nobody", mechanism)
    yield Way(bench, "OAUTHBEARER, expired", mechanism="OAUTHBEARER", password=broker.issuer.token(-90)), [*refused, "token, which expired"]
    yield Way(bench, "OAUTHBEARER, other audience", mechanism="OAUTHBEARER", password=broker.issuer.token(aud="other")), [*refused, "audience"]
    yield Way(bench, "mechanism not enabled", "FEW", mechanism="PLAIN"), ["mechanism", "not", "enabled"]
    yield Way(bench, "no SASL where it is wanted"), ["does it expect TLS or SASL"]
    yield Way(bench, "another CA", mechanism="PLAIN", ca=broker.other_ca_file), ["certificate", "kafka.tls.ca_file"]
    yield Way(bench, "certificate of another host", "MISNAMED"), ["certificate is for another host name"]
    yield Way(bench, "no TLS where it is wanted", mechanism="PLAIN", tls=False), ["does it expect TLS"]
    yield Way(bench, "TLS where there is none", "ADMIN"), ["does not speak TLS"]
    yield Way(bench, "no client certificate", "MTLS"), ["client certificate"]
    stranger = broker.stranger.issue("gateway")
    yield Way(bench, "a stranger's client certificate", "MTLS", certificate=stranger), ["certificate in kafka.tls.cert_file"]
    denied = ["not authorized", "Create on topic antiphon.reply."]
    yield Way(bench, "user without ACLs", mechanism="SCRAM-SHA-512", user="poor"), denied


def wrong(way, words, table):
    way.wrong = True
    gateway = way.gateway()
    began = time.monotonic()
    try:
        code = gateway.exit_code(EXIT_SECONDS_MAX)
    except Failure:
        return table.row(way.name, "still runs", "", wrong=f"no end within {EXIT_SECONDS_MAX} s")
    lines = [line for line in gateway.logged().splitlines() if line.startswith("antiphon: ")]
    said = lines[-1].removeprefix("antiphon: ") if lines else ""
    missing = [word for word in words if word not in said]
    bad = f"exit {code}" if code not in (UNAVAILABLE, CONFIG) else f"lacks {missing}: {said}" if missing else None
    short = said.split(": ", 2)[-1]
    table.row(way.name, f"exit {code} after {time.monotonic() - began:.1f} s", short.replace("|", "/")[:200], wrong=bad)
    return None


# ---- under way ---------------------------------------------------------------


def write_denied(bench, table):
    """READY, since replies can come; calls name what may not be done."""
    way = Way(bench, "no Write on the request topic", mechanism="SCRAM-SHA-512", user="mute")
    gateway = way.gateway().wait_ready(RIGHT_SECONDS_MAX)
    said = echo(gateway.grpc)
    wanted = "Write on topic echo.v1.EchoService"
    good = said.startswith("FAILED_PRECONDITION") and wanted in said
    table.row(way.name, "READY, call FAILED_PRECONDITION" if good else said, said.split(": ", 1)[-1], wrong=None if good else said)
    gateway.end()


def acl_taken_away(bench, table):
    way = Way(bench, "ACL taken away under way", mechanism="SCRAM-SHA-256")
    gateway = way.gateway().wait_ready(RIGHT_SECONDS_MAX)
    before = echo(gateway.grpc)
    for user in ("User:gateway",):
        bench.broker.forbid(user, "echo.v1.EchoService", "WRITE")
    said = wait_until(lambda: refused(gateway), 30, "calls are refused", pause=0.5)
    bench.broker.allow("User:gateway", "echo.v1.EchoService", "WRITE")
    wait_until(lambda: echo(gateway.grpc) == "OK", 60, "calls are answered with the ACL back", pause=0.5)
    good = before == "OK" and "on topic echo.v1.EchoService" in said
    table.row(way.name, f"call {before}; then refused; given back: OK", said.split(": ", 1)[-1], wrong=None if good else said)
    gateway.end()


def refused(gateway):
    said = echo(gateway.grpc)
    return said if "not authorized" in said else None


def transactional(bench, table):
    """Null headers and transaction markers make rskafka give up, and the raw
    reader has to prove who we are itself."""
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"):
        token = bench.broker.issuer.token() if mechanism == "OAUTHBEARER" else None
        way = Way(bench, f"{mechanism}, null headers", mechanism=mechanism, password=token)
        gateway = way.gateway().wait_ready(RIGHT_SECONDS_MAX)
        answers = [echo(gateway.grpc, f"call {i}".encode()) for i in range(5)]
        raw = "reading batch by batch" in gateway.logged()
        good = answers == ["OK"] * 5 and raw
        seen = f"{answers.count('OK')} of 5 calls OK, {'' if raw else 'not '}read batch by batch"
        table.row(way.name, seen, "", wrong=None if good else str(answers))
        gateway.end()
        if bench.quick:
            break


def sessions_end(bench, table):
    """The broker ends each session with the next request on it. A call that was
    that request has an unknown outcome; the gateway must know it, and go on."""
    way = Way(bench, "sessions that end after 5 s", "FEW", mechanism="SCRAM-SHA-512")
    gateway = way.gateway().wait_ready(RIGHT_SECONDS_MAX)
    until, answers = time.monotonic() + 3.5 * SESSION_SECONDS, []
    while time.monotonic() < until:
        answers.append(echo(gateway.grpc, seconds=2))
        time.sleep(0.1)
    ok, ready = answers.count("OK"), gateway.page("/ready")[0]
    others = {answer for answer in answers if answer != "OK" and not answer.startswith("DEADLINE_EXCEEDED")}
    bad = others or ready != 200 or len(answers) - ok > 8 or echo(gateway.grpc, seconds=5) != "OK"
    table.row(way.name, f"{ok} of {len(answers)} calls OK, the others DEADLINE_EXCEEDED; READY", "", wrong=f"{ok} of {len(answers)}, /ready {ready}, {others}" if bad else None)
    gateway.end()


def rotated(bench, table):
    """First a right rotation, then one that the gateway is not told of."""
    broker = bench.broker
    way = Way(bench, "SCRAM password rotated", mechanism="SCRAM-SHA-512")
    gateway = way.gateway().wait_ready(RIGHT_SECONDS_MAX)
    check(echo(gateway.grpc) == "OK", "a call before the rotation")
    fresh = bench.secrets.password()
    broker.set_scram_password("gateway", fresh)
    write(way.password_file, fresh + "\n")
    broker.restart()
    began = time.monotonic()
    wait_until(lambda: echo(gateway.grpc, seconds=2) == "OK", 90, "calls are answered after the rotation", pause=0.2)
    table.row(way.name, f"answered {time.monotonic() - began:.1f} s after the broker's restart", "gateway not restarted")

    broker.set_scram_password("gateway", bench.secrets.password())
    broker.restart()

    def unready():
        code, text = gateway.page("/ready")
        return text if code == 503 and "SASL authentication failed" in text else None

    text = wait_until(unready, 60, "READY goes away and the page says why", pause=0.3)
    (bench.folder / "rotated-ready.page").write_text(text)
    logged = 'does not accept user "gateway"' in gateway.logged()
    table.row("SCRAM password rotated, file not", "not READY", text.strip(), wrong=None if logged else "the log does not say why")
    broker.set_scram_password("gateway", fresh)
    wait_until(lambda: echo(gateway.grpc, seconds=2) == "OK", 90, "calls are answered with the old password back", pause=0.3)
    table.row("rotation taken back", "answered again", "gateway not restarted")
    broker.set_scram_password("gateway", broker.passwords["gateway"])
    gateway.end()


def run(bench):
    table = Table("Kafka", "the gateway shows", "what happens", "what is said")
    bench.tables.append(table)
    broker = bench.broker
    worker = bench.child(bench_worker(bench.folder, bench.antiphon, broker.address("ADMIN"), "echo.v1.EchoService"))
    time.sleep(1)
    check(worker.alive(), "the worker runs")
    for way in right_ways(bench):
        right(way, table)
    # They wait, most of the time.
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(wrong, way, words, table) for way, words in wrong_ways(bench)]:
            done.result()
    write_denied(bench, table)
    acl_taken_away(bench, table)
    sessions_end(bench, table)
    worker.end()
    with TransactionalWorker(broker.address("ADMIN"), ECHO.split("/")[1]):
        transactional(bench, table)
    if not bench.quick:
        worker = bench_worker(bench.folder, bench.antiphon, broker.address("ADMIN"), "echo.v1.EchoService")
        bench.child(worker)
        rotated(bench, table)
        worker.end()
