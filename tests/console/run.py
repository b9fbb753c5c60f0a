#!/usr/bin/env python3
"""The console in headless Chromium, on a gateway with a real worker.

    tests/console/run.py --antiphon target/release/antiphon \
        --broker target/release/examples/dev_broker [--screenshots docs/images]

Starts the embedded broker, a gateway and the Python worker of
examples/workers, makes calls that are answered, late and never answered, and
then does what an operator does: sees a call in flight, finds a dead letter,
replays it and sees that it is answered, reads a call's story; with mouse,
with the keyboard alone, on a phone of 360 pixels, in light and dark, without
a word on the browser's console and without a request to elsewhere. Ends with
"N passed, N failed".

Needs Python 3.11, Go (for grpcurl); Chromium is installed where it is missing.
--bootstrap names an Apache Kafka to use in place of the embedded broker.
"""

import argparse
import json
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
E2E = runpy.run_path(str(ROOT / "tests/e2e/run.py"))
Crew = runpy.run_path(str(ROOT / "tests/metrics/run.py"))["Crew"]
sys.path.insert(0, str(Path(__file__).resolve().parent))
from browser import Browser, install  # noqa: E402

PAY, ECHO = "payments.v1.PaymentService/Pay", "echo.v1.EchoService/Echo"
READY = r"antiphon ready grpc=(\S+) admin=(\S+)"
PATIENCE_SECONDS = 30
TOKEN = "a-token-for-the-console"
TOPICS = ["payment_request", "delivery_radius_request", "echo.v1.EchoService"]
GATEWAY = """\
shards = 2
[kafka]
bootstrap_servers = ["{broker}"]
[grpc]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
{token}
[reply]
instance = "{instance}"
replication_factor = 1
[log]
format = "json"
filter = "info"
[proto]
files = ["{root}/proto/echo/v1/echo.proto", "{root}/proto/payments/v1/payments.proto", "{root}/proto/delivery/v1/delivery.proto"]
[service."payments.v1.PaymentService"]
dead_letter_on = ["timeout"]
"""


class Stage:
    """Broker, worker, gateways, and calls."""

    def __init__(self, options, folder, crew):
        self.options, self.folder, self.crew = options, folder, crew
        self.python, self.grpcurl = E2E["prepare_venv"](), E2E["GRPCURL"]
        E2E["prepare_grpcurl"]()
        self.broker = options.bootstrap
        if not self.broker:
            crew.start("broker", options.broker)
            self.broker = crew.said("broker", r"127\.0\.0\.1:\d+").group(0)
        self.make_topics()
        self.workers = 0
        self.worker = self.start_worker()
        self.grpc, self.admin = self.start_gateway("gateway-a", "")
        (folder / "token").write_text(TOKEN)
        self.guarded = self.start_gateway("gateway-b", f'token_file = "{folder}/token"')[1]

    def make_topics(self):
        code = (
            "import sys; from confluent_kafka.admin import AdminClient, NewTopic;"
            "client = AdminClient({'bootstrap.servers': sys.argv[1]});"
            "made = client.create_topics([NewTopic(t, 3, 1) for t in sys.argv[2:]]);"
            "[f.result(20) for f in made.values()]"
        )
        subprocess.run([self.python, "-c", code, self.broker, *TOPICS], check=True, timeout=60)

    def start_worker(self):
        self.workers += 1
        name = f"worker-{self.workers}"
        worker = self.crew.start(name, self.python, ROOT / "examples/workers/python/worker.py", "--bootstrap", self.broker)
        self.crew.said(name, r"assigned \w")
        return worker

    def stop_worker(self):
        self.worker.send_signal(signal.SIGTERM)
        self.worker.wait(20)
        # It has ended as it should; others that end are a failure.
        self.crew.processes.remove(self.worker)

    def start_gateway(self, name, token):
        config = self.folder / f"{name}.toml"
        config.write_text(GATEWAY.format(broker=self.broker, root=ROOT, token=token, instance=name))
        self.crew.start(name, self.options.antiphon, "serve", "--config", config)
        return self.crew.said(name, READY).groups()

    def call(self, order, seconds=10, method=PAY, data=None):
        data = data or {"order_id": order, "amount_minor": 1250, "currency": "EUR"}
        command = [self.grpcurl, "-plaintext", "-max-time", str(seconds), "-d", json.dumps(data), "-v", self.grpc, method]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def correlation_id(self, call):
        said, _ = call.communicate(timeout=PATIENCE_SECONDS)
        found = re.search(r"antiphon-correlation-id: (\S+)", said)
        assert found, f"the call has no correlation id: {said}"
        return found.group(1)

    def log(self):
        return self.crew.text("gateway-a")


# ---- the cases, in this order: each begins with what those before have left ----


