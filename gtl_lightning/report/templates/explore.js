"use strict";
const get = (id) => document.getElementById(id);
const [form, write, again, link, state, wrong, runs] = ["asked", "write", "again", "trace", "state", "wrong", "runs"].map(get);
let asking = 0;

function query() {
  const found = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value.trim() !== "") found.set(name, value);
  return found;
}

function show() {
  for (const slide of form.querySelectorAll(".slide")) slide.querySelector("output").textContent = Number(slide.querySelector("input").value).toFixed(2);
  link.href = `trace?${query()}`;
}

function element(tag, content, classes = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (classes) made.className = classes;
  return made;
}

function run({ name, note, texts }) {
  const made = element("section", "", "run"), list = document.createElement("ol");
  for (const text of texts) list.append(text === "" ? element("li", "an empty text", "empty") : element("li", text));
  made.append(element("h2", name), element("p", note, "note"), list);
  return made;
}

async function ask() {
  const mine = ++asking, begun = performance.now();
  state.textContent = "writing …";
  write.disabled = again.disabled = true;
  wrong.hidden = true;
  let told;
  try {
    const answer = await fetch(`texts?${query()}`);
    told = await answer.json();
  } catch {
    told = { error: "gtl explore does not answer; see its terminal" };
  }
  if (mine !== asking) return;
  write.disabled = again.disabled = false;
  state.textContent = told.error ? "" : `${((performance.now() - begun) / 1000).toFixed(1)} s`;
  wrong.hidden = !told.error;
  wrong.textContent = told.error ?? "";
  if (told.runs) runs.replaceChildren(...told.runs.map(run));
}

form.addEventListener("input", show);
form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
again.addEventListener("click", () => { form.seed.value = Number(form.seed.value) + 1; show(); ask(); });
get("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
});
show();
ask();
