"use strict";

// Types of the protocol, and the typed arrays that hold them.
const ARRAYS = {
  BOOL: Uint8Array, UINT8: Uint8Array, INT8: Int8Array, UINT16: Uint16Array, INT16: Int16Array, FP16: Uint16Array,
  UINT32: Uint32Array, INT32: Int32Array, UINT64: BigUint64Array, INT64: BigInt64Array, FP32: Float32Array, FP64: Float64Array,
};
// The same types as a .npy file names them.
const NPY = {
  "|b1": "BOOL", "|u1": "UINT8", "|i1": "INT8", "<u2": "UINT16", "<i2": "INT16", "<f2": "FP16", "<u4": "UINT32",
  "<i4": "INT32", "<u8": "UINT64", "<i8": "INT64", "<f4": "FP32", "<f8": "FP64",
};
const SHOWN = 10;
const at = (id) => document.getElementById(id);
let token = "";
let current = null;

function element(tag, text = "", properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(text);
  return made;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const reply = await fetch(path, { ...options, headers });
  if (!reply.ok) {
    const text = await reply.text();
    let reason = text;
    try { reason = JSON.parse(text).error || text; } catch { /* not every server before ours answers JSON */ }
    throw Object.assign(new Error(reason || `the server answered ${reply.status}`), { status: reply.status });
  }
  return reply;
}

// the list of models

async function start() {
  try {
    const [server, models] = await Promise.all([ask("v2"), ask("static/models.json")]);
    const { version } = await server.json();
    const list = await models.json();
    at("access").hidden = true;
    at("server").className = "";
    at("server").textContent = `version ${version}, serving ${list.length} ${list.length === 1 ? "model" : "models"}`;
    at("models").replaceChildren(...list.map(button));
    if (list.length) choose(list[0], at("models").firstChild);
  } catch (error) {
    at("access").hidden = error.status !== 401;
    at("server").className = "error";
    at("server").textContent = error.status === 401 ? "this server wants a token" : `no answer: ${error.message}`;
  }
}

function button(model) {
  const made = element("button", model.name, { type: "button" });
  made.append(element("small", `version ${model.version}${model.verdict ? `, ${model.verdict}` : ""}`));
  made.onclick = () => choose(model, made);
  return made;
}

