// The reader: one slice in any window, its six probabilities, and their curves along the series.

const PRESETS = [["brain", 40, 80], ["subdural", 80, 200], ["soft tissue", 40, 380], ["stroke", 40, 40], ["bone", 600, 2800]];
const DASHES = ["7 3", "2 3", "10 3 2 3", "14 4", "4 4", ""]; // in the order of LABELS
const CORNERS = ["lw", "le", "ln", "ls"]; // where the letters of an edge stand: left, right, top, bottom
const ANY = LABELS.indexOf("any"), ORDER = [ANY, ...LABELS.keys()].filter((label, i) => !i || label !== ANY);
const LOADING = "Loading the slice …";
// The decoded slice in sight, how many were asked for, where one is windowed, whose series are listed.
const shown = { slice: null, turn: 0, canvas: null, list: null };
let scales = null;

const theSeries = () => data.series[state.series];
const valuesOf = (series, label) => series.probabilities.bag[label];
const highest = (series, label) => valuesOf(series, label).reduce((best, value, i, all) => (value !== null && (best < 0 || value > all[best]) ? i : best), -1);
const short = (value) => (value == null ? "–" : value < 0.001 ? "<.001" : value > 0.999 ? ">.999" : value.toFixed(3).replace(/^0/, ""));
const nameWindow = ([center, width]) => `${(PRESETS.find((one) => one[1] === center && one[2] === width) || ["window"])[0]} ${center}/${width}`;
const styleOf = (label, bold) => ({ color: `--${LABELS[label]}`, dash: DASHES[label], width: bold ? 3 : 1.5 });
const button = (text, onclick, more = {}) => make("button", { type: "button", class: "button", text, onclick, ...more });
const spread = (millimetres) => `${+millimetres.toFixed(1)} mm`;
const position = (series, i) => (series.axis === "instance number" ? "–" : spread(series.x[i]));

function say(text) {
  byId("said").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { byId("said").textContent = ""; }, 2500);
}

function startReader() {
  const body = make("div", { class: `reader${data.series.length + (data.others || []).length > 1 ? "" : " single"}` },
    make("nav", { class: "rail", "aria-label": data.studies ? "Series of this study" : "Series" }, ...makeSearch(), make("ul", { id: "found" })),
    make("div", { class: "stage" },
      make("div", {}, makeTools(), makeView(), makeSlider()),
      make("div", {}, ...makeSide()),
      make("figure", { class: "strip", id: "strip", hidden: true },
        ...data.windows.map((one, i) => make("div", {}, blank(), make("figcaption", { text: `${i ? "" : "The model's windows: "}${nameWindow(one)}` }))))));
  main.append(make("section", { id: "reader", "aria-labelledby": "series-name" },
    make("div", { class: "line" }, make("h2", { id: "series-name" }),
      data.warning && make("span", { class: "flag", text: "synthetic weights" }), button("Keys and mouse", () => byId("keys").showModal(), { title: "?" })),
    make("p", { class: "note", id: "order" }), make("p", { class: "note", id: "address", role: "status" }), body, makeHelp()));
  byId("skip").hidden = false;
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); focusView(); });
  shown.canvas = blank();
  if (!data.studies) redraws.push(drawRail);
  listenToView(byId("view"));
  listenToChart(byId("chart"));
  setMode(matchMedia("(pointer: coarse)").matches ? "slices" : "window");
  new ResizeObserver(paint).observe(byId("view"));
  new ResizeObserver(drawChart).observe(byId("chart"));
  readAddress(true);
  addEventListener("hashchange", () => readAddress(false));
}

function focusView() {
  byId("reader").scrollIntoView({ behavior: "instant" });
  byId("view").focus({ preventScroll: true });
}

