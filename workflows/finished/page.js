"use strict";
// What is drawn: the image, and over it one pixel of the class's colour for each id. Classes that are hidden get no
// colour. State is kept in the address (#hide=1,4&opacity=40&view=image), so a link shows what its sender saw.
// Ids and image are unpacked after all else is there: a slow machine shows what the map is of meanwhile.
(() => {
  const at = (id) => document.getElementById(id), root = document.documentElement;
  function say(text) {
    at("status").textContent = text;
    at("status").hidden = !text;
  }
  function fail(error) {
    root.dataset.ready = "failed";
    say(`The map cannot be drawn: ${error && error.message || error}. The file may be damaged; export it again.`);
  }
  window.addEventListener("error", (event) => fail(event.error || event.message));
  say("Loading the map…");
  const data = JSON.parse(at("data").textContent);
  const [rows, cols] = data.shape;
  const canvas = at("map"), pen = canvas.getContext("2d");
  const byId = new Map(data.classes.map((one) => [one.id, one]));
  const hidden = new Set();
  const NODATA = 255, ARROW = 40, MOST_ZOOM = 64;
  let opacity = data.image ? 0.65 : 1, alone = false;
  let zoom = 1, left = 0, top = 0, least = 1; // screen pixels per pixel; where the upper left corner is

  let ids = null, image = null, imaged = Boolean(data.image); // imaged: there is an image, as far as is known

  // the class ids: zlib, base64
  async function unpack() {
    const packed = Uint8Array.from(atob(data.ids), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const found = new Uint8Array(await new Response(stream).arrayBuffer());
    if (found.length !== rows * cols) throw new Error(`it holds ${found.length} of ${rows * cols} pixels`);
    ids = found;
    recolour();
    draw();
  }
  async function decode() {
    if (!imaged) return;
    const found = new Image();
    found.src = data.image;
    try {
      await found.decode();
      image = found;
    } catch {
      imaged = alone = false;
      opacity = 1;
      at("blend").hidden = true;
    }
    show();
  }

  const overlay = document.createElement("canvas");
  overlay.width = cols;
  overlay.height = rows;
  function recolour() {
    if (!ids) return;
    const brush = overlay.getContext("2d"), pixels = brush.createImageData(cols, rows);
    const words = new Uint32Array(pixels.data.buffer), colours = new Uint32Array(256);
    const bytes = new Uint8Array(colours.buffer); // red, green, blue, alpha, whatever the byte order is
    for (const one of data.classes) {
      if (hidden.has(one.id)) continue;
      for (let k = 0; k < 3; k++) bytes[4 * one.id + k] = parseInt(one.colour.slice(1 + 2 * k, 3 + 2 * k), 16);
      bytes[4 * one.id + 3] = 255;
    }
    for (let k = 0; k < ids.length; k++) words[k] = colours[ids[k]];
    brush.putImageData(pixels, 0, 0);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingQuality = "high";
    if (image) {
      pen.imageSmoothingEnabled = zoom < 3;
      pen.drawImage(image, left, top, cols * zoom, rows * zoom);
    }
    if (!alone) {
      pen.imageSmoothingEnabled = zoom * ratio < 1;
      pen.globalAlpha = opacity;
      pen.drawImage(overlay, left, top, cols * zoom, rows * zoom);
      pen.globalAlpha = 1;
    }
    drawScale();
  }

  function fit() {
    const width = canvas.clientWidth, height = canvas.clientHeight, margin = 12;
    zoom = least = Math.min((width - 2 * margin) / cols, (height - 2 * margin) / rows, MOST_ZOOM);
    left = (width - cols * zoom) / 2;
    top = (height - rows * zoom) / 2;
    draw();
  }
  function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const wanted = Math.min(Math.max(zoom * factor, least / 2), Math.max(MOST_ZOOM, least));
    left = x - (x - left) * wanted / zoom;
    top = y - (y - top) * wanted / zoom;
    zoom = wanted;
    draw();
  }
  function move(x, y) {
    left += x;
    top += y;
    draw();
  }

  function lengthName(metres) {
    const [unit, size] = [["km", 1e3], ["m", 1], ["cm", 1e-2], ["µm", 1e-6], ["nm", 1e-9]]
      .find(([, least]) => metres >= least * (1 - 1e-9)) || ["nm", 1e-9];
    return `${(+(metres / size).toPrecision(6)).toLocaleString("en")} ${unit}`;
  }
  function drawScale() {
    if (!data.metres) return;
    const most = 140 * data.metres * data.step / zoom, power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((digit) => digit * power <= most) * power;
    at("scale").hidden = false;
    at("scale").firstElementChild.style.width = `${length * zoom / (data.metres * data.step)}px`;
    at("scale").lastElementChild.textContent = lengthName(length) + (data.same ? "" : " (in the middle)");
  }

  function tell(x, y) {
    const col = Math.floor((x - left) / zoom), row = Math.floor((y - top) / zoom), out = at("readout");
    out.hidden = row < 0 || col < 0 || row >= rows || col >= cols;
    if (out.hidden) return;
    const id = ids ? ids[row * cols + col] : NODATA;
    const name = !ids ? "" : id === NODATA ? "no data" : (byId.get(id) || { name: `class ${id}` }).name;
    const down = Math.min((row + 0.5) * data.step, data.size[0]), across = Math.min((col + 0.5) * data.step, data.size[1]);
    let where = `row ${Math.floor(down)}, column ${Math.floor(across)}`;
    if (data.transform) {
      const [a, b, c, d, e, f] = data.transform;
      const digits = Math.max(0, Math.min(8, Math.ceil(-Math.log10(Math.hypot(a, d) * data.step)) + 1));
      const [xs, ys] = [a * across + b * down + c, d * across + e * down + f].map((v) => v.toFixed(digits));
      where = `${data.axes[0]} ${xs}, ${data.axes[1]} ${ys}`;
    }
    out.textContent = `${name}\n${where}`;
  }

  // panel
  const items = new Map();
  function element(tag, parent, text, attributes = {}) {
    const made = tag === "g" || tag === "rect" || tag === "text"
      ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function buildPanel() {
    at("name").textContent = data.name;
    at("line").textContent = data.line;
    at("blend").hidden = !imaged;
    const chart = at("chart"), high = 36, most = Math.max(...data.classes.map((one) => one.amount), 1e-30);
    chart.setAttribute("viewBox", `0 0 300 ${Math.max(1, data.classes.length) * high}`);
    const ranks = data.classes.map((one) => one.id).sort((a, b) => byId.get(b).amount - byId.get(a).amount);
    data.classes.forEach((one) => {
      const item = element("li", at("legend")), label = element("label", item);
      const box = element("input", label, undefined, { type: "checkbox" });
      element("i", label).style.background = one.colour;
      element("b", label, one.name);
      element("span", label, one.share);
      box.addEventListener("change", () => { box.checked ? hidden.delete(one.id) : hidden.add(one.id); changed(); });
      const bar = element("g", chart, undefined, { transform: `translate(0 ${ranks.indexOf(one.id) * high})` });
      element("text", bar, one.name.length > 26 ? `${one.name.slice(0, 25)}…` : one.name, { x: 0, y: 14 });
      element("text", bar, one.area, { x: 300, y: 14, class: "value" });
      element("rect", bar, undefined, { class: "track", x: 0, y: 20, width: 300, height: 8, rx: 2 });
      const width = Math.max(1, 300 * one.amount / most);
      element("rect", bar, undefined, { x: 0, y: 20, width, height: 8, rx: 2, fill: one.colour });
      items.set(one.id, { item, box, bar });
    });
    for (const [term, value] of data.facts) {
      element("dt", at("facts"), term);
      element("dd", at("facts"), value);
    }
    if (data.north) {
      const turn = Math.atan2(data.north[1], -data.north[0]) * 180 / Math.PI;
      at("north").firstElementChild.setAttribute("transform", `rotate(${turn})`);
      at("north").removeAttribute("hidden");
    }
  }
  function show() {
    for (const [id, { item, box, bar }] of items) {
      box.checked = !hidden.has(id);
      item.classList.toggle("off", hidden.has(id));
      bar.classList.toggle("off", hidden.has(id));
    }
    at("opacity").value = Math.round(100 * opacity);
    at("percent").textContent = `${Math.round(100 * opacity)} %`;
    at("toggle").setAttribute("aria-pressed", alone);
    recolour();
    draw();
  }

  // the address
  let written = "";
  function read() {
    const told = new URLSearchParams(location.hash.slice(1));
    hidden.clear();
    for (const id of (told.get("hide") || "").split(",")) if (id !== "" && byId.has(+id)) hidden.add(+id);
    const wanted = parseInt(told.get("opacity"), 10);
    if (imaged && wanted >= 0 && wanted <= 100) opacity = wanted / 100;
    alone = imaged && told.get("view") === "image";
  }
  function changed() {
    const parts = [];
    if (hidden.size) parts.push(`hide=${[...hidden].sort((a, b) => a - b).join(",")}`);
    if (imaged) parts.push(`opacity=${Math.round(100 * opacity)}`);
    if (alone) parts.push("view=image");
    written = parts.join("&");
    location.replace(`#${written}`);
    show();
  }
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) === written) return;
    read();
    show();
  });

  // hands
  const touching = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    touching.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = touching.get(event.pointerId);
    if (before && touching.size === 1) move(event.offsetX - before.offsetX, event.offsetY - before.offsetY);
    if (before && touching.size === 2) {
      const other = [...touching.values()].find((one) => one.pointerId !== event.pointerId);
      const apart = (one) => Math.hypot(one.offsetX - other.offsetX, one.offsetY - other.offsetY);
      zoomBy(apart(event) / Math.max(1, apart(before)), other.offsetX, other.offsetY);
    }
    if (before) touching.set(event.pointerId, event);
    tell(event.offsetX, event.offsetY);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => touching.delete(event.pointerId));
  }
  canvas.addEventListener("pointerleave", () => { at("readout").hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.offsetX, event.offsetY);
    tell(event.offsetX, event.offsetY);
  }, { passive: false });
  const keys = {
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "0": fit,
    ArrowLeft: () => move(ARROW, 0), ArrowRight: () => move(-ARROW, 0),
    ArrowUp: () => move(0, ARROW), ArrowDown: () => move(0, -ARROW), " ": () => at("toggle").click(),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  at("in").addEventListener("click", () => zoomBy(1.5));
  at("out").addEventListener("click", () => zoomBy(1 / 1.5));
  at("fit").addEventListener("click", fit);
  at("toggle").addEventListener("click", () => { alone = imaged && !alone; changed(); });
  at("opacity").addEventListener("input", (event) => { opacity = event.target.value / 100; changed(); });
  at("all").addEventListener("click", () => { hidden.clear(); changed(); });
  at("none").addEventListener("click", () => { byId.forEach((_, id) => hidden.add(id)); changed(); });

  buildPanel();
  read();
  new ResizeObserver(() => (zoom === least ? fit() : draw())).observe(canvas);
  fit();
  show();
  Promise.all([unpack(), decode()]).then(() => {
    say("");
    root.dataset.ready = "yes";
  }, fail);
})();
