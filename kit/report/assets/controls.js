// Mouse, touch, keys and the page's address move the reader.

const KEYS = [
  ["wheel, ↑ ↓ ← →", "slice by slice; up and right are towards the vertex"], ["Page Up, Page Down", "5 slices"], ["Home, End", "the lowest, the highest slice"],
  ["K", "the slice with the highest probability of the label"], ["[  ]", "the series before, after"], ["1 … 5", PRESETS.map(([name]) => name).join(", ")],
  ["drag", "window: right is wider, down is darker; or what the buttons above the image say"], ["Shift or middle button + drag", "move the zoomed image"],
  ["right button + drag, Ctrl + wheel, pinch, + −", "zoom"], ["0, double click", "whole image, brain window"], ["O", "overlay"], ["L", "next label"], ["C", "copy a link to this slice"], ["?", "this help"],
];

const makeHelp = () => make("dialog", { id: "keys", "aria-labelledby": "keys-heading" }, make("h2", { id: "keys-heading", text: "Keys and mouse" }),
  make("p", { class: "note", text: "The keys act while the image has the focus: click on it, or go to it by Tab." }),
  make("table", {}, make("tbody", {}, ...KEYS.map(([key, text]) => make("tr", {}, make("th", { scope: "row" }, make("kbd", { text: key })), make("td", { text }))))),
  make("form", { method: "dialog" }, make("button", { class: "button", text: "Close" })));

function setWindow(center, width) {
  Object.assign(state, { center: Math.round(center), width: Math.max(1, Math.round(width)) });
  paint();
}

function setMode(mode) {
  state.mode = mode;
  byId("view").dataset.drag = mode;
  for (const one of document.querySelectorAll("[data-mode]")) one.setAttribute("aria-pressed", one.dataset.mode === mode);
}

/** Zoom by a factor; what is under the pointer at `at` stays there. */
function zoomBy(factor, at = null) {
  const zoom = Math.min(8, Math.max(1, state.zoom * factor));
  if (at) {
    const box = byId("view").getBoundingClientRect(), moved = 1 / state.zoom - 1 / zoom;
    state.x += ((at.clientX - box.left) / box.width - 0.5) * moved;
    state.y += ((at.clientY - box.top) / box.height - 0.5) * moved;
  }
  state.zoom = zoom;
  paint();
}

function resetView() {
  Object.assign(state, { zoom: 1, x: 0, y: 0 });
  paint();
}

function stepSeries(by) {
  const list = listSeries(), next = list[list.indexOf(state.series) + by];
  if (next !== undefined) openSeries(next, null, true);
}

function resetAll() {
  resetView();
  setWindow(...PRESETS[0].slice(1));
}

function listenToView(view) {
  listenToWheel(view);
  listenToPointers(view);
  view.addEventListener("dblclick", resetAll);
  view.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { slice } = state, key = event.key.length === 1 ? event.key.toLowerCase() : event.key, go = (to) => () => moveTo(to);
    const act = {
      ArrowUp: go(slice + 1), ArrowRight: go(slice + 1), ArrowDown: go(slice - 1), ArrowLeft: go(slice - 1), PageUp: go(slice + 5), PageDown: go(slice - 5),
      Home: go(0), End: go(Infinity), k: moveToHighest, "[": () => stepSeries(-1), "]": () => stepSeries(1), "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8),
      0: resetAll, o: () => byId("overlay")?.click(), l: () => chooseLabel(ORDER[(ORDER.indexOf(state.label) + 1) % ORDER.length]), c: () => copyText(makeLink, "link"), "?": () => byId("keys").showModal(),
    }[key] || (PRESETS[key - 1] && (() => setWindow(...PRESETS[key - 1].slice(1))));
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** A notch of a wheel, 50 px and more at once, is one slice; a trackpad's small steps add up. */
function listenToWheel(view) {
  let rolled = 0;
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) return zoomBy(Math.exp(-event.deltaY / 300), event);
    const size = event.deltaMode === 1 ? event.deltaY * 40 : event.deltaY; // lines, in Firefox
    rolled = Math.abs(size) >= 50 ? Math.sign(size) * 30 : rolled + size;
    const steps = Math.trunc(rolled / 30);
    rolled -= steps * 30;
    moveTo(state.slice - steps);
  }, { passive: false });
}