function choose(model, chosen) {
  current = model;
  for (const other of at("models").children) other.removeAttribute("aria-current");
  chosen.setAttribute("aria-current", "true");
  at("model").hidden = false;
  at("answer").hidden = true;
  at("state").textContent = "";
  at("name").textContent = model.name;
  const facts = [["version", model.version], ["verdict", verdict(model)], ...Object.entries(model.facts)];
  for (const [path, rule] of Object.entries(model.rules)) facts.push([path || "the model itself", rule]);
  at("facts").replaceChildren(...facts.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
  const rows = [...model.inputs.map((port) => ["input", port]), ...model.outputs.map((port) => ["output", port])];
  at("ports").tBodies[0].replaceChildren(...rows.map(([side, port]) => {
    const row = element("tr");
    row.append(element("td", side), element("td", port.name), element("td", port.datatype), element("td", shape(port.shape)));
    return row;
  }));
  at("inputs").replaceChildren(...model.inputs.map(field));
}

function verdict(model) {
  if (!model.verdict) return "unknown: poolexport did not make this file";
  const made = element("span", model.verdict, { className: model.verdict });
  const all = element("span");
  all.append(made, model.bound ? ` within ${model.bound}` : "");
  return all;
}

const shape = (lengths) => lengths.map((n) => (n === -1 ? "any" : n)).join(" × ") || "scalar";

// what goes in

const takesImages = (port) => port.shape.length === 4 && [1, 3, 4].includes(port.shape[1]) && /^FP|UINT8/.test(port.datatype);

function field(port) {
  const set = element("fieldset");
  set.append(element("legend", `${port.name}: ${port.datatype}, ${shape(port.shape)}`));
  const file = element("input", "", { type: "file", accept: takesImages(port) ? ".npy,image/*" : ".npy" });
  const holder = element("label", takesImages(port) ? "Image or .npy" : ".npy");
  holder.append(file);
  set.append(holder);
  const read = { port, file };
  if (takesImages(port)) {
    const [, , height, width] = port.shape;
    read.height = number("height", height === -1 ? "" : height, height !== -1);
    read.width = number("width", width === -1 ? "" : width, width !== -1);
    read.scale = element("select");
    read.scale.append(new Option("0 to 1", String(1 / 255)), new Option("0 to 255", "1"));
    read.mean = element("input", "", { className: "numbers", value: "0", inputMode: "decimal" });
    read.std = element("input", "", { className: "numbers", value: "1", inputMode: "decimal" });
    const named = { height: read.height, width: read.width, pixels: read.scale, "less mean": read.mean, "by deviation": read.std };
    for (const [name, control] of Object.entries(named)) {
      const label = element("label", name);
      label.append(control);
      set.append(label);
    }
    read.seen = element("canvas", "", { className: "seen", hidden: true });
    set.append(read.seen);
  }
  set.read = read;
  return set;
}

function number(name, value, readOnly) {
  return element("input", "", { type: "number", min: 1, max: 8192, value, readOnly, placeholder: "as it is", title: name });
}

async function tensor({ port, file, ...how }) {
  const [chosen] = file.files;
  if (!chosen) throw new Error(`choose a file for ${port.name}`);
  if (!/\.npy$/i.test(chosen.name)) return image(chosen, port, how);
  const array = npy(await chosen.arrayBuffer(), chosen.name);
  if (array.shape.length === port.shape.length - 1) array.shape.unshift(1);
  if (array.datatype !== port.datatype) {
    throw new Error(`${chosen.name} holds ${array.datatype}, ${port.name} takes ${port.datatype}`);
  }
  return { name: port.name, ...array };
}

function npy(buffer, name) {
  const view = new DataView(buffer);
  const magic = buffer.byteLength > 12 && view.getUint8(0) === 0x93 && view.getUint8(1) === 0x4e;
  if (!magic) throw new Error(`${name} is not a .npy file`);
  const long = view.getUint8(6) > 1;
  const start = long ? 12 : 10;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const head = new TextDecoder().decode(new Uint8Array(buffer, start, length));
  const kind = /'descr':\s*'([^']+)'/.exec(head);
  const lengths = /'shape':\s*\(([^)]*)\)/.exec(head);
  if (!kind || !lengths || !NPY[kind[1]]) throw new Error(`${name} holds ${kind ? kind[1] : "something else"}, which no model here takes`);
  if (/'fortran_order':\s*True/.test(head)) throw new Error(`${name} is in Fortran order; save it with numpy.ascontiguousarray`);
  const found = lengths[1].split(",").map((n) => n.trim()).filter(Boolean).map(Number);
  const bytes = new Uint8Array(buffer.slice(start + length));
  const expected = found.reduce((a, b) => a * b, 1) * ARRAYS[NPY[kind[1]]].BYTES_PER_ELEMENT;
  if (bytes.length !== expected) throw new Error(`${name} is cut off: ${bytes.length} of ${expected} bytes`);
  return { shape: found, datatype: NPY[kind[1]], bytes };
}

async function image(file, port, { height, width, scale, mean, std, seen }) {
  if (!takesImages(port)) throw new Error(`${port.name} takes no images; choose a .npy file`);
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { throw new Error(`${file.name} is no image that this browser reads`); }
  const size = [Number(height.value) || bitmap.height, Number(width.value) || bitmap.width];
  [seen.height, seen.width] = size;
  seen.hidden = false;
  const context = seen.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, seen.width, seen.height);
  const { data } = context.getImageData(0, 0, seen.width, seen.height);
  const channels = port.shape[1];
  const [means, deviations] = [mean, std].map((control) => perChannel(control, channels));
  if (deviations.includes(0)) throw new Error("a deviation cannot be 0");
  const plane = size[0] * size[1];
  const values = new (port.datatype === "UINT8" ? Uint8Array : port.datatype === "FP64" ? Float64Array : Float32Array)(channels * plane);
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < plane; i++) {
      const pixel = channels === 1 ? 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2] : data[4 * i + c];
      values[c * plane + i] = port.datatype === "UINT8" ? pixel : (pixel * Number(scale.value) - means[c]) / deviations[c];
    }
  }
  const bytes = port.datatype === "FP16" ? new Uint8Array(halves(values).buffer) : new Uint8Array(values.buffer);
  return { name: port.name, shape: [1, channels, ...size], datatype: port.datatype, bytes };
}

function perChannel(control, channels) {
  const found = control.value.split(",").map(Number);
  if (found.some(Number.isNaN) || ![1, channels].includes(found.length)) {
    throw new Error(`write one number, or ${channels} with commas: ${control.value}`);
  }
  return found.length === 1 ? Array(channels).fill(found[0]) : found;
}

// half precision, which not every browser has a typed array for

