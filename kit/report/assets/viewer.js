// The series viewer: a plot of probability against slice position, and the slice under the cursor.

const entropy = (truth, probability) => {
  const p = Math.min(1 - CLIP, Math.max(CLIP, probability));
  return -Math.log(truth ? p : 1 - p);
};
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The ensemble's loss on each slice for the selected label or, without truth, its probability. */
function rateSlices(series) {
  const bag = series.probabilities.bag[state.label];
  return series.truth ? bag.map((p, i) => entropy(series.truth[state.label][i], p)) : bag;
}

const rateSeries = (series) => (series.truth ? mean(rateSlices(series)) : Math.max(...rateSlices(series)));

function startViewer() {
  const drawn = data.series.length, others = (data.others || []).length, several = drawn + others > 1;
  const [key, which] = data.series[0].truth
    ? ["the ensemble's mean loss for the selected label, highest first", "highest loss"]
    : ["their highest probability for the selected label", "highest probability"];
  const chosen = others ? ` This page draws ${drawn} of ${drawn + others} series: the first for each label, and a sample of the rest.` : "";
  const order = several ? `Series are sorted by ${key}.${chosen} A series opens at the slice with the ${which}.` : `The series opens at the slice with the ${which}.`;
  const text = `${order} Move with the slider, the arrow keys ← →, or the pointer over the plot.`;
  main.append(make("section", { id: "series", "aria-labelledby": "series-heading" },
    make("h2", { id: "series-heading", text: several ? "Series by series" : "Slice by slice" }),
    make("p", { class: "note", text }), make("p", { class: "note", id: "address", role: "status" }),
    make("div", { class: several ? "viewer" : "" }, ...(several ? [makeChooser()] : []), makeStage())));
  drawChooser();
  openSeries(data.named ? 0 : listSeries("")[0]);
  openAddress();
  addEventListener("hashchange", openAddress);
  redraws.push(() => { drawChooser(); drawStage(); });
  addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const typing = event.target.closest && event.target.closest("input, .scroll");
    if (!step || typing || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    moveTo(state.slice + step);
  });
}

function makeChooser() {
  const search = make("input", { type: "search", id: "search", placeholder: "Search patient or series", "aria-label": "Search patient or series", autocomplete: "off" });
  search.addEventListener("input", drawChooser);
  return make("nav", { class: "chooser", "aria-label": "Series" }, search, make("ul", { id: "found" }));
}

/** The numbers of the drawn series whose names contain the words, in the order of `rateSeries`. */
function listSeries(words) {
  const wanted = words.trim().toLowerCase();
  const rates = data.series.map(rateSeries);
  return data.series.map((_, number) => number)
    .filter((number) => data.series[number].name.toLowerCase().includes(wanted))
    .sort((a, b) => rates[b] - rates[a]);
}

function drawChooser() {
  const list = byId("found");
  if (!list) return;
  const words = byId("search").value;
  const items = listSeries(words).map((number) => {
    const series = data.series[number];
    const button = make("button", { type: "button", title: series.name, "data-number": number },
      make("span", { text: series.patient }),
      document.createTextNode(rateSeries(series).toFixed(3)),
      make("small", { text: describeSlices(series) }));
    button.addEventListener("click", () => openSeries(number));
    return make("li", {}, button);
  });
  list.replaceChildren(...items, ...listOthers(words));
  if (!list.children.length) list.append(make("li", { class: "other", text: "No series name contains this." }));
  markOpened();
}

/** Mark the open series in the list and scroll the list to it. */
function markOpened() {
  const list = byId("found");
  if (!list) return;
  for (const button of list.querySelectorAll("button"))
    button.setAttribute("aria-current", +button.dataset.number === state.series);
  const opened = list.querySelector("[aria-current=true]");
  if (!opened) return;
  const top = opened.offsetTop, bottom = top + opened.offsetHeight;
  if (top < list.scrollTop || bottom > list.scrollTop + list.clientHeight) list.scrollTop = top;
}

/** The end of the series' UID, which distinguishes the series of a patient, and its slices. */
function describeSlices(series) {
  const uid = series.name.split("/").pop();
  const name = uid.length > 16 ? `…${uid.slice(-12)}` : uid;
  if (!series.truth) return `${name}, ${count(series.x.length, "slice")}`;
  const positive = series.truth[state.label].reduce((sum, value) => sum + value, 0);
  return `${name}, ${positive} of ${series.x.length} positive`;
}

