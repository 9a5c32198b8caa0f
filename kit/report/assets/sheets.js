// What is printed of a page of scans: an overview, and a sheet of paper for each study.

const about = () => data.facts.map(([name, value]) => `${name} ${value}`).join(" · ");
const bold = (value) => (value >= data.threshold ? make("b", { text: short(value) }) : short(value));
const paragraph = (name, text) => make("p", {}, make("b", { text: `${name}: ` }), text);

/** A table whose columns are [name, class]; a cell is a text or an element. */
const sheetTable = (columns, rows) => make("table", {},
  make("thead", {}, make("tr", {}, ...columns.map(([text, kind]) => make("th", { class: kind, text })))),
  make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", { class: columns[i][1] }, ...[cell].flat()))))));

const makeSheet = (heading, ...children) => make("section", { class: "sheet" },
  make("header", {}, make("h2", { text: heading }), make("p", { class: "device", text: DEVICE })),
  data.warning && make("p", { class: "alarm", text: data.warning }), data.unknown && make("p", { class: "unrecorded", text: data.unknown }), ...children, make("p", { class: "mono", text: about() }));

/** The studies with the highest probability of any bleeding first, those without one last. */
const sortStudies = () => [...data.studies].sort((a, b) => (b.probabilities?.[ANY] ?? -1) - (a.probabilities?.[ANY] ?? -1));

function makeOverview() {
  const columns = [["study"], ["chosen series"], ...ORDER.map((label) => [hyphenate(LABELS[label]), "num"]), ["key slice", "num"], ["warnings"]];
  const rows = sortStudies().map((study) => {
    if (!study.probabilities) return [study.patient, "none was scored", ...ORDER.map(() => "–"), "–", study.rest];
    const series = data.series[study.chosen];
    return [study.patient, study.title, ...ORDER.map((label) => bold(study.probabilities[label])), series ? `${highest(series, ANY) + 1}\u00a0of\u00a0${series.x.length}` : "–", study.warnings.join("; ")];
  });
  return makeSheet(`${data.title}: ${data.studies.length} studies`, ...data.model.map(([name, value]) => paragraph(name, value)),
    make("h3", { text: "Known limits" }), make("ul", {}, ...LIMITS.map((text) => make("li", { text }))), make("h3", { text: "Studies" }), sheetTable(columns, rows));
}

/** The sheet of a study; its images are those of the slice with the highest “any”. */
async function makeStudySheet(study) {
  const facts = new Map(data.model), model = ["licence", "trained on", "known figures"].map((name) => `${name}: ${facts.get(name)}`).join(". ");
  const series = study.chosen === null ? null : data.series[study.chosen];
  return makeSheet(study.patient, study.description && make("p", { text: study.description }), make("p", { class: "mono", text: `StudyInstanceUID ${study.uid}` }),
    paragraph("Model", `${data.model[0][1]}. ${model}.`), make("p", { text: LIMITS[0] }),
    ...(series ? await describeOnPaper(study, series) : [make("h3", { text: "No series was scored" })]),
    make("h3", { text: "All series of the study" }), sheetTable([["series"], ["plane, kernel, mm, slices"], ["any", "num"], ["remarks"]], [
      ...study.series.map((number) => data.series[number]).map((one) => [one.title, one.facts, short(valuesOf(one, ANY)[highest(one, ANY)]), [one === series ? "chosen" : "", ...one.warnings].filter(Boolean).join("; ")]),
      ...study.left_out.map((one) => [one.title, one.facts, "–", `left out: ${one.reason}`])]));
}

async function describeOnPaper(study, series) {
  const i = highest(series, ANY), slice = await decode(study.chosen, i).catch(() => null), [left, right] = (series.letters[i] || ",").split(",");
  const chart = make("div", { class: "plot" }), none = study.probabilities.every((value) => value < 0.5);
  plotSeries(chart, series, { width: 690, height: 130 });
  return [
    make("h3", { text: `Series ${study.title}` }), make("p", { text: `Chosen: ${study.reason}. ${series.facts}.${none ? ` ${NOTHING}` : ""}` }), study.warnings.length ? paragraph("Warnings", `${study.warnings.join("; ")}.`) : null,
    sheetTable([["label"], ["highest", "num"], ["slice", "num"], ["InstanceNumber", "num"], ["position", "num"], ["SOPInstanceUID", "mono"]], ORDER.map((label) => {
      const best = highest(series, label);
      return [[swatch(styleOf(label, label === ANY)), ` ${LABELS[label]}`], bold(valuesOf(series, label)[best]), best + 1, series.instances[best] ?? "–", position(series, best), series.slices[best]];
    })),
    ...(slice ? [make("h3", { text: `Slice ${i + 1} of ${series.x.length}, the highest of any (${short(valuesOf(series, ANY)[i])})` }),
      make("div", { class: "figures" }, ...data.windows.map((window) => make("figure", {}, shade(slice, ...window, blank()), make("b", { class: "left", text: left }), make("b", { class: "right", text: right }), make("figcaption", { text: nameWindow(window) }))))] : []),
    make("h3", { text: "Along the series" }), chart, make("ul", { class: "legend" }, ...ORDER.map((label) => make("li", {}, swatch(styleOf(label, label === ANY)), LABELS[label])), make("li", {}, swatch({ color: "--soft", dash: "2 4" }), `${data.threshold}, for orientation`)),
  ];
}

/** Lay the sheets out while the browser is idle, so that printing finds them. */
async function drawSheets() {
  const sheets = data.studies.length > 1 ? [makeOverview()] : [];
  for (const study of sortStudies()) sheets.push(await makeStudySheet(study));
  byId("sheets").replaceChildren(...sheets);
}
