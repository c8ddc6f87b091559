// The demonstration: an image is cut to a square, made small as the training images were, disturbed, and given to each network.
// Plain scripts alone, since a page that is opened from a folder may load no modules and fetch no files.
"use strict";

const FORMULAS = { // the named suite of localnorm.noise, on pixels x in [0, 1]; z() draws from the normal distribution
  none: (x) => x,
  gaussian: (x, s, z) => x + s * z(),
  brightness: (x, s) => x * (1 - s),
  contrast: (x, s) => (x - 0.5) * (1 - s) + 0.5,
  gamma: (x, s) => x ** (1 + s),
  haze: (x, s) => x * (1 - s) + s,
};
const SHOWN = 5; // answers per network
const LARGEST = 4096; // pixels a side that a picture is taken at; larger ones are shrunk by the browser first

// ---------------------------------------------------------------------------------------------------------------- files

const files = {}; // name -> bytes, as base64 of gzip; each file of demo/ puts itself here
function received(name, text) { files[name] = text; }

function load(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `demo/${name}.js`;
    script.onload = () => unpack(name).then(resolve, reject);
    script.onerror = () => reject(new Error(`demo/${name}.js is not beside this page; copy the whole folder`));
    document.head.append(script);
  });
}

async function unpack(name) {
  const packed = Uint8Array.from(atob(files[name]), (letter) => letter.charCodeAt(0));
  delete files[name]; // megabytes
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// ---------------------------------------------------------------------------------------------------------------- networks

let runtime = null; // onnxruntime-web, once it is ready
function startRuntime() {
  runtime ??= Promise.all([load("runtime-wasm"), load("runtime-module")]).then(([wasm, module]) => {
    const address = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm, wasmPaths: { mjs: address } });
  });
  return runtime;
}

const sessions = {}; // file -> a network that is ready, or will be
function session(file) {
  sessions[file] ??= startRuntime().then(() => load(file))
    .then((model) => ort.InferenceSession.create(model, { executionProviders: ["wasm"] }))
    .catch((reason) => { delete sessions[file]; throw reason; }); // the next answer tries again
  return sessions[file];
}

async function ask(file, pixels, [channels, size]) {
  const network = await session(file);
  const answer = await network.run({ pixels: new ort.Tensor("float32", pixels, [1, channels, size, size]) });
  return answer.probabilities.data;
}

// ---------------------------------------------------------------------------------------------------------------- pixels

// Weights of the triangle filter by which Pillow resizes: for each new position the first old one, and the weights from there.
function filter(from, to) {
  const scale = from / to, reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, k) => Math.max(0, 1 - Math.abs((first + k - centre + 0.5) / reach)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return [first, weights.map((weight) => weight / sum)];
  });
}

// A square of bytes (side, side) to (size, size); rows first, rounded in between, as Pillow does.
function resize(channel, side, size) {
  if (side === size) return channel;
  const weights = filter(side, size), narrow = new Uint8ClampedArray(side * size), small = new Uint8ClampedArray(size * size);
  for (let y = 0; y < side; y++) {
    weights.forEach(([first, row], x) => {
      narrow[y * size + x] = row.reduce((sum, weight, k) => sum + weight * channel[y * side + first + k], 0);
    });
  }
  weights.forEach(([first, column], y) => {
    for (let x = 0; x < size; x++) {
      small[y * size + x] = column.reduce((sum, weight, k) => sum + weight * narrow[(first + k) * size + x], 0);
    }
  });
  return small;
}

// The square in the middle of a picture as bytes of each channel, (C, size, size).
// It is cut first and at whole pixels; Pillow cuts while it resizes, and blurs a little of the outside into the edges.
function squareOf(picture, [channels, size]) {
  const side = Math.min(picture.width, picture.height), taken = Math.min(side, LARGEST);
  const canvas = Object.assign(document.createElement("canvas"), { width: taken, height: taken });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, taken, taken);
  context.drawImage(picture, (picture.width - side) >> 1, (picture.height - side) >> 1, side, side, 0, 0, taken, taken);
  const { data } = context.getImageData(0, 0, taken, taken); // red, green, blue, alpha of each position
  const grey = (at) => (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 32768) >> 16; // Pillow's
  const square = new Uint8ClampedArray(channels * size * size);
  for (let channel = 0; channel < channels; channel++) {
    const bytes = new Uint8ClampedArray(taken * taken);
    for (let i = 0; i < bytes.length; i++) bytes[i] = channels === 1 ? grey(4 * i) : data[4 * i + channel];
    square.set(resize(bytes, taken, size), channel * size * size);
  }
  return square;
}