def a_call_in_flight_is_seen_and_goes(browser, stage):
    call = stage.call("slow-o-17")
    browser.go(f"http://{stage.admin}/console/calls")
    row = "[...document.querySelectorAll('#live tbody tr')].find(r => r.querySelector('.method')?.innerText === 'Pay')"
    browser.until("the call is shown without a reload", f"{row}.innerText.includes('the worker’s reply')")
    assert "slow-o-17" not in browser.text(), "a key is shown"
    shown = browser.until("its correlation id", f"{row}.querySelector('td.id a').textContent")
    if stage.options.screenshots:
        browser.screenshot(stage.shot("console-in-flight"), 700)
    assert shown == stage.correlation_id(call)
    browser.until("the call is gone without a reload", "document.body.innerText.includes('No call is in flight')")


def routes_show_what_is_going_on(browser, stage):
    browser.go(f"http://{stage.admin}/console/routes")
    row = "[...document.querySelectorAll('tbody tr')].find(r => r.innerText.includes('EchoService')).cells"
    browser.until("the rate of calls is live", f"parseFloat({row}[3].innerText) > 10")
    first = browser.js(f"{row}[6].innerText")
    browser.until("it goes on counting", f"{row}[6].innerText !== {json.dumps(first)}")
    # The worker's one thread has just slept over a slow payment, so it may be seconds.
    p50 = browser.js(f"{row}[4].innerText")
    assert re.fullmatch(r"\d+(\.\d)? (µs|ms|s)", p50), p50
    assert "INVALID_ARGUMENT" in browser.text()


def instances_know_each_other(browser, stage):
    browser.go(f"http://{stage.admin}/console/instances")
    browser.until("the other instance", "document.body.innerText.includes('gateway-b')")
    browser.until("both shards read", "document.body.innerText.match(/reading/g)?.length >= 2")
    assert "payment_request" in browser.text()


def a_dead_letter_is_found_and_replayed(browser, stage):
    stage.stop_worker()
    # The client's own clock may end the call before it has the trailers.
    stage.call("o-4711", seconds=1).communicate(timeout=PATIENCE_SECONDS)
    stage.worker = stage.start_worker()
    letters = f"http://{stage.admin}/console/letters"
    for _ in range(PATIENCE_SECONDS):
        browser.go(letters)
        browser.click("input[name=key]")
        browser.type("o-4711")
        browser.leaving(lambda: browser.click(".filter button[type=submit]"))
        if browser.js("document.querySelectorAll('tbody th a').length") == 1:
            break
        time.sleep(1)
    assert "o-4711" in browser.text() and "timeout" in browser.text(), browser.text()
    browser.leaving(lambda: browser.click("tbody th a"))
    stage.letter = browser.js("location.pathname")
    lost = stage.lost = browser.js(
        "[...document.querySelectorAll('dt')].find(e => e.innerText === 'Correlation id').nextElementSibling.innerText"
    )
    browser.go(letters + f"?which={lost}")
    assert browser.js("document.querySelector('tbody th a').pathname") == stage.letter, browser.text()
    browser.go(f"http://{stage.admin}{stage.letter}")
    browser.leaving(lambda: browser.click(".actions .primary"))
    assert "payment_request/" in browser.text()
    # Without a name and a tick the browser itself refuses.
    browser.click(".danger")
    assert browser.js("location.pathname").endswith("/replay") and "Send this request again?" in browser.text()
    browser.click("input[name=operator]")
    browser.type("Ana Martín")
    browser.click("input[name=confirmed]")
    if stage.options.screenshots:
        browser.screenshot(stage.shot("console-replay"))
    browser.leaving(lambda: browser.click(".danger"))
    assert browser.js("location.pathname") == stage.letter, browser.text()
    assert "Sent again 1 time" in browser.text() and "Ana Martín" in browser.text(), browser.text()

    for _ in range(PATIENCE_SECONDS):
        if "A worker has carried the request out" in browser.text():
            break
        time.sleep(1)
        browser.go(f"http://{stage.admin}{stage.letter}")
    assert "A reply came after the call had ended: OK" in browser.text(), browser.text()
    browser.leaving(lambda: browser.click(".actions .primary"))
    assert "It was sent again before" in browser.text(), "it would be sent twice"
    browser.click("input[name=again]")
    browser.leaving(lambda: browser.click("main form.stack button"))
    assert "It was carried out" in browser.text() and not browser.js("!!document.querySelector('.danger')")
    audits = [json.loads(line) for line in stage.log().splitlines() if "antiphon::audit" in line]
    fields = [{**line, **line.get("fields", {})} for line in audits]
    assert [(f["operator"], f["correlation_id"], f["outcome"]) for f in fields] == [("Ana Martín", lost, "sent")], audits


