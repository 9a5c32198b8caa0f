// Slices as 8-bit levels along a bent line of HU: any window of them is a table of 256 entries.

const KEPT = 96; // slices decoded and kept, 25 MB
const lines = new Map(), decoded = new Map();
const blank = () => make("canvas", { width: 1, height: 1 });

/** The HU of each level. */
const listHounsfield = () => Float32Array.from({ length: 256 }, (_, level) => {
  const i = Math.max(1, data.points.findIndex(([, end]) => end >= level));
  const [[low, from], [high, to]] = [data.points[i - 1], data.points[i]];
  return low + (level - from) / (to - from) * (high - low);
});

/** The text of a slice's image, or nothing; a series' texts are split when it is first opened. */
function findImage(series, i) {
  if (!lines.has(series)) lines.set(series, (byId(`px-${series}`)?.textContent || "").split("\n"));
  return lines.get(series)[i];
}

/** The levels of a slice, {side, levels}, or null where there is no image. Rejects where it is damaged. */
function decode(series, i) {
  const key = `${series}/${i}`, text = findImage(series, i);
  if (!text) return Promise.resolve(null);
  const promise = decoded.get(key) || decodeImage(text);
  decoded.delete(key);
  decoded.set(key, promise); // the last one used is the last one in the map
  if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return promise;
}

async function decodeImage(text) {
  const image = new Image();
  image.src = `data:image/webp;base64,${text}`;
  await image.decode();
  const side = image.naturalWidth, context = make("canvas", { width: side, height: side }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data: pixels } = context.getImageData(0, 0, side, side);
  return { side, levels: Uint8Array.from({ length: side * side }, (_, k) => pixels[4 * k]) };
}

/** Draw a decoded slice in a window of center and width in HU on `canvas`, and return that. */
function shade({ side, levels }, center, width, canvas) {
  shade.hounsfield ||= listHounsfield();
  const table = Uint32Array.from(shade.hounsfield, (value) => {
    const gray = Math.round(255 * Math.min(1, Math.max(0, (value - center) / width + 0.5)));
    return (255 << 24 | gray << 16 | gray << 8 | gray) >>> 0;
  });
  const image = new ImageData(side, side), out = new Uint32Array(image.data.buffer);
  for (let k = 0; k < out.length; k += 1) out[k] = table[levels[k]];
  if (canvas.width !== side) canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

const watcher = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting).forEach(({ target }) => {
  watcher.unobserve(target);
  target.draw();
}), { rootMargin: "300px" });

/** A slice in the brain window, which is decoded when it comes into sight. */
function makeThumbnail(series, i) {
  const canvas = blank();
  canvas.draw = async () => {
    const slice = await decode(series, i).catch(() => null);
    if (slice) shade(slice, ...PRESETS[0].slice(1), canvas);
  };
  watcher.observe(canvas);
  return canvas;
}
