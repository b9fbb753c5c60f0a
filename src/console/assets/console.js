// Makes the console's pages livelier; all of them work without it.
"use strict";

const EVERY_MS = 2000;
const TIMEOUT_MS = 10000;
let paused = false;
let failures = 0;

// Pages that change are fetched again, and what changes is put in place.
const said = document.getElementById("updates");

function say(text) {
  if (!said) return;
  said.textContent = text;
  said.classList.toggle("hidden", !text);
}

// A row may be gone after an update; focus stays where it was as far as that goes.
function replace(live, fresh) {
  const links = [...live.querySelectorAll("a, summary, button")];
  const focused = links.indexOf(document.activeElement);
  const target = focused >= 0 ? document.activeElement.getAttribute("href") : null;
  live.replaceWith(fresh);
  if (focused >= 0) {
    const now = [...fresh.querySelectorAll("a, summary, button")];
    const same = now.find((link) => link.getAttribute("href") === target);
    (same ?? now[focused])?.focus({ preventScroll: true });
  }
}

function isReading() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && document.getElementById("live")?.contains(selection.anchorNode);
}

async function update() {
  const live = document.getElementById("live");
  if (!live || paused || document.hidden || isReading()) return;
  const response = await fetch(location.href, {
    headers: { "x-console-live": "1" },
    credentials: "same-origin",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  // Signed out: the answer is another page.
  if (response.redirected) return location.reload();
  if (!response.ok) throw new Error(String(response.status));
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.getElementById("live");
  if (!fresh || paused) return;
  replace(live, document.adoptNode(fresh));
  const phase = document.getElementById("phase");
  if (phase) {
    phase.className = `pill ${fresh.dataset.phase}`;
    phase.textContent = fresh.dataset.word;
  }
}

async function keepFresh() {
  try {
    await update();
    if (failures > 0) say("");
    failures = 0;
  } catch {
    failures += 1;
    if (failures > 1) say("This instance does not answer; what is shown may be old.");
  }
  setTimeout(keepFresh, EVERY_MS);
}

function isTyping(element) {
  return element && /^(input|select|textarea)$/i.test(element.tagName);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && isTyping(document.activeElement)) document.activeElement.blur();
  if (isTyping(document.activeElement)) return;
  if (event.key === "/") {
    const find = document.getElementById("find");
    if (!find) return;
    event.preventDefault();
    find.focus();
    find.select();
  } else if (event.key === "p" && document.getElementById("live")) {
    paused = !paused;
    say(paused ? "Updates are paused; p goes on." : "");
  }
});

// A search may take a while: it is said that it goes on, and not sent twice.
document.addEventListener("submit", (event) => {
  const form = event.target;
  const button = form.querySelector("button[type=submit]");
  if (form.method === "post" && form.dataset.sent) return event.preventDefault();
  form.dataset.sent = "yes";
  const busy = form.dataset.busy;
  const answer = document.getElementById("answer");
  if (busy && answer) {
    const note = document.createElement("p");
    note.className = "calm";
    note.setAttribute("role", "status");
    note.textContent = busy;
    answer.replaceChildren(note);
  }
  button?.setAttribute("aria-busy", "true");
});

// Back from a page to one that the browser has kept: its form can be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
});

if (document.getElementById("live")) setTimeout(keepFresh, EVERY_MS);
