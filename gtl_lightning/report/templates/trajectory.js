"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const [text, slider, at, play, search, found] = ["text", "step", "at", "play", "search", "found"].map(get);
const panes = [...document.querySelectorAll(".tokens")], details = [...document.querySelectorAll(".choice")];
// The token opened, by its place in the text: both runs show theirs.
let opened = null, timer = null;

const STEP = 0, POSITION = 1, TOKEN = 2, GAMMA = 3, CANDIDATES = 4, REPLACED = 5;
const piece = (id) => data.pieces[id];
const current = (run) => data.runs[run].texts[Number(text.value)];
const lastStep = () => Math.max(0, ...data.runs.flatMap((_, run) => current(run).choices.map((choice) => choice[STEP])));

function stateAt(run, step) {
  const { start, choices } = current(run);
  const state = start.map((token) => ({ token, choice: null }));
  for (const choice of choices) {
    if (choice[STEP] > step) break;
    state[choice[POSITION]] = { token: choice[TOKEN], choice };
  }
  return state;
}

function element(tag, content, classes = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (classes) made.className = classes;
  return made;
}

function wanted() {
  return search.value.trim().toLowerCase();
}

function drawTokens(run, step) {
  const ends = data.runs.map((_, other) => stateAt(other, Infinity));
  const focused = document.activeElement?.dataset?.run === String(run) ? document.activeElement.dataset.position : null;
  const made = stateAt(run, step).map(({ token, choice }, position) => {
    const masked = token === data.mask;
    const button = element("button", masked ? "·" : piece(token), "token");
    button.type = "button";
    button.dataset.run = run;
    button.dataset.position = position;
    const fresh = choice !== null && choice[STEP] === step;
    button.classList.toggle("masked", masked);
    button.classList.toggle("given", !masked && choice === null);
    button.classList.toggle("fresh", fresh);
    button.classList.toggle("other", !masked && ends.some((end) => end[position]?.token !== token));
    button.classList.toggle("match", wanted() !== "" && !masked && piece(token).toLowerCase().includes(wanted()));
    button.setAttribute("aria-pressed", String(position === opened));
    const said = masked ? "not set yet" : choice === null ? `${piece(token)}, given` : `${piece(token)}, step ${choice[STEP]}`;
    button.setAttribute("aria-label", `place ${position + 1}: ${said}${fresh ? ", set at this step" : ""}`);
    if (choice !== null) button.append(element("sup", choice[STEP]));
    button.addEventListener("click", () => { opened = opened === position ? null : position; draw(); });
    return button;
  });
  panes[run].replaceChildren(...made);
  if (focused !== null) made[focused]?.focus();
}

function percent(p) {
  if (p >= 0.9995) return "100 %";
  return p >= 0.001 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0 %";
}

function cell(row, content, share = null) {
  const made = element("td", content, share === null ? "" : "share");
  if (share !== null) made.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
  row.append(made);
}

function drawChoice(run, step) {
  const pane = details[run];
  if (opened === null) return pane.replaceChildren(element("p", "Open a token to see what it was chosen from.", "note"));
  const entry = stateAt(run, step)[opened];
  const choice = entry?.choice;
  if (!choice) {
    const why = entry === undefined ? "has no such place" : entry.token === data.mask ? "is not set yet" : "was given";
    return pane.replaceChildren(element("p", `Place ${opened + 1} ${why}.`, "note"));
  }
  const guided = choice[GAMMA] !== null;
  const from = choice[REPLACED] === data.mask ? "" : `, in place of “${piece(choice[REPLACED])}”`;
  const head = element("p", `Place ${opened + 1}, step ${choice[STEP]}: “${piece(choice[TOKEN])}”${from}${guided ? `, γ = ${choice[GAMMA]}` : ""}.`);
  const table = document.createElement("table"), names = document.createElement("tr");
  for (const name of guided ? ["candidate", "denoiser", "log r", "tilted"] : ["candidate", "denoiser"]) {
    const made = element("th", name);
    made.scope = "col";
    names.append(made);
  }
  table.createTHead().append(names);
  const body = table.createTBody();
  for (const [token, p, logR, tilted] of choice[CANDIDATES]) {
    const row = body.insertRow(), taken = token === choice[TOKEN];
    row.classList.toggle("taken", taken);
    cell(row, `${taken ? "✓ " : ""}${piece(token)}`);
    cell(row, percent(p), p);
    if (guided) {
      cell(row, typeof logR === "number" ? (logR < 0 ? "−" : "+") + Math.abs(logR).toFixed(2) : logR ?? "");
      cell(row, percent(tilted), tilted);
    }
  }
  pane.replaceChildren(head, table);
}

function draw() {
  const last = lastStep();
  slider.max = last;
  const step = Number(slider.value);
  at.textContent = `${step} of ${last}`;
  data.runs.forEach((_, run) => { drawTokens(run, step); drawChoice(run, step); });
  const count = document.querySelectorAll(".token.match").length;
  found.textContent = wanted() === "" ? "" : `${count} shown`;
}

function go(step) {
  slider.value = Math.min(Math.max(step, 0), Number(slider.max));
  draw();
}

function turn(by) {
  const next = Number(text.value) + by;
  if (next < 0 || next >= text.options.length) return;
  text.value = next;
  opened = null;
  draw();
  go(Infinity);
}

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

function toggle() {
  if (timer !== null) return stop();
  if (Number(slider.value) >= Number(slider.max)) go(0);
  play.textContent = "Pause";
  timer = setInterval(() => {
    go(Number(slider.value) + 1);
    if (Number(slider.value) >= Number(slider.max)) stop();
  }, 350);
}

// The next choice of such a token after this step, of any run and text; around at the end.
function next() {
  if (wanted() === "") return;
  const hits = [];
  for (let index = 0; index < text.options.length; index++)
    for (const run of data.runs)
      for (const choice of run.texts[index].choices)
        if (piece(choice[TOKEN]).toLowerCase().includes(wanted())) hits.push([index, choice[STEP], choice[POSITION]]);
  if (!hits.length) { found.textContent = "none"; return; }
  hits.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const here = [Number(text.value), Number(slider.value)];
  const [index, step, position] = hits.find((hit) => hit[0] > here[0] || (hit[0] === here[0] && hit[1] > here[1])) ?? hits[0];
  text.value = index;
  opened = position;
  slider.max = lastStep();
  go(step);
}

slider.addEventListener("input", draw);
text.addEventListener("change", () => { opened = null; draw(); go(Infinity); });
play.addEventListener("click", toggle);
search.addEventListener("input", draw);
search.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); next(); } });
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  const typing = event.target === search, onButton = event.target.tagName === "BUTTON";
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing) { event.preventDefault(); return search.focus(); }
  if (event.key === "Escape") return event.target.blur();
  if (typing || event.target === text) return;
  const step = Number(slider.value);
  const keys = {
    ArrowRight: () => go(step + 1), ArrowLeft: () => go(step - 1), Home: () => go(0), End: () => go(Infinity),
    ArrowDown: () => turn(1), ArrowUp: () => turn(-1),
  };
  const act = event.key === " " && !onButton ? toggle : keys[event.key];
  if (!act) return;
  event.preventDefault();
  if (event.key !== " ") stop();
  act();
});
draw();
go(Infinity);