/** Series that match the search but are not drawn on this page. */
function listOthers(words) {
  const wanted = words.trim().toLowerCase();
  if (!wanted) return [];
  const met = (data.others || []).filter((name) => name.toLowerCase().includes(wanted));
  const advice = data.histories ? "; kit report RUN --series NAME draws it" : "";
  const items = met.slice(0, 10).map((name) => make("li", { class: "other", text: `${name} (not drawn on this page${advice})` }));
  if (met.length > 10) items.push(make("li", { class: "other", text: `and ${met.length - 10} more that are not drawn here` }));
  return items;
}

function makeStage() {
  const slider = make("input", { type: "range", id: "slider", min: 0, step: 1, "aria-label": "Slice" });
  slider.addEventListener("input", () => moveTo(+slider.value));
  const step = (by, text, name) => {
    const button = make("button", { type: "button", class: "step", text, "aria-label": name });
    button.addEventListener("click", () => moveTo(state.slice + by));
    return button;
  };
  const chart = make("div", { class: "plot", id: "chart" });
  for (const kind of ["pointermove", "pointerdown"])
    chart.addEventListener(kind, (event) => moveTo(findSlice(event.clientX)));
  return make("div", { class: "stage" },
    make("h3", { id: "series-name" }), chart, make("ul", { class: "legend", id: "chart-legend" }),
    make("div", { class: "slider" }, step(-1, "‹", "Previous slice"), slider, step(1, "›", "Next slice")),
    make("figure", { class: "windows" },
      make("div", { class: "frame" },
        make("img", { id: "slice", alt: "" }), make("canvas", { id: "map" }), make("div", { class: "empty", id: "empty" })),
      make("figcaption", {}, ...data.windows.map((text) => make("span", { text })))),
    make("output", { class: "readout", id: "readout", for: "slider" }), makeMapSwitch());
}

function makeMapSwitch() {
  if (data.unmapped) return make("p", { class: "note", text: `No Grad-CAM overlay: ${data.unmapped} has no feature maps to compute it from.` });
  if (!data.series.some((series) => series.maps)) return make("span");
  const box = make("input", { type: "checkbox", id: "overlay", checked: true });
  box.addEventListener("change", () => { state.maps = box.checked; drawSlice(); });
  const [rows, columns] = data.series.find((series) => series.maps).maps.shape;
  const coarse = Math.min(rows, columns) < 6 ? ", which is too coarse to localize it" : "";
  return make("div", {}, make("label", { class: "check" }, box, document.createTextNode("Grad-CAM overlay")),
    make("p", { class: "note", text: `Where one classifier of the run finds evidence for the label, on a grid of ${rows} × ${columns} cells${coarse}. The strongest cell of a slice is coloured in proportion to that classifier's probability of the label; full colour stands for a probability of 1.` }));
}

function openSeries(number) {
  state.series = number;
  const rates = rateSlices(data.series[number]);
  state.slice = rates.indexOf(Math.max(...rates));
  markOpened();
  drawStage();
}

/** Open what the page's address names, `#series=UID&slice=UID`, as `kit evaluate` writes it. */
function openAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1)), series = wanted.get("series");
  if (!series) return;
  const number = data.series.findIndex((one) => one.name.split("/").pop() === series);
  byId("address").textContent = number < 0 ? `This page does not draw the series ${series}, which its address names.` : "";
  if (number >= 0) {
    openSeries(number);
    const slice = data.series[number].slices.indexOf(wanted.get("slice"));
    if (slice >= 0) moveTo(slice);
  }
  byId("series").scrollIntoView({ block: "start" });
}

let scales = null;

function drawStage() {
  const series = data.series[state.series];
  const last = series.x[series.x.length - 1];
  const shown = Object.keys(series.probabilities).filter((model) => !state.hidden.has(model));
  byId("series-name").textContent = series.name + (series.fold !== null && series.fold >= 0 ? `, held out in fold ${series.fold}` : "");
  const alone = Object.keys(series.probabilities).length === 1;
  byId("slider").max = series.x.length - 1;
  scales = plot(byId("chart"), {
    x: { low: 0, high: last || 1, name: series.axis }, y: { low: 0, high: 1, name: `probability, ${LABELS[state.label]}` },
    bands: findBands(series), level: data.threshold, height: innerWidth < 720 ? 230 : 280,
    lines: shown.map((model) => ({ ...MODELS[model], ...(alone && { dash: "" }), name: model, x: series.x, y: series.probabilities[model][state.label] })),
  });
  scales.cursor = make("line", { class: "cursor", id: "cursor", y1: scales.top, y2: scales.bottom });
  scales.svg.append(scales.cursor);
  drawLegend(series);
  drawSlice();
}

