// The sections of a run's page, and the start of every page.

const EXPLAINED = "Training prior: for every slice the share of positives among the slices that were trained on. Classifier: each slice on its own. Rolling mean: the classifier's probabilities for a slice and its two neighbours, weighted 0.6, 0.2 and 0.2. LSTM: one member, the last epoch of the model that reads the whole series. Ensemble: the mean of all members, which is what is submitted. Weighted: the competition's score, the mean over the labels with “any” counted twice.";

/** Add a section with a heading and return the element that holds its content. */
function section(id, heading, text) {
  const body = make("div");
  main.append(make("section", { id, "aria-labelledby": `${id}-heading` },
    make("h2", { id: `${id}-heading`, text: heading }), make("p", { class: "note", text }), body));
  return body;
}

/** Draw a section's content now and whenever the label or the width changes; unfolded parts stay unfolded. */
function follow(body, draw) {
  const redraw = () => {
    const unfolded = [...body.querySelectorAll("details")].map((one) => one.open);
    draw(body);
    body.querySelectorAll("details").forEach((one, i) => { one.open = unfolded[i]; });
  };
  redraw();
  redraws.push(redraw);
}

/** A table whose cells are a text or {text, small, class}. */
function table(caption, head, rows) {
  const cell = (tag, value, scope) => {
    const given = value !== null && typeof value === "object" ? value : { text: value };
    return make(tag, { class: given.class || null, scope }, String(given.text), given.small && make("small", { text: given.small }));
  };
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, make("table", {},
    make("caption", { text: caption }),
    make("thead", {}, make("tr", {}, ...head.map((name) => cell("th", name, "col")))),
    make("tbody", {}, ...rows.map((row) => make("tr", {},
      ...row.map((value, i) => cell(i ? "td" : "th", value, i ? null : "row")))))));
}

/** The bar that chooses the label of the sections below it. */
function drawLabels() {
  const box = make("fieldset", { id: "labels" }, make("legend", { text: "Label" }));
  main.append(box);
  box.append(...LABELS.map((name, number) => make("label", {}, make("input", { type: "radio", name: "label", value: name, onchange: () => chooseLabel(number) }), make("span", { text: name }))));
  const mark = () => { box.querySelectorAll("input")[state.label].checked = true; };
  mark();
  redraws.push(mark);
}