// A source of normal numbers that gives the same ones each time, so that moving the level does not draw anew.
function normal() {
  let state = 1;
  const uniform = () => { // mulberry32
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// Bytes to noisy pixels in 0 ... 255 as the networks take them, not rounded.
function disturb(square, noise, level) {
  const draw = normal(), formula = FORMULAS[noise];
  return Float32Array.from(square, (byte) => 255 * Math.min(1, Math.max(0, formula(byte / 255, level, draw))));
}

function show(pixels, [channels, size]) {
  const canvas = document.getElementById("picture"), image = new ImageData(size, size), plane = size * size;
  Object.assign(canvas, { width: size, height: size });
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i + (channels === 1 ? 0 : c * plane)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// ---------------------------------------------------------------------------------------------------------------- the page

const at = (id) => document.getElementById(id);
const chosen = { data: null, blob: null, square: null, truth: null, pixels: null };
const levels = () => SETTINGS.noises[at("noise").value].levels;
const level = () => levels()[at("level").value];
const say = (text) => { at("message").textContent = text; };

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

function answers(probabilities, { classes }) {
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, SHOWN);
  return order.map((index) => {
    const name = classes[index], share = probabilities[index];
    const row = element("li", "", element("span", name), element("b", `${(100 * share).toFixed(1)} %`));
    row.style.setProperty("--share", share);
    row.dataset.name = name;
    row.dataset.probability = share;
    if (name === chosen.truth) row.className = "right";
    return row;
  });
}

// Answers of the chosen image under the chosen noise, beside it; one question at a time, and of those that wait only the newest.
let busy = false, again = false;
async function answer() {
  again = true;
  if (busy || !chosen.square) return;
  busy = true;
  at("answers").dataset.state = "asking";
  try {
    while (again) {
      again = false;
      await answerOnce();
    }
    say("");
    at("answers").dataset.state = "ready";
  } catch (error) {
    say(`No answers: ${error.message}`);
    at("answers").dataset.state = "failed";
  } finally {
    busy = false;
  }
}

async function answerOnce() {
  if (!chosen.square) return; // another data set was chosen, and its image is still read
  const { data } = chosen, noise = at("noise").value;
  const pixels = chosen.pixels = disturb(chosen.square, noise, level());
  show(pixels, data.shape);
  at("level-shown").textContent = noise === "none" ? "" : `${level()} (${SETTINGS.noises[noise].unit})`;
  at("truth").textContent = chosen.truth ? `Right answer: ${chosen.truth}` : "";
  for (const [place, arm] of data.arms.entries()) {
    if (!(arm.file in sessions)) say("Loading the networks, once …");
    const probabilities = await ask(arm.file, pixels, data.shape);
    if (again) return;
    at("answers").children[place].querySelector("ol").replaceChildren(...answers(probabilities, data));
  }
}

async function take(blob, truth = null) {
  try {
    const picture = await createImageBitmap(blob); // upright, as the camera was held
    chosen.square = squareOf(picture, chosen.data.shape);
    Object.assign(chosen, { blob, truth });
    await answer();
  } catch {
    say("This file is no image that the browser can read; take a JPEG, PNG or WebP.");
  }
}

function bytesOf(address) { // of a data: address, which a page from a folder may not fetch
  const [head, text] = address.split(",");
  return new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], { type: head.slice(5).split(";")[0] });
}

function chooseData(index) {
  const before = chosen.data;
  Object.assign(chosen, { data: SETTINGS.data[index], square: null });
  again = true; // answers of the data set before are dropped
  at("about").innerHTML = chosen.data.about; // written by localnorm.render.demo
  at("answers").replaceChildren(...chosen.data.arms.map((arm) => {
    const card = element("section", "", element("h3", arm.label), element("p", arm.text), element("ol", ""));
    card.className = arm.ours ? "ours" : "";
    return card;
  }));
  at("examples").replaceChildren(...chosen.data.examples.map((example) => {
    const image = Object.assign(new Image(), { src: example.image, alt: example.truth || "an example" });
    const button = element("button", "", image);
    button.onclick = () => take(bytesOf(example.image), example.truth);
    return button;
  }));
  if (before && !chosen.truth && chosen.blob) return take(chosen.blob); // an image of one's own stays
  return at("examples").firstElementChild.click();
}

function chooseNoise() {
  const known = levels();
  Object.assign(at("level"), { max: known.length - 1, value: Math.ceil(known.length / 2), disabled: known.length < 2 });
  return answer();
}

function start() {
  for (const [index, data] of SETTINGS.data.entries()) at("data").append(new Option(data.title, index));
  at("data").parentElement.hidden = SETTINGS.data.length < 2;
  for (const [name, noise] of Object.entries(SETTINGS.noises)) at("noise").append(new Option(noise.label, name));
  at("data").onchange = () => chooseData(at("data").value);
  at("noise").onchange = chooseNoise;
  at("level").oninput = answer;
  at("file").onchange = () => at("file").files[0] && take(at("file").files[0]);
  document.ondragover = (event) => { event.preventDefault(); at("drop").className = "over"; };
  document.ondragleave = () => { at("drop").className = ""; };
  document.ondrop = (event) => {
    event.preventDefault(); // or the browser opens the file
    at("drop").className = "";
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  };
  at("noise").value = "brightness"; // without noise all three agree
  chooseNoise();
  chooseData(0);
}

start();
