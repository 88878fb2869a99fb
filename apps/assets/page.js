// Runs once in the component that holds the document window: `element` is that component, `server` calls Python.
// Everything is delegated from the document, because answers and cards are replaced while they grow.
const dialog = element.querySelector("dialog");
const body = dialog.querySelector(".rt-window-body");
const title = dialog.querySelector(".rt-window-title");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function bring(target, block) {
  target.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block });
}

function openCard({ target, start, end, at }) {
  const card = document.getElementById(target);
  if (!card) return;
  for (let fold = card; fold; fold = fold.parentElement.closest("details")) fold.open = true;
  const marks = [...card.querySelectorAll("mark")];
  const mark = marks.findLast((m) => Number(m.dataset.at) <= Number(at)) || marks[0];
  if (start) Object.assign(card.querySelector("button.rt-open").dataset, { start, end });
  bring(mark || card, "center");
  card.classList.remove("rt-flash");
  void card.offsetWidth; // so that the animation starts again
  card.classList.add("rt-flash");
  card.querySelector("summary").focus({ preventScroll: true });
}

// An open card shows the words that support the answer, not the beginning of their passage.
function showMark(text) {
  if (text.dataset.shown || !text.clientHeight) return;
  text.dataset.shown = "true";
  const mark = text.querySelector("mark");
  if (!mark) return;
  const below = mark.getBoundingClientRect().bottom - text.getBoundingClientRect().bottom;
  if (below > 0) text.scrollTop = below + text.clientHeight / 2;
}

const told = dialog.dataset;
document.documentElement.lang = told.lang;

async function openWindow(name, ask) {
  title.textContent = name;
  body.textContent = told.opening;
  if (!dialog.open) dialog.showModal();
  try {
    body.innerHTML = await ask();
  } catch (error) {
    body.textContent = told.noServer;
    return;
  }
  const mark = body.querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
  else body.scrollTop = 0;
}

function openDocument(button) {
  const { source, start, end } = button.dataset;
  openWindow(source, () => server.open_document({ source, start: Number(start), end: Number(end) }));
}

// A button or form with data-bus and data-event is an event of that bus, with its other data and fields.
function say(element, fields = {}) {
  const { bus, event, ...data } = element.dataset;
  const trigger = (window.ragtuneBus || {})[bus];
  if (trigger) trigger(event, { ...data, ...fields });
}

function fieldsOf(form) {
  const fields = {};
  for (const [name, value] of new FormData(form)) {
    if (name in fields) fields[name] = [].concat(fields[name], value);
    else fields[name] = value;
  }
  return fields;
}

async function copy(button) {
  const text = button.parentElement.querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch (error) { // no permission, or not a secure page: the old way
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = told.copied;
  setTimeout(() => (button.textContent = before), 1500);
}

// Listeners of an earlier load of this component are replaced, not doubled.
window.ragtuneListeners?.abort();
window.ragtuneListeners = new AbortController();
function on(event, handle, options = {}) {
  document.addEventListener(event, handle, { signal: window.ragtuneListeners.signal, ...options });
}

on("click", (event) => {
  if (event.isTrusted) { // not the link that saves a file by itself
    for (const menu of document.querySelectorAll("details.rt-menu[open], details.rt-down[open]"))
      if (!menu.contains(event.target)) menu.open = false;
  }
  const cite = event.target.closest("a.rt-cite");
  if (cite) {
    event.preventDefault();
    openCard(cite.dataset);
    return;
  }
  const button = event.target.closest("button, a.rt-lang");
  if (!button) return;
  if (button.matches("a.rt-lang")) localStorage.setItem("ragtune-language", button.lang);
  else if (button.matches(".rt-open")) openDocument(button);
  else if (button.matches(".rt-chunks-open"))
    openWindow(button.dataset.source, () => server.open_chunks({ source: button.dataset.source }));
  else if (button.matches(".rt-copy")) copy(button);
  else if (button.matches(".rt-rail-toggle")) {
    const open = document.body.classList.toggle("rt-rail-open");
    button.setAttribute("aria-expanded", open);
  } else if (button.dataset.event) {
    say(button);
    document.body.classList.remove("rt-rail-open");
  }
});

on("submit", (event) => {
  const form = event.target.closest("form[data-bus]");
  if (!form) return;
  event.preventDefault();
  say(form, fieldsOf(form));
});

let sliding = 0;
on("input", (event) => {
  const form = event.target.closest("form.rt-sliders");
  if (!form) return;
  const fields = {};
  for (const input of form.querySelectorAll("input[type=range]")) {
    const power = Number(input.dataset.power);
    const value = power ? Number((power ** Number(input.value)).toPrecision(2)) : Number(input.value);
    const shown = value.toLocaleString("en", power ? {} : { minimumFractionDigits: 2 });
    input.closest("label").querySelector("output").textContent = shown;
    input.setAttribute("aria-valuetext", shown);
    fields[input.dataset.name] = String(value);
  }
  clearTimeout(sliding);
  sliding = setTimeout(() => say(form, fields), 120);
});

on("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = event.target.closest("details.rt-menu[open], details.rt-down[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// A fold that a person opened stays open when its HTML is made anew.
const kept = new Set();
on(
  "toggle",
  ({ target }) => {
    for (const text of target.querySelectorAll(".rt-text")) showMark(text);
    if (!target.dataset?.keep) return;
    if (target.open) kept.add(target.dataset.keep);
    else if (target.isConnected) kept.delete(target.dataset.keep);
  },
  { capture: true },
);

const chosen = localStorage.getItem("ragtune-language");
if (!chosen && told.lang === "en" && location.pathname === "/" && navigator.language.startsWith("zh"))
  location.replace("/zh" + location.search);

dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest(".rt-close")) dialog.close();
});

// A new question is brought to the top of the window once; after that the reader scrolls alone.
let seen = null;
const saved = new Set();
if (window.ragtuneObserver) window.ragtuneObserver.disconnect();
window.ragtuneObserver = new MutationObserver(() => {
  const live = document.querySelector("#live-answers [data-turn]");
  const id = live && live.dataset.turn;
  if (id && id !== seen && live.querySelector("[aria-busy=true]")) bring(live, "start");
  seen = id;
  for (const fold of document.querySelectorAll("details[data-keep]:not([open])"))
    if (kept.has(fold.dataset.keep)) fold.open = true;
  for (const text of document.querySelectorAll("details[open] > .rt-text")) showMark(text);
  const link = document.querySelector("a.rt-autosave");
  if (link && !saved.has(link.dataset.made)) {
    saved.add(link.dataset.made);
    link.click();
  }
});
window.ragtuneObserver.observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-turn", "data-made"] });
