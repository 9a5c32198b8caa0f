// The model, first on every page, and the studies of a page of scans: a row each.

const LIMITS = [
  "A low probability does not exclude hemorrhage, and a high one does not prove it.",
  "The probabilities are not calibrated for your scanner or your patients. The line at 0.5 is for orientation: no operating point has been set.",
  "Where bleeding is rare, many of the slices and series above 0.5 do not bleed.",
];
const NOTHING = "No label reaches 0.5 on any slice. This does not exclude hemorrhage.";
const sorting = { by: ANY, down: true };

/** The model's facts and limits; folded on a phone, the licence and the limits never. */
function drawModel() {
  const facts = make("dl", {}, ...[...data.model.slice(1), ...(data.windows ? [["what it sees", data.windows.map(nameWindow).join(", ")]] : [])]
    .flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
  const [, licence] = data.model.find(([name]) => name === "licence") || ["", "not known"], [, name] = data.model[0];
  main.append(make("section", { id: "model", class: data.warning ? "synthetic" : data.unknown ? "unknown" : null, "aria-labelledby": "model-heading" },
    data.warning && make("p", { class: "alarm", id: "alarm", role: "alert", text: data.warning }), data.unknown && make("p", { class: "unrecorded", text: data.unknown }),
    make("h2", { id: "model-heading" }, make("small", { text: "Model " }), name),
    make("div", { class: "halves" }, make("details", { class: "facts", open: innerWidth > 720 }, make("summary", { text: `Licence: ${licence}; source, training, figures` }), facts),
      make("div", {}, make("h3", { text: "Known limits" }), make("ul", {}, ...LIMITS.map((text) => make("li", { text })))))));
}

/** The numbers of the studies that the search finds, in the order chosen. */
function listStudies() {
  const words = (byId("find")?.value || "").trim().toLowerCase(), all = [...data.studies.keys()];
  const named = ({ patient, uid }) => `${patient} ${uid}`.toLowerCase();
  const value = (number) => data.studies[number].probabilities?.[sorting.by] ?? -1, sign = sorting.down ? 1 : -1;
  const compare = sorting.by === "study" ? (a, b) => -sign * named(data.studies[a]).localeCompare(named(data.studies[b])) : (a, b) => sign * (value(b) - value(a));
  return all.filter((number) => named(data.studies[number]).includes(words)).sort(compare);
}

function startStudies() {
  const find = make("input", { type: "search", id: "find", placeholder: "Find a patient or study", "aria-label": "Find a patient or study", autocomplete: "off", oninput: drawStudies });
  main.append(make("section", { id: "studies", "aria-labelledby": "studies-heading" },
    make("div", { class: "line" }, make("h2", { id: "studies-heading", text: `Studies (${data.studies.length})` }), find, data.series.length ? button("Print, a page a study", () => print()) : null),
    make("p", { class: "note", text: `One row a study. A probability is that of the chosen series${data.pooled ? ", the model's own" : ", the highest over its slices"}; bold from ${data.threshold}, which is no operating point. Key slice: where “any” is highest.` }),
    make("table", { role: "table" }, make("thead", { id: "studies-head" }), make("tbody", { id: "studies-body" }))));
  drawStudies();
}

function drawStudies() {
  const head = (name, by, more = {}) => make("th", { scope: "col", role: "columnheader", "aria-sort": sorting.by === by ? (sorting.down ? "descending" : "ascending") : null, ...more },
    make("button", { type: "button", class: "link", text: name, "data-sort": by, onclick: () => {
      Object.assign(sorting, { by, down: sorting.by === by ? !sorting.down : by !== "study" });
      drawStudies();
      byId("studies-head").querySelector(`[data-sort="${by}"]`).focus();
    } }));
  byId("studies-head").replaceChildren(make("tr", { role: "row" }, head("study", "study"), make("th", { scope: "col", text: "chosen series, and why" }),
    ...ORDER.map((label) => head(hyphenate(LABELS[label]), label, { class: "value" })), make("th", { scope: "col", text: "key slice" }), make("th", { scope: "col", text: "warnings" })));
  const rows = listStudies().map(drawStudy);
  byId("studies-body").replaceChildren(...(rows.length ? rows : [make("tr", {}, make("td", { colspan: ORDER.length + 4, text: "No study has this in its name." }))]));
}

function drawStudy(number) {
  const study = data.studies[number], series = study.chosen === null ? null : data.series[study.chosen], cell = (...children) => make("td", { role: "cell" }, ...children);
  const name = make("th", { scope: "row", role: "rowheader" }, series || study.page ? make("button", { type: "button", class: "link", text: study.patient, onclick: () => openStudy(study, state.label) }) : make("b", { text: study.patient }),
    study.description && make("small", { text: study.description }), " ", data.warning && make("span", { class: "flag", text: "synthetic weights" }));
  const mark = { role: "row", "data-study": number, "aria-current": series && number === theSeries().study ? "true" : null };
  if (!study.probabilities)
    return make("tr", mark, name, make("td", { role: "cell", colspan: ORDER.length + 2 }, make("b", { text: "No series was scored. " }), "Nothing can be said of this study."), cell(listWarnings(study.left_out.map((one) => `${one.title}: ${one.reason}`))));
  const none = study.probabilities.every((value) => value < 0.5);
  return make("tr", mark, name, cell(study.title, make("small", { text: study.reason }), none && make("small", { text: NOTHING })),
    ...ORDER.map((label) => makeProbability(study, label)), cell(series && makeKeySlice(study, series)), cell(listWarnings(study.warnings, study.rest)));
}

function makeProbability(study, label) {
  const value = study.probabilities[label], name = LABELS[label], over = value >= data.threshold;
  return make("td", { role: "cell", class: `value${over ? " over" : ""}`, "data-label": name },
    make("button", { type: "button", class: "number", text: short(value), "aria-label": `${name} ${short(value)}, open its highest slice`, onclick: () => { chooseLabel(label); openStudy(study, label); } }),
    make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: `width:${(100 * value).toFixed(1)}%` })));
}

