// How much each slice contributes to the prediction for another.

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
  const canvas = tint(slices, slices, (place) => {
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