function makeTools() {
  const number = (id, name, text) => make("label", {}, text, make("input", { type: "number", id, step: 5, "aria-label": name, onchange: () => setWindow(...["center", "width"].map((one) => (byId(one).value === "" ? state[one] : +byId(one).value))) }));
  const mode = (name, text, title) => button(text, () => setMode(name), { "data-mode": name, title });
  return make("div", { class: "tools" },
    make("select", { id: "preset", "aria-label": "Window preset", onchange: (event) => PRESETS[event.target.value] && setWindow(...PRESETS[event.target.value].slice(1)) },
      ...PRESETS.map(([name, ...window], i) => make("option", { value: i, text: `${i + 1}  ${name} ${window.join("/")}` })), make("option", { value: "free", text: "free", hidden: true })),
    number("center", "Window center, HU", "C"), number("width", "Window width, HU", "W"),
    make("span", { class: "group", role: "group", "aria-label": "What a drag on the image does" },
      mode("window", "Window", "A drag sets the window: right is wider, down is darker."), mode("slices", "Slices", "A drag moves through the slices."), mode("move", "Move", "A drag moves the zoomed image.")),
    make("span", { class: "group", role: "group", "aria-label": "Zoom" }, button("−", () => zoomBy(0.8), { "aria-label": "Zoom out" }), button("+", () => zoomBy(1.25), { "aria-label": "Zoom in" }), button("fit", resetView)));
}

const makeView = () => make("div", { id: "view", tabindex: 0, role: "slider", "aria-label": "Slice", "aria-orientation": "vertical", "aria-valuemin": 1, "aria-description": "Arrow keys change the slice; the question mark lists all keys." },
  make("canvas", { id: "canvas", "aria-hidden": "true" }),
  ...["tl", "tr", "bl", "br"].map((id) => make("div", { class: "corner", id })),
  ...CORNERS.map((id) => make("div", { class: "corner letter", id })), make("div", { id: "state", hidden: true }));

const makeSlider = () => make("div", { class: "slider" }, button("‹", () => moveTo(state.slice - 1), { "aria-label": "Previous slice" }),
  make("input", { type: "range", id: "slider", min: 0, step: 1, "aria-label": "Slice", oninput: (event) => moveTo(+event.target.value) }),
  button("›", () => moveTo(state.slice + 1), { "aria-label": "Next slice" }), make("output", { id: "count", for: "slider" }));

function makeSide() {
  const bar = (label) => make("label", {}, make("input", { type: "radio", name: "shown", value: LABELS[label], onchange: () => chooseLabel(label) }),
    swatch(styleOf(label, label === ANY)), make("span", {}, LABELS[label], make("span", { class: "truth", text: " truth", hidden: true })),
    make("span", { class: "track", "aria-hidden": "true" }, make("i", { style: `background:var(--${LABELS[label]})` })), make("span", { class: "value" }));
  return [
    make("div", { class: "line" }, make("h3", { text: "This slice" }), make("button", { type: "button", class: "link", id: "to-highest", onclick: moveToHighest })),
    make("fieldset", { class: "bars", id: "bars", "aria-label": "Probabilities of this slice" }, ...ORDER.map(bar)),
    make("h3", { text: "Along the series" }), make("div", { id: "chart", class: "plot" }), make("ul", { class: "legend", id: "chart-legend" }), makeMapSwitch(), make("dl", { class: "ids", id: "ids" })];
}

function makeMapSwitch() {
  if (data.unmapped) return make("p", { class: "note", text: `No overlay: ${data.unmapped} has no feature maps to compute it from.` });
  const mapped = data.series.find((series) => series.maps);
  if (!mapped) return null;
  const coarse = Math.min(...mapped.maps.shape) < 6 ? ", which is too coarse to localize it" : "";
  return make("div", {}, make("label", { class: "check" }, make("input", { type: "checkbox", id: "overlay", onchange: (event) => { state.overlay = event.target.checked; paint(); } }), make("span", { id: "overlay-name" })),
    make("p", { class: "note", text: `A coarse map (Grad-CAM, ${mapped.maps.shape.join(" × ")} cells${coarse}) of where one classifier finds evidence for the label. It shows where the model looked, not where blood is.` }));
}

function openSeries(number, slice = null, push = false) {
  const last = data.series[number].x.length - 1, worst = rateSlices(data.series[number]);
  Object.assign(state, { series: number, slice: slice === null ? Math.max(0, worst.indexOf(Math.max(...worst))) : Math.max(0, Math.min(last, slice)), zoom: 1, x: 0, y: 0 });
  const series = theSeries(), study = data.studies && data.studies[series.study];
  byId("series-name").replaceChildren(study ? study.patient : series.name, make("small", { text: !study && series.fold !== null && series.fold >= 0 ? `, held out in fold ${series.fold}` : "" }));
  byId("slider").max = last;
  byId("view").setAttribute("aria-valuemax", last + 1);
  if (shown.list === series.study) markOpened();
  else drawRail();
  shown.list = series.study;
  if (study) markStudy();
  drawChart();
  drawSlice(push);
}