/** Intervals along x where the truth is positive; a slice extends halfway to each neighbour. */
function findBands(series) {
  if (!series.truth) return [];
  const { x } = series;
  const last = x.length - 1;
  const half = last ? (x[last] - x[0]) / last / 2 : 0.5;
  const edge = (i) => (i < 0 ? x[0] : i >= last ? x[last] : (x[i] + x[i + 1]) / 2);
  const bands = [];
  series.truth[state.label].forEach((value, i) => {
    if (!value) return;
    const from = edge(i - 1), to = last ? edge(i) : half * 2;
    if (bands.length && bands[bands.length - 1][1] === from) bands[bands.length - 1][1] = to;
    else bands.push([from, to]);
  });
  return bands;
}

function drawLegend(series) {
  const items = Object.keys(series.probabilities).map((model) => {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(model), "data-model": model });
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](model);
      drawStage();
      document.querySelector(`#chart-legend [data-model="${model}"]`).focus();
    });
    const single = Object.keys(series.probabilities).length === 1;
    return make("li", {}, make("label", {}, ...(single ? [] : [box]), swatch({ ...MODELS[model], ...(single && { dash: "" }) }), document.createTextNode(MODELS[model].name)));
  });
  if (series.truth) items.push(make("li", {}, swatch({ band: true }), document.createTextNode("truth: bleeding")));
  if (data.threshold != null) items.push(make("li", {}, swatch({ color: "--soft", dash: "2 4" }), document.createTextNode(`threshold ${data.threshold}`)));
  byId("chart-legend").replaceChildren(...items);
}

/** The slice whose position is nearest to a screen coordinate. */
function findSlice(clientX) {
  const box = scales.svg.getBoundingClientRect();
  const across = (clientX - box.left) * scales.width / box.width;
  const distances = data.series[state.series].x.map((x) => Math.abs(scales.toX(x) - across));
  return distances.indexOf(Math.min(...distances));
}

function moveTo(slice) {
  const bounded = Math.max(0, Math.min(data.series[state.series].x.length - 1, slice));
  if (bounded === state.slice) return;
  state.slice = bounded;
  drawSlice();
}

function drawSlice() {
  const series = data.series[state.series], i = state.slice;
  byId("slider").value = i;
  byId("slider").setAttribute("aria-valuetext", `slice ${i + 1} of ${series.x.length}`);
  const across = scales.toX(series.x[i]);
  scales.cursor.setAttribute("x1", across);
  scales.cursor.setAttribute("x2", across);
  const image = series.images[i], drawn = image.startsWith("data:image/");
  byId("slice").hidden = !drawn;
  byId("empty").hidden = drawn;
  if (drawn) byId("slice").src = image;
  else byId("empty").textContent = image;
  byId("slice").alt = `slice ${i + 1} in three windows`;
  drawMap(series, drawn);
  const parts = [["slice", `${i + 1} of ${series.x.length}`], series.axis === "instance number" ? ["step", series.x[i]] : ["at", `${series.x[i].toFixed(1)} mm`]];
  if (series.truth) parts.push(["truth", series.truth[state.label][i] ? "bleeding" : "none"]);
  for (const [model, rows] of Object.entries(series.probabilities))
    parts.push([MODELS[model].name, rows[state.label][i].toFixed(3)]);
  byId("readout").replaceChildren(...parts.map(([name, value]) => make("span", {}, document.createTextNode(`${name} `), make("b", { text: value }))));
  if (state.markRow) state.markRow();
}

/** Draw Grad-CAM over each of the three windows, interpolated smoothly. */
function drawMap(series, drawn) {
  const canvas = byId("map");
  canvas.hidden = !(series.maps && state.maps && drawn);
  if (canvas.hidden) return;
  const [rows, columns] = series.maps.shape;
  series.bytes ||= Uint8Array.from(atob(series.maps.bytes), (letter) => letter.charCodeAt(0));
  const size = rows * columns, first = (state.slice * LABELS.length + state.label) * size;
  const small = paint(columns, rows, (place) => ["255, 120, 40", series.bytes[first + place] / 255 * 0.65]);
  const side = 160;
  canvas.width = side * 3;
  canvas.height = side;
  const context = canvas.getContext("2d");
  for (let window = 0; window < 3; window += 1) context.drawImage(small, window * side, 0, side, side);
}