function listenToPointers(view) {
  const held = new Map();
  let drag = null, gap = 0, zoomed = false;
  view.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, event);
    view.setPointerCapture(event.pointerId);
    view.focus({ preventScroll: true });
    if (event.button === 1) event.preventDefault(); // or the browser scrolls by itself
    const kind = event.button === 2 ? "zoom" : event.shiftKey || event.button === 1 ? "move" : state.mode;
    [drag, gap, zoomed] = [{ ...state, kind, left: event.clientX, top: event.clientY }, 0, false];
  });
  view.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    held.set(event.pointerId, event);
    if (held.size > 1) {
      const [a, b] = held.values(), now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (gap) zoomBy(now / gap, { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
      [gap, drag] = [now, null];
    } else if (drag) {
      const right = (event.clientX - drag.left) / view.clientWidth, down = (event.clientY - drag.top) / view.clientHeight;
      zoomed ||= drag.kind === "zoom" && Math.abs(event.clientY - drag.top) > 3;
      followDrag(drag, right, down, event.pointerType === "touch");
    }
  });
  for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, (event) => {
    held.delete(event.pointerId);
    [drag, gap] = [null, 0];
  });
  // Where the menu comes up at the press, not at the release, it would stop every drag.
  view.addEventListener("contextmenu", (event) => { if (zoomed || held.size) event.preventDefault(); });
}

/** What a drag from `start` by shares of the image's side does. */
function followDrag(start, right, down, touched) {
  if (start.kind === "window") setWindow(start.center + down * Math.max(120, start.width), start.width + right * Math.max(160, start.width * 1.5));
  else if (start.kind === "slices") moveTo(start.slice + Math.round(45 * (touched ? right : -down)));
  else if (start.kind === "zoom") {
    state.zoom = start.zoom;
    zoomBy(Math.exp(-down * 4));
  } else {
    Object.assign(state, { x: start.x - right / start.zoom, y: start.y - down / start.zoom });
    paint();
  }
}

/** A click or a drag on the curves moves to the slice there; hovering does nothing. */
function listenToChart(chart) {
  const seek = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = scales.svg.getBoundingClientRect(), across = (event.clientX - box.left) * scales.width / box.width;
    const distances = theSeries().x.map((x) => Math.abs(scales.toX(x) - across));
    moveTo(distances.indexOf(Math.min(...distances)));
  };
  chart.addEventListener("pointerdown", (event) => { chart.setPointerCapture(event.pointerId); seek(event); });
  chart.addEventListener("pointermove", seek);
}

function makeLink() {
  const series = theSeries(), named = new URLSearchParams({ study: series.study_uid, series: series.uid, slice: state.slice + 1 });
  if (state.label !== ANY) named.set("label", LABELS[state.label]);
  return `${location.href.split("#")[0]}#${named}`;
}

/** Keep the address at the slice: replaced from slice to slice, a new entry for a series, so that Back works. */
function writeAddress(push) {
  clearTimeout(writeAddress.timer);
  const write = () => { if (location.href !== makeLink()) history[push ? "pushState" : "replaceState"](null, "", makeLink()); };
  if (!writeAddress.ready) return; // opened, but not moved
  if (push) write();
  else writeAddress.timer = setTimeout(write, 200);
}

/** Open what the address names, `#study=UID&series=UID&slice=UID` or a number; say so where that is not here. */
function readAddress(first) {
  const given = new URLSearchParams(location.hash.slice(1)), label = LABELS.indexOf(given.get("label"));
  if (!first && !given.has("study") && !given.has("series")) return;
  if (label >= 0 && label !== state.label) chooseLabel(label);
  const [study, wanted, slice] = ["study", "series", "slice"].map((name) => given.get(name));
  const inStudy = (one) => !study || [one.study_uid, one.patient].includes(study);
  const named = (one) => inStudy(one) && (!wanted || [one.uid, one.name].includes(wanted));
  let number = wanted || !data.studies ? data.series.findIndex(named) : data.studies.find((one) => [one.uid, one.patient].includes(study))?.chosen ?? -1;
  const asked = study || wanted, found = number >= 0;
  if (!found || !asked) number = openFirst();
  const { slices } = data.series[number], place = slices.indexOf(slice);
  openSeries(number, found && place >= 0 ? place : found && /^\d{1,4}$/.test(slice || "") ? slice - 1 : null);
  writeAddress.ready = true;
  if (asked && !found) byId("address").textContent = `This page does not draw ${wanted ? `the series ${wanted}` : `the study ${study}`}, which its address names.`;
  else byId("address").textContent = "";
  if (asked) focusView();
}

/** The series that is open first: the one named, or the one that comes first in its list. */
function openFirst() {
  if (data.studies) return listStudies().map((number) => data.studies[number].chosen).find((chosen) => chosen !== null) ?? 0;
  return data.named ? 0 : listSeries()[0];
}
