"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const PREDICTION = "#e69f00", TRUTH = "#56b4e9", FALSE_POSITIVE = [213, 94, 0], FALSE_NEGATIVE = [0, 114, 178],
    MAP = [255, 60, 220];

  // Tables: a click on a column's head sorts by it, empty cells last.
  for (const head of document.querySelectorAll("th[aria-sort]")) {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0], column = [...head.parentNode.children].indexOf(head);
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const number = head.classList.contains("n");
      const rows = [...body.rows].sort((one, two) => {
        const a = value(one), b = value(two);
        if (a === "" || b === "") return (a === "") - (b === "");
        return (up ? 1 : -1) * (number ? a - b : a.localeCompare(b, "en", {numeric: true}));
      });
      body.append(...rows);
    });
  }

  const ids = data.order;
  if (!ids.length) return;
  const state = {patient: null, slice: 0, channel: 1, truth: true, prediction: true, errors: true, map: false};
  const viewer = at("viewer"), picker = at("patient"), slider = at("slice");
  const pictures = new Map();

  // An image of all slices of a volume, kept while its patient is shown.
  const picture = async (address) => {
    if (!pictures.has(address)) {
      const image = new Image();
      image.src = address;
      pictures.set(address, image.decode().then(() => image));
    }
    return pictures.get(address);
  };

  // The values, 0 to 255, of one slice of such an image.
  const scratch = document.createElement("canvas");
  const pen = scratch.getContext("2d", {willReadFrequently: true});
  const place = (view, slice) => [slice % view.columns * view.width, Math.floor(slice / view.columns) * view.height];
  const values = (view, image, slice) => {
    scratch.width = view.width; scratch.height = view.height;
    pen.drawImage(image, ...place(view, slice), view.width, view.height, 0, 0, view.width, view.height);
    const rgba = pen.getImageData(0, 0, view.width, view.height).data;
    return Uint8Array.from({length: rgba.length / 4}, (_, index) => rgba[4 * index]);
  };

  const outline = (context, mask, width, height, zoom, colour, dashes) => {
    const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] > 127;
    context.beginPath();
    for (let y = 0; y <= height; y++) for (let x = 0; x <= width; x++) {
      if (inside(x, y) !== inside(x, y - 1)) { context.moveTo(x * zoom, y * zoom); context.lineTo((x + 1) * zoom, y * zoom); }
      if (inside(x, y) !== inside(x - 1, y)) { context.moveTo(x * zoom, y * zoom); context.lineTo(x * zoom, (y + 1) * zoom); }
    }
    context.strokeStyle = colour; context.lineWidth = Math.max(1.5, zoom / 2.5); context.setLineDash(dashes);
    context.stroke();
  };

  let drawing = 0;
  const draw = async () => {
    const turn = ++drawing, view = data.patients[state.patient], size = view.width * view.height;
    const background = view.channels[state.channel];
    const base = await picture(typeof background === "number" ? view.channels[background] : background);
    const truth = values(view, await picture(view.truth), state.slice);
    for (const [index, run] of data.runs.entries()) {
      const canvas = at("canvas-" + index), figure = canvas.parentNode;
      figure.hidden = !(run in view.dsc);
      if (figure.hidden) continue;
      const mask = run in view.masks ? await picture(view.masks[run]) : null;
      const heat = run in view.maps && state.map ? await picture(view.maps[run]) : null;
      if (turn !== drawing) return;
      const found = mask ? values(view, mask, state.slice) : new Uint8Array(size), zoom = Math.max(2, Math.ceil(512 / view.width));
      canvas.width = view.width * zoom; canvas.height = view.height * zoom;
      const context = canvas.getContext("2d");
      context.drawImage(base, ...place(view, state.slice), view.width, view.height, 0, 0, canvas.width, canvas.height);
      const layer = new ImageData(view.width, view.height);
      const strength = heat ? values(view, heat, state.slice) : null;
      for (let voxel = 0; voxel < size; voxel++) {
        const [is, said] = [truth[voxel] > 127, found[voxel] > 127];
        const colour = strength && strength[voxel] > 12 ? [...MAP, Math.min(220, 40 + strength[voxel])]
          : state.errors && mask && is !== said ? [...(said ? FALSE_POSITIVE : FALSE_NEGATIVE), 105] : null;
        if (colour) layer.data.set(colour, 4 * voxel);
      }
      scratch.width = view.width; scratch.height = view.height;
      pen.putImageData(layer, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
      if (state.truth) outline(context, truth, view.width, view.height, zoom, TRUTH, [3 * zoom, 2 * zoom]);
      if (state.prediction) outline(context, found, view.width, view.height, zoom, PREDICTION, []);
      const dsc = view.dsc[run];
      at("dsc-" + index).textContent = (dsc === null ? "not defined" : dsc.toFixed(4)) + (mask ? "" : ", no mask in its folder");
      canvas.setAttribute("aria-label", `${run}: ${state.patient}, slice ${state.slice + 1} of ${view.depth}, DSC ${at("dsc-" + index).textContent}`);
    }
    at("where").textContent = `slice ${state.slice + 1} of ${view.depth}`;
    slider.setAttribute("aria-valuetext", at("where").textContent);
    viewer.dataset.drawn = `${state.patient} ${state.slice} ${state.channel} ${turn}`;
  };

  const show = (slice) => {
    state.slice = Math.min(Math.max(slice, 0), data.patients[state.patient].depth - 1);
    slider.value = state.slice;
    draw();
  };
  const open = (patient) => {
    state.patient = patient;
    pictures.clear();
    const view = data.patients[patient];
    picker.value = patient;
    slider.max = view.depth - 1;
    at("before").disabled = patient === ids[0];
    at("after").disabled = patient === ids[ids.length - 1];
    at("map").disabled = !Object.keys(view.maps).length;
    for (const [index, option] of [...at("channel").options].entries())
      option.textContent = data.channels[index] + (typeof view.channels[index] === "number" ? " (is FLAIR)" : "");
    for (const row of document.querySelectorAll("tr[data-patient]")) row.classList.toggle("shown", row.dataset.patient === patient);
    show(view.start);
  };
  const next = (by) => open(ids[Math.min(Math.max(ids.indexOf(state.patient) + by, 0), ids.length - 1)]);
  const toggle = (name) => {
    if (at(name).disabled) return;
    at(name).checked = state[name] = !state[name];
    draw();
  };
  const channel = (index) => { state.channel = index; at("channel").value = index; draw(); };

  picker.addEventListener("change", () => open(picker.value));
  slider.addEventListener("input", () => show(Number(slider.value)));
  at("channel").addEventListener("change", (event) => channel(Number(event.target.value)));
  for (const name of ["truth", "prediction", "errors", "map"])
    at(name).addEventListener("change", (event) => { state[name] = event.target.checked; draw(); });
  at("before").addEventListener("click", () => next(-1));
  at("after").addEventListener("click", () => next(1));
  for (const button of document.querySelectorAll("button[data-patient]"))
    button.addEventListener("click", () => { open(button.dataset.patient); at("look").scrollIntoView(); viewer.focus({preventScroll: true}); });

  const keys = {
    ArrowUp: () => show(state.slice + 1), ArrowRight: () => show(state.slice + 1),
    ArrowDown: () => show(state.slice - 1), ArrowLeft: () => show(state.slice - 1),
    Home: () => show(0), End: () => show(Infinity), PageUp: () => show(state.slice + 5), PageDown: () => show(state.slice - 5),
    t: () => toggle("truth"), p: () => toggle("prediction"), e: () => toggle("errors"), u: () => toggle("map"),
    c: () => channel((state.channel + 1) % data.channels.length), n: () => next(1), b: () => next(-1),
  };
  // Wherever the focus is in this part of the page, or nowhere; arrows stay a slider's and a list's own.
  document.addEventListener("keydown", (event) => {
    const act = keys[event.key], on = document.activeElement;
    if (!act || event.ctrlKey || event.metaKey || event.altKey || !(on === document.body || at("look").contains(on))) return;
    if (on.tagName === "SELECT" || (on.type === "range" && event.key.length > 1)) return;
    if (on === document.body && event.key.length > 1 && !event.key.endsWith("Left") && !event.key.endsWith("Right")) return;
    event.preventDefault();
    act();
  });
  let turned = 0;
  // The wheel turns slices once the viewer is clicked; before, it scrolls the page past it.
  viewer.addEventListener("wheel", (event) => {
    if (document.activeElement !== viewer || event.ctrlKey) return;
    event.preventDefault();
    // A notch of a wheel is about 100 (or 3 lines), a trackpad sends many of a few pixels.
    turned += event.deltaMode === 1 ? event.deltaY * 33 : event.deltaY;
    if (Math.abs(turned) < 40) return;
    show(state.slice - Math.sign(turned));
    turned = 0;
  }, {passive: false});
  let grip = null;
  viewer.addEventListener("pointerdown", (event) => {
    viewer.focus({preventScroll: true});
    grip = {x: event.clientX, y: event.clientY, slice: state.slice};
    if (event.pointerType === "mouse") viewer.setPointerCapture(event.pointerId);
  });
  viewer.addEventListener("pointermove", (event) => {
    if (!grip) return;
    // A finger that moves up or down scrolls the page; sideways it turns slices.
    const moved = event.clientX - grip.x - (event.pointerType === "mouse" ? event.clientY - grip.y : 0);
    show(grip.slice + Math.round(moved / 8));
  });
  for (const name of ["pointerup", "pointercancel"]) viewer.addEventListener(name, () => { grip = null; });

  open(ids[0]);
})();