function moveTo(slice) {
  const bounded = Math.max(0, Math.min(theSeries().x.length - 1, slice));
  if (bounded === state.slice) return;
  state.slice = bounded;
  drawSlice();
}

const moveToHighest = () => moveTo(highest(theSeries(), state.label));

/** Say which slice is open wherever that is said, and show it as soon as it is decoded. */
function drawSlice(push = false) {
  const series = theSeries(), i = state.slice, number = `${i + 1} of ${series.x.length}`, value = valuesOf(series, ANY)[i];
  byId("slider").value = i;
  byId("count").textContent = number;
  byId("view").setAttribute("aria-valuenow", i + 1);
  for (const id of ["view", "slider"]) byId(id).setAttribute("aria-valuetext", `slice ${number}, ${position(series, i)}, ${value === null ? "not readable" : `any ${short(value)}`}`);
  byId("tl").replaceChildren(series.patient, make("br"), series.title || "");
  byId("bl").replaceChildren(`slice ${i + 1} / ${series.x.length}`, make("br"), `${position(series, i)} · instance ${series.instances[i] ?? "–"}`);
  (series.letters[i] || ",,,").split(",").forEach((letter, k) => { byId(CORNERS[k]).textContent = letter; });
  drawBars();
  drawIds();
  markChart();
  writeAddress(push);
  if (state.markRow) state.markRow();
  loadSlice();
}

async function loadSlice() {
  const turn = ++shown.turn, { series: number, slice: i } = state, series = theSeries();
  const show = (slice, ...message) => {
    clearTimeout(slow);
    if (turn !== shown.turn) return;
    shown.slice = slice;
    byId("view").setAttribute("aria-busy", message[0] === LOADING);
    byId("state").hidden = !message.length;
    byId("state").replaceChildren(make("p", {}, ...message));
    paint();
    drawStrip();
  };
  byId("view").setAttribute("aria-busy", true);
  const slow = setTimeout(() => show(null, LOADING), 120); // until then the last one stays
  try {
    const slice = await decode(number, i), reason = series.reasons?.[i];
    if (slice) show(slice);
    else if (reason) show(null, make("b", { text: "There is no image of this slice" }), `${reason}.`, valuesOf(series, ANY)[i] === null ? " It has no probabilities; its neighbours were scored without it." : "");
    else show(null, make("b", { text: "No image on this page" }), "Its images would make the page too large to open quickly.");
    for (const near of [1, -1, 2, -2, 3]) if (turn === shown.turn && series.x[i + near] !== undefined) decode(number, i + near).catch(() => null);
  } catch {
    show(null, make("b", { text: "This image is damaged" }), "The page was cut short, or the browser cannot read WebP.");
  }
}

/** Draw the slice in its window, zoomed and moved, with the overlay where that is on. */
function paint() {
  const view = byId("view"), canvas = byId("canvas"), wide = Math.round(view.clientWidth * devicePixelRatio), context = canvas.getContext("2d");
  if (canvas.width !== wide) canvas.width = canvas.height = wide;
  const reach = (1 - 1 / state.zoom) / 2, bound = (value) => Math.min(reach, Math.max(-reach, value)); // in widths of the image
  Object.assign(state, { x: bound(state.x), y: bound(state.y) });
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, wide, wide);
  byId("tr").replaceChildren(...(data.warning ? [make("b", { class: "alarmed", text: "synthetic weights" }), make("br")] : []), `C ${state.center}  W ${state.width}`, ...(state.zoom > 1 ? [make("br"), `zoom ${state.zoom.toFixed(2)}`] : []));
  byId("center").value = state.center;
  byId("width").value = state.width;
  const preset = PRESETS.findIndex(([, center, width]) => center === state.center && width === state.width);
  byId("preset").value = preset < 0 ? "free" : preset;
  drawRule(view.clientWidth);
  for (const id of CORNERS) byId(id).hidden = !shown.slice;
  if (!shown.slice) return;
  const scale = wide * state.zoom;
  context.imageSmoothingQuality = "high";
  context.setTransform(scale, 0, 0, scale, wide / 2 - (0.5 + state.x) * scale, wide / 2 - (0.5 + state.y) * scale);
  context.drawImage(shade(shown.slice, state.center, state.width, shown.canvas), 0, 0, 1, 1);
  if (state.overlay) drawMap(context);
}