def the_story_of_a_call_is_told(browser, stage):
    browser.go(f"http://{stage.admin}/console")
    browser.press("/")
    assert browser.focused() == "name", browser.focused()
    browser.type(stage.lost)
    browser.leaving(lambda: browser.press("Enter"))
    assert browser.js("document.querySelector('.verdict').innerText"), browser.text()
    for what in ("request", "dead letter", "note of a replay", "replayed request", "late reply", "deadline of the caller"):
        assert what in browser.text(), f"{what} is missing: {browser.text()}"
    if stage.options.screenshots:
        browser.screenshot(stage.shot("console-story"))


def the_keyboard_is_enough(browser, stage):
    browser.go(f"http://{stage.admin}/console")
    browser.press("Tab")
    assert browser.focused() == "Skip to the content", browser.focused()
    browser.press("Enter")
    browser.until("the content has the focus", "document.activeElement.id === 'main'")
    browser.go(f"http://{stage.admin}/console")
    browser.tab_to("a[href='/console/letters']")
    browser.leaving(lambda: browser.press("Enter"))
    browser.tab_to("input[name=key]")
    browser.type("o-4711")
    browser.leaving(lambda: browser.press("Enter"))
    browser.tab_to("tbody th a")
    browser.leaving(lambda: browser.press("Enter"))
    assert browser.js("location.pathname") == stage.letter
    browser.tab_to(".actions .primary")
    browser.leaving(lambda: browser.press("Enter"))
    browser.go(f"http://{stage.admin}/console/routes")
    browser.press("p")
    browser.until("updates are paused", "document.body.innerText.includes('Updates are paused')")
    browser.press("p")


def a_phone_needs_no_sideways_scrolling(browser, stage):
    browser.size(360, 740, scale=2)
    paths = [
        "", "/routes", "/calls", "/instances", "/letters", "/why", f"/why?name={stage.lost}",
        stage.letter.removeprefix("/console"), stage.letter.removeprefix("/console") + "/replay",
    ]  # fmt: skip
    for path in paths:
        browser.go(f"http://{stage.admin}/console{path}")
        wide = browser.js("document.documentElement.scrollWidth")
        assert wide <= 360, f"{path or '/'} is {wide} pixels wide"
        small = browser.js(
            "[...document.querySelectorAll('main button, main .button, main select')].filter("
            "e => e.getBoundingClientRect().height < 40).length"
        )
        assert small == 0, f"{path}: {small} buttons are too small for a finger"
    if stage.options.screenshots:
        browser.go(f"http://{stage.admin}/console")
        browser.screenshot(stage.shot("console-phone"), 900)
    browser.size(1280, 800)


def contrast(browser):
    """The least contrast of text on its ground, by WCAG."""
    return browser.js(
        """(() => {
        const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
        const rgb = (colour, on) => {
          canvas.clearRect(0, 0, 1, 1)
          if (on) { canvas.fillStyle = `rgb(${on})`; canvas.fillRect(0, 0, 1, 1) }
          canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
          return [...canvas.getImageData(0, 0, 1, 1).data]
        }
        const light = ([r, g, b]) => { const c = [r, g, b].map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 })
          return .2126 * c[0] + .7152 * c[1] + .0722 * c[2] }
        const ground = e => { const chain = []; for (; e; e = e.parentElement) chain.unshift(e)
          return chain.reduce((on, x) => rgb(getComputedStyle(x).backgroundColor, on.slice(0, 3)), [255, 255, 255]) }
        let least = [99, '']
        for (const e of document.querySelectorAll('body *')) {
          const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
          const box = e.getBoundingClientRect()
          if (!own || box.width < 2 || box.bottom < 0) continue
          const on = ground(e).slice(0, 3), text = rgb(getComputedStyle(e).color, on).slice(0, 3)
          const [a, b] = [light(on), light(text)].sort((x, y) => y - x)
          const ratio = (a + .05) / (b + .05)
          if (ratio < least[0]) least = [ratio, `${e.tagName}.${e.className}: ${e.innerText.slice(0, 40)}`]
        }
        return least })()"""
    )


def light_and_dark_can_be_read(browser, stage):
    grounds = {}
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        for path in ("", "/routes", "/instances", "/letters", stage.letter.removeprefix("/console"), f"/why?name={stage.lost}"):
            browser.go(f"http://{stage.admin}/console{path}")
            grounds[scheme] = browser.js("getComputedStyle(document.body).backgroundColor")
            ratio, where = contrast(browser)
            assert ratio >= 4.5, f"{scheme} {path or '/'}: contrast {ratio:.2f} at {where}"
    assert grounds["light"] != grounds["dark"], grounds
    browser.scheme("light")