function drawFacts(body) {
  const list = (facts) => make("dl", { class: "facts" }, ...facts.map(([name, value]) =>
    make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
  body.append(list(data.facts));
  if (data.written) body.append(make("h3", { text: "Software and machine that wrote this report" }), list(data.written));
  if (data.stages && Object.keys(data.stages).length) {
    const costs = Object.values(data.stages);
    const sum = (name) => costs.reduce((total, cost) => total + cost[name], 0);
    const kinds = [["time", "seconds"], ["CPU time", "processor_seconds"]];
    if (sum("gpu_seconds")) kinds.push(["GPU time", "gpu_seconds"]);
    const rows = Object.entries(data.stages).map(([stage, cost]) =>
      [stage, ...kinds.map(([, name]) => showTime(cost[name]))]);
    rows.push(["total", ...kinds.map(([, name]) => showTime(sum(name)))]);
    const title = `Time and cost of each stage: ${showTime(sum("seconds"))} in total`;
    body.append(make("details", {}, make("summary", { text: title }),
      table("Wall-clock and computing time", ["stage", ...kinds.map(([name]) => name)], rows)));
  }
  if (data.skipped && Object.keys(data.skipped).length)
    body.append(make("details", {}, make("summary", { text: "Skipped files and the reasons" }),
      table("Skipped files", ["reason", "files"], Object.entries(data.skipped))));
}

function showTime(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function drawScores(body) {
  const head = [...LABELS, "weighted"];
  const columns = [LABELS.length, ...LABELS.keys()]; // the weighted mean first
  const shown = (value) => value.toFixed(4);
  const mark = (column) => (column === state.label ? "chosen" : "");
  const models = Object.keys(data.scores);
  const least = head.map((_, i) => shown(Math.min(...models.map((model) => data.scores[model].all[i][0]))));
  const called = (model) => (model === "prior" ? "training prior" : MODELS[model].name);
  const show = (triples, best) => columns.map((i) => {
    const [mean, low, high] = triples[i];
    return {
      text: shown(mean), small: `${low.toFixed(3)}–${high.toFixed(3)}`,
      class: `${mark(i)}${best && shown(mean) === best[i] ? " best" : ""}`,
    };
  });
  const names = ["", ...columns.map((i) => ({ text: head[i], class: mark(i) }))];
  const [gain, low, high] = data.gain ?? [];
  const signed = (value) => (value > 0 ? "+" : "") + shown(value);
  body.replaceChildren(make("div", {},
    make("p", { class: "note", text: EXPLAINED }),
    table("All folds, with the 95 % interval below each mean", names,
      models.map((model) => [called(model), ...show(data.scores[model].all, least)])),
    data.setback && make("p", { class: "warning", text: data.setback }),
    data.gain && make("p", { text: `Ensemble minus rolling mean: ${signed(gain)} (95 % interval ${signed(low)} to ${signed(high)}); negative values favour the ensemble.` }),
    make("details", {}, make("summary", { text: "Each fold" }),
      ...Object.keys(data.scores[models[0]]).filter((part) => part !== "all").map((part) =>
        table(`Fold ${part}`, names, models.map((model) => [called(model), ...show(data.scores[model][part])]))))));
}

function drawComparisons(body) {
  const columns = [LABELS.length, ...LABELS.keys()]; // the weighted mean first
  const names = ["", ...columns.map((i) => ({ text: [...LABELS, "weighted"][i], class: i === state.label ? "chosen" : "" }))];
  const show = (triples, sign = "") => columns.map((i) => {
    const [mean, low, high] = triples[i];
    return { text: (mean > 0 ? sign : "") + mean.toFixed(4), small: `${low.toFixed(3)} to ${high.toFixed(3)}`, class: i === state.label ? "chosen" : "" };
  });
  body.replaceChildren(...data.comparisons.map((one) => table(
    `${one.name}, on the ${count(one.slices, "slice")} of ${count(one.patients, "patient")} that both held out`, names,
    [["this run", ...show(one.run)], [one.name, ...show(one.other)], ["difference", ...show(one.difference, "+")]])));
}

function drawCurves(body) {
  const curves = data.curves[LABELS[state.label]];
  const known = Object.keys(MODELS).filter((model) => curves[model]);
  if (!known.length) return body.replaceChildren(make("p", { text: "All slices have the same value of this label, so there is no curve." }));
  const share = { low: 0, high: 1 };
  const lines = (kind) => known.map((model) => ({ ...MODELS[model], name: model, x: curves[model][kind][0], y: curves[model][kind][1] }));
  const figure = (id, heading, value) => {
    const holder = make("div", { class: "plot", id });
    const entries = known.map((model) => ({ ...MODELS[model], name: `${MODELS[model].name} ${curves[model][value].toFixed(3)}` }));
    return [holder, make("div", {}, make("h3", { text: heading }), holder, legend(entries))];
  };
  const [roc, left] = figure("roc", "ROC, with the area under the curve", "auc");
  const [recall, right] = figure("precision-recall", "Precision–recall, with average precision", "average_precision");
  body.replaceChildren(make("div", { class: "plots" }, left, right));
  plot(roc, { x: { ...share, name: "false positive rate" }, y: { ...share, name: "true positive rate" }, lines: lines("roc"), guide: true, square: true });
  plot(recall, { x: { ...share, name: "recall" }, y: { ...share, name: "precision" }, lines: lines("precision_recall"), square: true });
}

function drawReliability(body) {
  const curves = data.curves[LABELS[state.label]];
  const known = Object.keys(MODELS).filter((model) => curves[model]);
  const share = { low: 0, high: 1 };
  const holders = known.map(() => make("div", { class: "plot" }));
  body.replaceChildren(make("div", { class: "plots small" }, ...known.map((model, i) =>
    make("div", {}, make("h3", { text: MODELS[model].name }), holders[i]))));
  known.forEach((model, i) => {
    const { predicted, observed, slices } = curves[model].reliability;
    const sizes = slices.map((number) => 2 + 1.6 * Math.log10(number));
    plot(holders[i], {
      x: { ...share, name: "predicted probability" }, y: { ...share, name: "observed frequency" }, guide: true, square: true,
      lines: [{ ...MODELS[model], dash: "", x: predicted, y: observed, sizes, width: 1.5 }],
    });
  });
}

function drawHistories(body) {
  const kinds = [...new Set(data.histories.map((history) => history.kind))];
  const folds = [...new Set(data.histories.map((history) => history.fold))];
  const color = (fold) => `--fold${folds.indexOf(fold) % 5}`;
  const holders = kinds.map(() => make("div", { class: "plot" }));
  const validated = (kind) => data.histories.some((h) => h.kind === kind && h.validation.some((value) => value !== null));
  body.replaceChildren(make("div", { class: "plots" }, ...kinds.map((kind, i) => make("div", {},
    make("h3", { text: kind }), holders[i], legend([
      ...folds.map((fold) => ({ name: `fold ${fold}`, color: color(fold) })),
      ...(validated(kind) ? [{ name: "held out", color: "--ink", dash: "5 4" }] : []),
    ])))));
  kinds.forEach((kind, i) => {
    const own = data.histories.filter((history) => history.kind === kind);
    const highest = Math.max(...own.flatMap((history) => [...history.loss, ...history.validation]).filter((v) => v !== null));
    const epochs = Math.max(...own.map((history) => history.loss.length));
    plot(holders[i], {
      x: { low: epochs > 1 ? 1 : 0.5, high: epochs > 1 ? epochs : 1.5, name: "epoch", whole: true }, y: { low: 0, high: highest * 1.05, name: "loss" },
      lines: own.flatMap(({ fold, loss, validation }) => {
        const x = loss.map((_, n) => n + 1);
        return [{ x, y: loss, color: color(fold) }, { x, y: validation, color: color(fold), dash: "5 4" }];
      }),
    });
  });
}

/** Go to the page of the study that the address names; on the page that lists the studies alone. */
function leaveForStudy() {
  const given = new URLSearchParams(location.hash.slice(1)), names = [given.get("study"), given.get("series")];
  const page = data.studies.find((one) => [one.uid, ...one.names].some((name) => names.includes(name)))?.page;
  if (page) location.replace(page + location.hash);
}

function start() {
  byId("title").textContent = data.title;
  document.title = data.title;
  if (data.model) drawModel();
  if (data.studies) startStudies();
  if (data.facts.length && !data.studies) drawFacts(section("facts", "Overview", ""));
  if (data.scores) drawLabels();
  if (data.scores)
    follow(section("scores", "Scores", `Log loss of ${count(data.slices, "held-out slice")} of ${count(data.patients, "patient")}; lower is better. The intervals come from 1000 bootstrap resamples of whole patients. The shaded column is the label selected above.`), drawScores);
  if (data.comparisons && data.comparisons.length)
    follow(section("comparisons", "Compared with other runs", "Log loss of the ensembles; lower is better. The difference is the other run's less this run's, slice by slice; a negative one favours the other. Its interval comes from resamples of whole patients."), drawComparisons);
  if (data.series.length) startReader();
  if (data.explanation) follow(section("explanation", "Contributions of the slices", "Each row is a slice whose prediction is explained; each column is a slice whose embedding was replaced by the mean of its two neighbours. Colour shows how much the logit of the row decreased: orange means that the replaced slice was evidence for bleeding, blue that it was evidence against it. The neighbours set the scale; the contribution of a slice to its own prediction, on the diagonal, is often larger."), drawExplanation);
  if (data.curves) {
    follow(section("curves", "ROC and precision–recall", "Held-out slices, for the label selected above."), drawCurves);
    follow(section("reliability", "Reliability", "Slices are grouped by predicted probability into ten bins of equal width; a larger dot means more slices. On the diagonal, predicted probability and observed frequency agree."), drawReliability);
  }
  if (data.histories && data.histories.length) follow(section("histories", "Training", "Loss after each epoch. With tensorboard installed while a run trains, `tensorboard --logdir` on the folder of this page shows the same, the learning rate and the loss scale; its files lie in the events folder of each training."), drawHistories);
  if (data.studies) drawFacts(section("facts", "Files left out, and how this was made", ""));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) redraws.forEach((redraw) => redraw());
    width = innerWidth;
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((one) => { one.open = one.folded = true; }));
  addEventListener("afterprint", () => document.querySelectorAll("details").forEach((one) => { if (one.folded) one.open = one.folded = false; }));
  if (data.studies && data.series.length) (window.requestIdleCallback || setTimeout)(drawSheets);
  if (data.studies && !data.series.length) leaveForStudy();
}

start();
