"""Headless Chromium through its DevTools pipe; nothing but Python itself.

Messages are JSON, each ended by a zero byte, on file descriptors 3 (to the
browser) and 4 (from it). Everything that a page says to its console, every
exception and every violation of its policy is kept in `complaints`.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PATIENCE_SECONDS = 30
KEYS = {
    "Tab": (9, "Tab", None),
    "Enter": (13, "Enter", "\r"),
    "Escape": (27, "Escape", None),
    "/": (191, "Slash", "/"),
    "p": (80, "KeyP", "p"),
    " ": (32, "Space", " "),
}


def install():
    """Chromium, which CI's image may lack."""
    if Path(CHROMIUM).exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"missing: {CHROMIUM} (Debian: apt-get install chromium)")
    print("installing Chromium", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
        check=True, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip


class Browser:
    """One Chromium with one page."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="antiphon-console-")
        to_browser, self.writing = os.pipe()
        self.reading, from_browser = os.pipe()

        def place_pipes():
            # Kept clear of 3 and 4 first, since either may be one of them.
            one, other = os.dup2(to_browser, 103), os.dup2(from_browser, 104)
            os.dup2(one, 3)
            os.dup2(other, 4)

        arguments = [
            CHROMIUM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-quic", "--hide-scrollbars", "--force-color-profile=srgb", "--disable-dev-shm-usage",
        ]  # fmt: skip
        # As root, which containers are, there is no sandbox.
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [*arguments, "about:blank"], preexec_fn=place_pipes, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.pending, self.events, self.number, self.session = b"", [], 0, None
        self.complaints, self.statuses, self.requested = [], {}, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")

    def close(self):
        try:
            self.session = None
            self.send("Browser.close")
            self.process.wait(10)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    # ---- the protocol ----

    def receive(self, until):
        while b"\0" not in self.pending:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.reading], [], [], left)[0]:
                raise TimeoutError("Chromium did not answer in time")
            part = os.read(self.reading, 1 << 16)
            if not part:
                raise EOFError("Chromium has ended")
            self.pending += part
        message, self.pending = self.pending.split(b"\0", 1)
        return json.loads(message)

    def send(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self.receive(until)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def note(self, event):
        method, about = event.get("method"), event.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            entry = about["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Audits.issueAdded":
            self.complaints.append(json.dumps(about["issue"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif method == "Network.responseReceived" and about["type"] == "Document":
            self.statuses[about["response"]["url"]] = about["response"]["status"]

    # ---- what a person does and sees ----

    def js(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, what, expression):
        """The first true answer; a page that is just being left has none."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self.js(expression)
            except RuntimeError:
                answer = None
            if answer:
                return answer
            if time.monotonic() > end:
                raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}; the page says:\n{self.text()}")
            time.sleep(0.1)

    def text(self):
        return self.js("document.body.innerText") or ""

    def leaving(self, act):
        """Does what leads to another page, and waits for that."""
        self.js("window.isOld = true")
        act()
        self.until("another page", "!window.isOld && document.readyState === 'complete'")

    def go(self, url):
        self.leaving(lambda: self.send("Page.navigate", url=url))

    def click(self, selector):
        self.until(f"{selector} is there", f"!!document.querySelector({json.dumps(selector)})")
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key, shift=False):
        code, name, text = KEYS[key]
        common = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def focused(self):
        return self.js(
            "(() => { const e = document.activeElement;"
            " return (e.getAttribute('aria-label') || e.name || e.innerText || e.tagName).trim() })()"
        )

    def tab_to(self, what, most=80):
        """By the keyboard alone; every stop on the way must be seen."""
        for _ in range(most):
            self.press("Tab")
            ring = self.js(
                "(() => { const s = getComputedStyle(document.activeElement);"
                " return document.activeElement === document.body || s.outlineStyle !== 'none' })()"
            )
            if not ring:
                raise AssertionError(f"focus can't be seen on {self.focused()!r}")
            if self.js(f"document.activeElement.matches({json.dumps(what)})"):
                return
        raise AssertionError(f"{what} can't be reached by Tab; last on {self.focused()!r}")

    def size(self, width, height, scale=1):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600
        )

    def scheme(self, value):
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, path, height_max=None):
        """All of the page, or its upper part."""
        width, height = self.js("[innerWidth, Math.ceil(document.documentElement.scrollHeight)]")
        height = min(height, height_max or height)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