function halves(values) {
  const result = new Uint16Array(values.length);
  const one = new Float32Array(1);
  const bits = new Uint32Array(one.buffer);
  values.forEach((value, i) => {
    one[0] = value;
    const sign = (bits[0] >>> 16) & 0x8000;
    const size = Math.abs(one[0]);
    if (Number.isNaN(size)) result[i] = 0x7e00;
    else if (size >= 65520) result[i] = sign | 0x7c00;
    else if (size < 2 ** -14) result[i] = sign | even(size * 2 ** 24);
    else {
      const exponent = ((bits[0] >>> 23) & 0xff) - 127;
      result[i] = sign | (((exponent + 15) << 10) + even((size / 2 ** exponent - 1) * 1024));
    }
  });
  return result;
}

function even(x) {
  const down = Math.floor(x);
  const rest = x - down;
  return rest > 0.5 || (rest === 0.5 && down % 2) ? down + 1 : down;
}

function single(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

// what comes out

at("try").onsubmit = async (event) => {
  event.preventDefault();
  const model = current;
  at("send").disabled = true;
  at("state").className = "";
  at("state").textContent = "running …";
  at("answer").hidden = true;
  try {
    const inputs = [];
    for (const set of at("inputs").children) inputs.push(await tensor(set.read));
    const head = JSON.stringify({
      inputs: inputs.map(({ name, shape, datatype, bytes }) => ({
        name, shape, datatype, parameters: { binary_data_size: bytes.length },
      })),
      parameters: { binary_data_output: true },
    });
    const start = new TextEncoder().encode(head);
    const began = performance.now();
    const path = `v2/models/${encodeURIComponent(model.name)}/versions/${model.version}/infer`;
    const reply = await ask(path, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": start.length },
      body: new Blob([start, ...inputs.map(({ bytes }) => bytes)]),
    });
    const buffer = await reply.arrayBuffer();
    const took = performance.now() - began;
    if (model !== current) return;
    show(outputs(buffer, Number(reply.headers.get("Inference-Header-Content-Length") || buffer.byteLength)));
    at("state").textContent = `answered in ${took.toFixed(1)} ms`;
  } catch (error) {
    at("state").className = "error";
    at("state").textContent = error.message;
  } finally {
    at("send").disabled = false;
  }
};

function outputs(buffer, length) {
  const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 0, length)));
  let place = length;
  return answer.outputs.map((output) => {
    const size = output.parameters?.binary_data_size;
    if (size === undefined) return { ...output, values: output.data };
    const bytes = buffer.slice(place, (place += size));
    const values = output.datatype === "BYTES" ? strings(bytes) : Array.from(new ARRAYS[output.datatype](bytes));
    return { ...output, values: output.datatype === "FP16" ? values.map(single) : values };
  });
}

function strings(bytes) {
  const view = new DataView(bytes);
  const found = [];
  for (let place = 0; place < bytes.byteLength;) {
    const length = view.getUint32(place, true);
    found.push(new TextDecoder().decode(new Uint8Array(bytes, place + 4, length)));
    place += 4 + length;
  }
  return found;
}

function show(found) {
  const parts = found.flatMap((output) => [element("h3", `${output.name}: ${shape(output.shape)}`), largest(output)]);
  at("answer").replaceChildren(...parts);
  at("answer").hidden = false;
}

function largest({ values, shape: lengths }) {
  const numbers = values.map(Number);
  const order = numbers.map((_, i) => i).sort((a, b) => (numbers[b] > numbers[a] ? 1 : numbers[b] < numbers[a] ? -1 : a - b)).slice(0, SHOWN);
  const most = Math.max(...order.map((i) => Math.abs(numbers[i])).filter(Number.isFinite), Number.MIN_VALUE);
  const table = element("table");
  const head = element("tr");
  head.append(element("th", "where"), element("th", "value", { className: "number" }), element("th"));
  table.append(head, ...order.map((i) => {
    const row = element("tr");
    const bar = element("span", "", { className: "bar" });
    bar.style.width = `${Math.min(100, (100 * Math.abs(numbers[i])) / most || 0)}%`;
    const bars = element("td", "", { className: "bars" });
    bars.append(bar);
    row.append(element("td", place(i, lengths)), element("td", written(values[i]), { className: "number" }), bars);
    return row;
  }));
  const all = element("div", "", { className: "wide" });
  all.append(table);
  if (values.length > SHOWN) all.append(element("p", `the ${SHOWN} largest of ${values.length} values`));
  return all;
}

const written = (value) => (typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(6) : String(value));

function place(index, lengths) {
  const found = [];
  for (const length of [...lengths].reverse()) {
    found.unshift(index % length);
    index = Math.floor(index / length);
  }
  return `[${found.join(", ")}]`;
}

at("access").onsubmit = (event) => {
  event.preventDefault();
  token = at("token").value;
  start();
};

start();