function makeKeySlice(study, series) {
  const i = highest(series, ANY);
  return make("div", { class: "key" }, make("button", { type: "button", class: "thumbnail", "aria-label": `Open ${study.patient} at slice ${i + 1}, the highest of any`, onclick: () => openStudy(study, ANY) }, makeThumbnail(study.chosen, i)),
    make("div", {}, `slice ${i + 1} of ${series.x.length}`, make("small", { text: `instance ${series.instances[i] ?? "–"}` }), make("small", { text: position(series, i) })));
}

const listWarnings = (warnings, rest = "") => make("ul", { class: "warnings" }, ...warnings.map((text) => make("li", { text })), rest && make("li", { class: "rest", text: rest }));

/** Open a study's chosen series at a label's highest slice, here or on the study's own page. */
function openStudy(study, label) {
  if (study.page) return location.assign(`${study.page}#label=${LABELS[label]}`);
  openSeries(study.chosen, highest(data.series[study.chosen], label), true);
  focusView();
}

function markStudy() {
  for (const row of byId("studies-body").querySelectorAll("[data-study]"))
    row[+row.dataset.study === theSeries().study ? "setAttribute" : "removeAttribute"]("aria-current", "true");
}

/** A series of the open study in the list: what it is, its highest probability, its warnings. */
function describeScan(series) {
  const chosen = data.studies[series.study].chosen === series.index;
  return [make("span", { class: "name" }, make("span", { text: series.title }), chosen && make("span", { class: "badge", text: "chosen" })),
    make("small", { text: series.facts }), make("span", { text: `any ${short(valuesOf(series, ANY)[highest(series, ANY)])}` }),
    listWarnings(series.warnings, chosen ? `Chosen: ${data.studies[series.study].reason}` : "")];
}

const listLeftOut = (study) => study.left_out.map((one) => make("li", { class: "off" }, make("b", { text: one.title }), make("small", { text: one.facts }), make("span", {}, make("b", { text: "left out: " }), one.reason)));
