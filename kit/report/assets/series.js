// The list of series beside the reader, and the curves along the series that is open.

const entropy = (truth, probability) => {
  const p = Math.min(1 - CLIP, Math.max(CLIP, probability));
  return -Math.log(truth ? p : 1 - p);
};
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The ensemble's loss on each slice for the selected label or, without truth, its probability. */
function rateSlices(series) {
  const values = valuesOf(series, state.label);
  return series.truth ? values.map((p, i) => entropy(series.truth[state.label][i], p)) : values.map((p) => p ?? -1);
}

const rateSeries = (series) => (series.truth ? mean(rateSlices(series)) : Math.max(...rateSlices(series)));

/** The field that searches the series of a run's page; a page of studies has the list of studies. */
function makeSearch() {
  if (data.studies) return [];
  return [make("input", { type: "search", id: "search", placeholder: "Search patient or series", "aria-label": "Search patient or series", autocomplete: "off", oninput: drawRail })];
}

/** The numbers of the series in the list: those of the study, or what the search finds, by `rateSeries`. */
function listSeries() {
  const all = [...data.series.keys()];
  if (data.studies) return data.studies[theSeries().study].series;
  const wanted = byId("search").value.trim().toLowerCase(), rates = data.series.map(rateSeries);
  return all.filter((number) => data.series[number].name.toLowerCase().includes(wanted)).sort((a, b) => rates[b] - rates[a]);
}

function drawRail() {
  const items = listSeries().map((number) => make("li", {}, make("button", {
    type: "button", class: "one", title: data.series[number].name, "data-number": number, onclick: () => openSeries(number, null, true),
  }, ...(data.studies ? describeScan : describeSeries)(data.series[number]))));
  const rest = data.studies ? listLeftOut(data.studies[theSeries().study]) : listOthers();
  byId("found").replaceChildren(...items, ...rest);
  if (!items.length && !rest.length) byId("found").append(make("li", { class: "off", text: "No series name contains this." }));
  byId("order").textContent = data.studies ? "" : describeOrder();
  markOpened();
}

function describeOrder() {
  const drawn = data.series.length, others = (data.others || []).length, [key, which] = data.series[0].truth
    ? ["the ensemble's mean loss for the selected label, highest first", "highest loss"] : ["their highest probability for the selected label", "highest probability"];
  if (drawn + others === 1) return `The series opens at the slice with the ${which}.`;
  const chosen = others ? ` This page draws ${drawn} of ${drawn + others} series: the first for each label, and a sample of the rest.` : "";
  return `Series are sorted by ${key}.${chosen} A series opens at the slice with the ${which}.`;
}

