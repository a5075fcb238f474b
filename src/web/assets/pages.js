// What pages cannot do without a script: follow what a command prints, copy a text, send the header that operators' requests need, and
// scroll the navigation to where one is. Without it they still show everything.
"use strict";

const LOOKS_MS = 1000;
const KEPT_CHARACTERS = 1 << 20;

// What terminals are told, but for what comes in two pieces: colours are shown when the page is loaded again.
const SEQUENCES = /\x1b\[[0-9;:?]*[A-Za-z]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)/g;

const plain = (text) => text.replace(SEQUENCES, "").replace(/\r\n?/g, "\n");

/** Appends what a running command prints, until it has ended. */
async function follow(pre) {
  let offset = Number(pre.dataset.offset), attempt = pre.dataset.attempt, decoder = new TextDecoder(), isCut = false;
  for (;;) {
    const answer = await fetch(`${pre.dataset.follow}&offset=${offset}`).catch(() => null);
    if (answer && answer.ok) {
      if (answer.headers.get("croft-attempt") !== attempt) {
        [offset, attempt, decoder, pre.textContent] = [0, answer.headers.get("croft-attempt"), new TextDecoder(), ""];
        isCut = false;
        say(pre, pre.dataset.followed);
        continue;
      }
      const state = answer.headers.get("croft-state"), bytes = await answer.arrayBuffer();
      if (state === "ended" && (isCut || bytes.byteLength === 0)) {
        return say(pre, "It has ended; reload this page to see all of it.");
      }
      const isAtEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 4;
      pre.textContent = (pre.textContent + plain(decoder.decode(bytes, { stream: true }))).slice(-KEPT_CHARACTERS);
      if (isAtEnd) pre.scrollTop = pre.scrollHeight;
      offset += bytes.byteLength;
      if (bytes.byteLength > 0) continue;
      if (state === "cut" && !isCut) {
        isCut = true;
        say(pre, pre.dataset.cut);
      }
    } else if (answer && answer.status !== 429 && answer.status < 500) {
      return say(pre, `What it prints is not followed any more (${answer.status}); reload this page.`);
    }
    await new Promise((next) => setTimeout(next, LOOKS_MS));
  }
}

/** The sentence above the text says how it stands. */
function say(pre, sentence) {
  const note = pre.previousElementSibling;
  if (note) note.textContent = sentence;
}

/** Sends a form as an operator's request and says what came of it. */
async function send(form) {
  const output = form.querySelector("output");
  const body = form.dataset.method === "POST" ? JSON.stringify(Object.fromEntries(new FormData(form))) : undefined;
  try {
    const answer = await fetch(form.dataset.url, { method: form.dataset.method, headers: { "croft-admin": "1" }, body });
    output.textContent = answer.ok ? "Done; reload this page." : (await answer.text()).trim();
  } catch {
    output.textContent = "The farm does not answer.";
  }
}

/** Scrolls the navigation so that a part of it stands in the middle; a wide window has room for all of it. */
function reveal(part) {
  const list = part?.closest("header ul");
  if (!list) return;
  const [at, all] = [part.getBoundingClientRect(), list.getBoundingClientRect()];
  list.scrollLeft += at.left + at.width / 2 - all.left - all.width / 2;
}

const revealCurrent = () => reveal(document.querySelector("header [aria-current]"));
revealCurrent();
addEventListener("resize", revealCurrent);
// A browser does not scroll to what the keyboard is at when a part of it is seen already. What is pressed stays below the finger.
document.querySelector("header").addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && reveal(target));

for (const pre of document.querySelectorAll("pre[data-follow]")) follow(pre);

for (const form of document.querySelectorAll("form[data-method]")) {
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  if (!source || !navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  });
}
