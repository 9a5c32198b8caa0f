"use strict";
// What all scripts of the page share: the data, the names, and which slice and label are in sight.

const data = JSON.parse(document.getElementById("data").textContent);
const LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"];
const hyphenate = (label) => label.replace(/^(intra|sub)/, "$1\u00ad"); // in narrow columns
const MODELS = {
  classifier: { name: "classifier", color: "--classifier", dash: "" },
  rolling_mean: { name: "rolling mean", color: "--rolling_mean", dash: "2 4" },
  lstm: { name: "LSTM", color: "--lstm", dash: "" },
  bag: { name: "ensemble", color: "--bag", dash: "7 4" },
};
const CLIP = 1e-5;
// `x` and `y` are how far the middle of the view is from that of the image, in widths of the image.
const state = {
  label: LABELS.indexOf("any"), series: 0, slice: 0, center: 40, width: 80, zoom: 1, x: 0, y: 0,
  mode: "window", overlay: false, hidden: new Set(["rolling_mean"]),
};
const main = document.getElementById("main");
const byId = (id) => document.getElementById(id);
const DEVICE = byId("device").textContent;
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const redraws = []; // called when the label or the width changes