/** Mark the open series in the list and scroll the list to it. */
function markOpened() {
  const list = byId("found");
  for (const one of list.querySelectorAll("button")) one.setAttribute("aria-current", +one.dataset.number === state.series);
  const opened = list.querySelector("[aria-current=true]")?.parentElement;
  if (!opened) return;
  const top = opened.offsetTop - list.offsetTop, left = opened.offsetLeft - list.offsetLeft;
  if (top < list.scrollTop || top + opened.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top;
  if (list.scrollWidth > list.clientWidth) list.scrollLeft = left - 8;
}

/** A series of a run in the list: its patient, its rate, the end of its UID, how much of it bleeds. */
function describeSeries(series) {
  const name = series.uid.length > 16 ? `…${series.uid.slice(-12)}` : series.uid;
  const bleeding = series.truth && series.truth[state.label].reduce((sum, value) => sum + value, 0);
  const slices = series.truth ? `${bleeding} of ${count(series.x.length, "slice")} labelled ${LABELS[state.label]}` : count(series.x.length, "slice");
  return [make("span", { class: "name" }, make("span", { text: series.patient }), make("span", { text: rateSeries(series).toFixed(3) })), make("small", { text: `${name}, ${slices}` })];
}

/** Series that match the search but are not drawn on this page. */
function listOthers() {
  const wanted = byId("search").value.trim().toLowerCase();
  if (!wanted) return [];
  const met = (data.others || []).filter((name) => name.toLowerCase().includes(wanted));
  const advice = data.histories ? "; kit report RUN --series NAME draws it" : "";
  const items = met.slice(0, 10).map((name) => make("li", { class: "off", text: `${name} (not drawn on this page${advice})` }));
  if (met.length > 10) items.push(make("li", { class: "off", text: `and ${met.length - 10} more that are not drawn here` }));
  return items;
}

/** The curves of a series: of all labels or, where several models predicted, of these for one label. */
function plotSeries(holder, series, more = {}) {
  const models = Object.keys(series.probabilities), { x } = series;
  const lines = models.length > 1
    ? models.filter((model) => !state.hidden.has(model)).map((model) => ({ ...MODELS[model], name: model, x, y: series.probabilities[model][state.label] }))
    : ORDER.toReversed().sort((a, b) => (a === state.label) - (b === state.label)).map((label) => ({ ...styleOf(label, label === state.label), name: LABELS[label], x, y: valuesOf(series, label) }));
  return plot(holder, {
    x: { low: Math.min(x[0], 0), high: x.at(-1) || 1, name: series.axis }, y: { low: 0, high: 1, name: models.length > 1 ? `probability, ${LABELS[state.label]}` : "probability" },
    bands: findBands(series), level: data.threshold ?? 0.5, lines, height: 200, crosses: x.filter((_, i) => valuesOf(series, ANY)[i] === null), ...more,
  });
}

function drawChart() {
  if (!byId("chart").clientWidth) return;
  scales = plotSeries(byId("chart"), theSeries());
  scales.cursor = make("line", { class: "cursor", id: "cursor", y1: scales.top, y2: scales.bottom });
  scales.dot = make("circle", { r: 4.5, class: "dot" });
  scales.svg.append(scales.cursor, scales.dot);
  drawLegend(theSeries());
  markChart();
}

function markChart() {
  if (!scales) return;
  const series = theSeries(), across = scales.toX(series.x[state.slice]), value = valuesOf(series, state.label)[state.slice];
  for (const end of ["x1", "x2"]) scales.cursor.setAttribute(end, across);
  scales.dot.setAttribute("visibility", value === null ? "hidden" : "visible");
  scales.dot.setAttribute("cx", across);
  scales.dot.setAttribute("cy", scales.toY(value ?? 0));
}

/** Intervals along x where the truth is positive; a slice extends halfway to each neighbour. */
function findBands(series) {
  if (!series.truth) return [];
  const { x } = series, last = x.length - 1, half = last ? (x[last] - x[0]) / last / 2 : 0.5, bands = [];
  const edge = (i) => (i < 0 ? x[0] : i >= last ? x[last] : (x[i] + x[i + 1]) / 2);
  series.truth[state.label].forEach((value, i) => {
    if (!value) return;
    const from = edge(i - 1), to = last ? edge(i) : half * 2;
    if (bands.length && bands.at(-1)[1] === from) bands.at(-1)[1] = to;
    else bands.push([from, to]);
  });
  return bands;
}

/** What the lines mean; the bars above explain those of the labels. */
function drawLegend(series) {
  const models = Object.keys(series.probabilities), items = models.length < 2 ? [] : models.map((model) => {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(model), "data-model": model, onchange: () => {
      state.hidden[box.checked ? "delete" : "add"](model);
      drawChart();
      byId("chart-legend").querySelector(`[data-model="${model}"]`).focus();
    } });
    return make("li", {}, make("label", {}, box, swatch(MODELS[model]), MODELS[model].name, make("b", { "data-value": model, text: short(series.probabilities[model][state.label][state.slice]) })));
  });
  if (series.truth) items.push(make("li", {}, swatch({ band: true }), `truth: ${LABELS[state.label]}`));
  items.push(make("li", {}, swatch({ color: "--soft", dash: "2 4" }), data.threshold && data.threshold !== 0.5 ? `threshold ${data.threshold}` : "0.5, for orientation"));
  byId("chart-legend").replaceChildren(...items);
}
