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

async function openDocument(button) {
  const { source, start, end } = button.dataset;
  title.textContent = source;
  body.textContent = "Opening…";
  if (!dialog.open) dialog.showModal();
  try {
    body.innerHTML = await server.open_document({ source, start: Number(start), end: Number(end) });
  } catch (error) {
    body.textContent = "The server did not answer. Is `ragtune chat` still running?";
    return;
  }
  const mark = body.querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
  else body.scrollTop = 0;
}

if (window.ragtuneListener) document.removeEventListener("click", window.ragtuneListener);
window.ragtuneListener = (event) => {
  const cite = event.target.closest("a.rt-cite");
  if (cite) {
    event.preventDefault();
    openCard(cite.dataset);
    return;
  }
  const opener = event.target.closest("button.rt-open");
  if (opener) openDocument(opener);
};
document.addEventListener("click", window.ragtuneListener);

dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest(".rt-close")) dialog.close();
});

// A new question is brought to the top of the window once; after that the reader scrolls alone.
let seen = null;
if (window.ragtuneObserver) window.ragtuneObserver.disconnect();
window.ragtuneObserver = new MutationObserver(() => {
  const live = document.querySelector("#live-answers [data-turn]");
  const id = live && live.dataset.turn;
  if (id && id !== seen) bring(live, "start");
  seen = id;
});
window.ragtuneObserver.observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-turn"] });