/** The bar of 50 or 10 mm, where the size of a pixel is known. */
function drawRule(wide) {
  const size = theSeries().mm?.[state.slice], long = shown.slice && size ? wide * state.zoom / (size * shown.slice.side) : 0; // pixels per mm
  const length = 50 * long > 260 ? 10 : 50;
  byId("br").replaceChildren(...(long ? [`${length} mm`, make("i", { class: "rule", style: `width:${(length * long).toFixed(0)}px` })] : []));
}

function drawMap(context) {
  const { maps } = theSeries();
  if (!maps) return;
  maps.values ||= Uint8Array.from(atob(maps.bytes), (letter) => letter.charCodeAt(0));
  const [rows, columns] = maps.shape, first = (state.slice * LABELS.length + state.label) * rows * columns;
  context.drawImage(tint(columns, rows, (place) => ["255, 140, 40", maps.values[first + place] / 255 * 0.6]), ...maps.views[state.slice]);
}

/** A canvas of columns × rows pixels; `color` returns [red-green-blue, opacity] of each pixel. */
function tint(columns, rows, color) {
  const canvas = make("canvas", { width: columns, height: rows }), context = canvas.getContext("2d");
  for (let place = 0; place < columns * rows; place += 1) {
    const [tone, opacity] = color(place);
    context.fillStyle = `rgba(${tone}, ${opacity.toFixed(3)})`;
    context.fillRect(place % columns, Math.floor(place / columns), 1, 1);
  }
  return canvas;
}

function drawStrip() {
  byId("strip").hidden = !shown.slice;
  if (byId("overlay")) byId("overlay").disabled = !shown.slice || !theSeries().maps;
  if (shown.slice) data.windows.forEach((window, i) => shade(shown.slice, ...window, byId("strip").children[i].firstChild));
}

function chooseLabel(label) {
  state.label = label;
  redraws.forEach((redraw) => redraw());
  if (!data.series.length) return;
  drawChart();
  drawBars();
  paint();
}

function drawBars() {
  const series = theSeries(), best = highest(series, state.label), name = LABELS[state.label];
  [...byId("bars").children].forEach((row, place) => {
    const label = ORDER[place], value = valuesOf(series, label)[state.slice];
    row.querySelector("input").checked = label === state.label;
    row.querySelector("i").style.width = `${(100 * (value || 0)).toFixed(1)}%`;
    row.querySelector(".value").textContent = short(value);
    row.querySelector(".truth").hidden = !series.truth?.[label][state.slice];
  });
  byId("to-highest").textContent = best === state.slice ? `highest ${name}` : `to the highest: slice ${best + 1}`;
  if (byId("overlay")) byId("overlay-name").textContent = `Overlay of “${name}”`;
  for (const one of document.querySelectorAll("[data-value]")) one.textContent = short(series.probabilities[one.dataset.value][state.label][state.slice]);
}

function drawIds() {
  const series = theSeries(), i = state.slice;
  const row = (name, text, copied = text) => [make("dt", { text: name }), make("dd", { title: text }, make("bdi", { text })),
    copied ? button("copy", () => copyText(copied, name), { "aria-label": `Copy ${name}` }) : make("span")];
  byId("ids").replaceChildren(...row("position", position(series, i), ""), ...row("InstanceNumber", series.instances[i] ?? "–", series.instances[i] ?? ""),
    ...row("SOPInstanceUID", series.slices[i]), ...row("SeriesInstanceUID", series.uid), ...row("link", "to this slice", makeLink));
}

async function copyText(given, name) {
  const text = typeof given === "function" ? given() : given;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // as where the page is not served by https
    const area = make("textarea", { class: "aside" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${name} copied`);
}
