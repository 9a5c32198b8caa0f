// Plots with axes, as inline SVG. Values of the data are only ever inserted as text.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, `text`, listeners (`onclick`) and children; what is null or false is left out. */
function make(name, attributes = {}, ...children) {
  const drawn = ["svg", "path", "rect", "line", "text", "g", "circle", "image"].includes(name);
  const element = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") element.textContent = value;
    else if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (value != null && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1)
    found.push(+(n * step).toPrecision(10));
  return found;
}

/**
 * Draw a plot into `holder` and return its scales.
 *
 * `x` and `y` are {low, high, name, whole}; `lines` hold {x, y, color, dash, width, sizes, name}, with
 * null in `y` for a gap; `bands` are [from, to] along x; `guide` draws the diagonal, `level` a horizontal
 * line at that height; `crosses` are places along x.
 */
function plot(holder, { x, y, lines = [], bands = [], crosses = [], guide = false, level = null, height = 260, width = 0, square = false }) {
  width ||= Math.max(140, holder.clientWidth || 320);
  if (square) height = Math.min(width, 340);
  const left = 46, right = 10, top = 8, bottom = 40;
  const toX = (value) => left + (value - x.low) / (x.high - x.low || 1) * (width - left - right);
  const toY = (value) => height - bottom - (value - y.low) / (y.high - y.low || 1) * (height - top - bottom);
  const svg = make("svg", {
    viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${y.name} by ${x.name}`,
  });
  for (const [from, to] of bands)
    svg.append(make("rect", { class: "band", x: toX(from), y: top, width: toX(to) - toX(from), height: height - top - bottom }));
  for (const value of ticks(y.low, y.high, Math.min(5, height / 40))) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: toY(value), y2: toY(value) }));
    svg.append(make("text", { x: left - 7, y: toY(value) + 4, "text-anchor": "end", text: value }));
  }
  const across = ticks(x.low, x.high, Math.min(10, width / 60)).filter((value) => !x.whole || value % 1 === 0);
  for (const value of across) {
    svg.append(make("line", { class: "axis", x1: toX(value), x2: toX(value), y1: height - bottom, y2: height - bottom + 5 }));
    svg.append(make("text", { x: toX(value), y: height - bottom + 18, "text-anchor": "middle", text: value }));
  }
  svg.append(make("path", { class: "axis", d: `M${left},${top}V${height - bottom}H${width - right}` }));
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", text: x.name }));
  const turned = `translate(11 ${(top + height - bottom) / 2}) rotate(-90)`;
  svg.append(make("text", { transform: turned, "text-anchor": "middle", text: y.name }));
  if (guide)
    svg.append(make("line", { class: "guide", x1: toX(x.low), y1: toY(y.low), x2: toX(x.high), y2: toY(y.high) }));
  if (level !== null)
    svg.append(make("line", { class: "guide level", x1: left, x2: width - right, y1: toY(level), y2: toY(level) }));
  for (const line of lines) drawLine(svg, line, toX, toY);
  for (const value of crosses) svg.append(make("text", { x: toX(value), y: height - bottom - 3, "text-anchor": "middle", text: "×" }));
  holder.replaceChildren(svg);
  return { svg, toX, toY, left, right: width - right, top, bottom: height - bottom, width };
}

function drawLine(svg, line, toX, toY) {
  const known = line.x.map((_, i) => i).filter((i) => line.y[i] !== null);
  const path = known.map((i, n) => `${n && known[n - 1] === i - 1 ? "L" : "M"}${toX(line.x[i]).toFixed(1)},${toY(line.y[i]).toFixed(1)}`);
  svg.append(make("path", {
    class: "curve", d: path.join(""), "data-name": line.name,
    style: `stroke:var(${line.color});stroke-width:${line.width || 2}`, "stroke-dasharray": line.dash || null,
  }));
  const alone = known.length === 1;
  if (line.sizes || alone)
    for (const i of known)
      svg.append(make("circle", {
        cx: toX(line.x[i]), cy: toY(line.y[i]), r: line.sizes ? line.sizes[i] : 3, style: `fill:var(${line.color})`,
      }));
}

/** A sample of a line, or of the band of the truth, for a legend. */
function swatch({ color, dash, band, width = 2.5 }) {
  const svg = make("svg", { viewBox: "0 0 26 10", "aria-hidden": "true", class: "plot" });
  svg.append(band
    ? make("rect", { width: 26, height: 10, style: "fill:var(--truth);opacity:var(--truth-strength)" })
    : make("path", { d: "M1,5H25", style: `stroke:var(${color});stroke-width:${width}`, "stroke-dasharray": dash || null }));
  return svg;
}

/** A legend of entries {name, color, dash, band}. */
function legend(entries) {
  return make("ul", { class: "legend" }, ...entries.map((entry) =>
    make("li", {}, swatch(entry), document.createTextNode(entry.name))));
}