/** A canvas of columns × rows pixels; `color` returns [red-green-blue, opacity] of each pixel. */
function paint(columns, rows, color) {
  const canvas = make("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  for (let place = 0; place < columns * rows; place += 1) {
    const [tone, opacity] = color(place);
    context.fillStyle = `rgba(${tone}, ${opacity.toFixed(3)})`;
    context.fillRect(place % columns, Math.floor(place / columns), 1, 1);
  }
  return canvas;
}

/** The T × T matrix of contributions for the selected label, and the row of the slice shown. */
function drawExplanation(body) {
  const matrix = data.explanation[LABELS[state.label]], slices = matrix.length;
  const sizes = matrix.flatMap((row, i) => row.filter((_, j) => j !== i)).map(Math.abs).sort((a, b) => a - b);
  const full = Math.max(1e-6, sizes[Math.floor(0.99 * (sizes.length - 1))]);
  const heat = make("div", { class: "plot heat", id: "heat" }), row = make("div", { class: "plot", id: "row" });
  const heading = make("h3");
  body.replaceChildren(make("div", { class: "plots" },
    make("div", {}, make("h3", { text: "All pairs of slices" }), heat, makeScale(full)),
    make("div", {}, heading, row, make("p", { class: "note", text: "Outlined: the slice's contribution to its own prediction." }))));
  const frame = drawMatrix(heat, matrix, full);
  state.markRow = () => {
    frame(state.slice);
    heading.textContent = `Contributions to slice ${state.slice + 1}`;
    const most = 1.1 * Math.max(full / 2, ...matrix[state.slice].map(Math.abs));
    const { svg, toX, toY } = plot(row, {
      x: { low: 0.5, high: slices + 0.5, whole: true, name: "slice replaced" },
      y: { low: -most, high: most, name: "decrease of the logit" }, height: heat.clientHeight,
    });
    const half = (toX(2) - toX(1)) * 0.4;
    matrix[state.slice].forEach((value, j) => svg.append(make("rect", {
      class: j === state.slice ? "own" : null, x: toX(j + 1) - half, width: half * 2, y: toY(Math.max(0, value)), height: Math.abs(toY(value) - toY(0)),
      style: `fill:rgb(var(${value > 0 ? "--more" : "--less"}))`,
    })));
    svg.append(make("line", { class: "axis", x1: toX(0.5), x2: toX(slices + 0.5), y1: toY(0), y2: toY(0) }));
  };
  state.markRow();
}

/** Draw the matrix and return a function that frames a row. */
function drawMatrix(holder, matrix, full) {
  const slices = matrix.length, range = { low: 0.5, high: slices + 0.5, whole: true };
  const { svg, toX, toY } = plot(holder, { x: { ...range, name: "slice replaced" }, y: { ...range, name: "slice explained" }, square: true });
  const style = getComputedStyle(document.documentElement);
  const tones = [style.getPropertyValue("--less"), style.getPropertyValue("--more")];
  const canvas = paint(slices, slices, (place) => {
    const value = matrix[slices - 1 - Math.floor(place / slices)][place % slices];
    return [tones[+(value > 0)], Math.min(1, Math.abs(value) / full)];
  });
  const box = { x: toX(0.5), width: toX(slices + 0.5) - toX(0.5) };
  svg.append(make("image", {
    ...box, y: toY(slices + 0.5), height: toY(0.5) - toY(slices + 0.5), href: canvas.toDataURL(),
    preserveAspectRatio: "none", style: "image-rendering:pixelated",
  }));
  const height = toY(1) - toY(2), own = make("rect", { height, width: toX(2) - toX(1), class: "own" });
  const frame = make("rect", { ...box, height, class: "cursor" });
  svg.append(own, frame);
  svg.addEventListener("pointerdown", (event) => {
    const box = svg.getBoundingClientRect(), down = (event.clientY - box.top) / box.height * svg.viewBox.baseVal.height;
    moveTo(Math.round((toY(1) - down) / (toY(1) - toY(2))));
  });
  return (slice) => {
    for (const rect of [frame, own]) rect.setAttribute("y", toY(slice + 1.5));
    own.setAttribute("x", toX(slice + 0.5));
  };
}

const makeScale = (full) => make("div", { class: "scale" },
  make("span", { text: `−${full.toFixed(2)}` }), make("i"), make("span", { text: `+${full.toFixed(2)} logits or more` }));