def the_token_is_asked_for_and_kept_from_scripts(browser, stage):
    browser.go(f"http://{stage.guarded}/console/routes")
    assert browser.js("location.pathname") == "/console/login"
    browser.click("input[name=operator]")
    browser.type("Ana")
    browser.click("input[name=token]")
    browser.type(TOKEN)
    browser.leaving(lambda: browser.press("Enter"))
    assert browser.js("location.pathname") == "/console/routes", browser.text()
    kept = [(c["name"], c["httpOnly"], c.get("sameSite")) for c in browser.send("Network.getCookies")["cookies"]]
    assert kept == [("antiphon_console", True, "Strict")], kept
    browser.leaving(lambda: browser.click(".out button"))
    assert browser.js("location.pathname") == "/console/login"
    browser.go(f"http://{stage.guarded}/console")
    assert browser.js("location.pathname") == "/console/login"


def it_works_without_scripts(browser, stage):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=f"http://{stage.admin}/console/routes")
        time.sleep(2)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert "EchoService" in browser.text() and browser.js("document.querySelectorAll('tbody tr').length") >= 4


def the_browser_has_nothing_to_complain_of(browser, stage):
    ours = {f"http://{stage.admin}/", f"http://{stage.guarded}/"}
    elsewhere = [url for url in browser.requested if not any(url.startswith(base) for base in ours) and url != "about:blank"]
    assert not elsewhere, f"asked elsewhere: {elsewhere}"
    assert not browser.complaints, "\n".join(browser.complaints[:10])


CASES = [
    a_call_in_flight_is_seen_and_goes,
    routes_show_what_is_going_on,
    instances_know_each_other,
    a_dead_letter_is_found_and_replayed,
    the_story_of_a_call_is_told,
    the_keyboard_is_enough,
    a_phone_needs_no_sideways_scrolling,
    light_and_dark_can_be_read,
    the_token_is_asked_for_and_kept_from_scripts,
    it_works_without_scripts,
    the_browser_has_nothing_to_complain_of,
]


def make_traffic(stage):
    """Something to look at: calls that are answered, refused, and too late."""
    proto = ["--proto-path", ROOT / "proto", "--proto", ROOT / "proto/echo/v1/echo.proto"]
    stage.crew.start("load", stage.options.antiphon, "bench", stage.grpc, ECHO, *proto,
                     "--rate", "60", "--duration", "600s", "--data", '{"payload":"aGVsbG8="}')  # fmt: skip
    calls = [stage.call(f"o-{n}") for n in range(3)]
    calls += [stage.call("o-none", data={"order_id": "o-none", "amount_minor": 0, "currency": "EUR"}) for _ in range(2)]
    calls += [stage.call("slow-o-9", seconds=1)]
    for call in calls:
        call.communicate(timeout=PATIENCE_SECONDS)


def run(options, folder, crew):
    stage = Stage(options, folder, crew)
    stage.shot = lambda name: Path(options.screenshots) / f"{name}.png"
    make_traffic(stage)
    browser = Browser()
    failed = 0
    try:
        browser.size(1280, 800)
        browser.scheme("light")
        for case in CASES:
            name = case.__name__.replace("_", " ")
            try:
                case(browser, stage)
                print(f"ok      {name}", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
        if options.screenshots:
            more_screenshots(browser, stage)
    finally:
        browser.close()
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return failed


def more_screenshots(browser, stage):
    # Enough of the past for a picture of it.
    time.sleep(30)
    for name, path, scheme in [
        ("console-overview", "", "light"),
        ("console-overview-dark", "", "dark"),
        ("console-routes", "/routes", "light"),
        ("console-instances", "/instances", "light"),
        ("console-dead-letters", "/letters", "light"),
    ]:
        browser.scheme(scheme)
        browser.go(f"http://{stage.admin}/console{path}")
        browser.screenshot(stage.shot(name), 900)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--antiphon", default=ROOT / "target/release/antiphon", type=Path)
    parser.add_argument("--broker", default=ROOT / "target/release/examples/dev_broker", type=Path)
    parser.add_argument("--bootstrap", help="an Apache Kafka to use in place of the embedded broker")
    parser.add_argument("--screenshots", type=Path, help="write pictures for the docs to this folder")
    options = parser.parse_args()
    for program in [options.antiphon] if options.bootstrap else [options.antiphon, options.broker]:
        if not program.is_file():
            sys.exit(f"missing: {program} (cargo build --release --bin antiphon --example dev_broker)")
    install()
    with tempfile.TemporaryDirectory(prefix="antiphon-console-test-") as folder:
        crew = Crew(Path(folder))
        try:
            failed = run(options, Path(folder), crew)
        finally:
            crew.end()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
