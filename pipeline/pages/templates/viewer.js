(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const PREDICTION = "#e69f00", TRUTH = "#56b4e9", FALSE_POSITIVE = [213, 94, 0], FALSE_NEGATIVE = [0, 114, 178],
    MAP = [255, 60, 220], MAX_ZOOM = 8;
  const ids = data.order;
  if (!ids.length) return;
  const LAYERS = ["truth", "prediction", "errors", "map"];
  const state = {patient: null, slice: 0, channel: 1, truth: true, prediction: true, errors: true, map: false,
    low: 0, high: 255, zoom: 1, x: 0, y: 0};
  const viewer = at("viewer"), picker = at("patient"), slider = at("slice"), drag = at("drag");
  const pictures = new Map();
  const seen = () => data.patients[state.patient];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // The image of all slices of a volume. It is kept while its patient is shown.
  const picture = async (address) => {
    if (!pictures.has(address)) {
      const image = new Image();
      image.src = address;
      pictures.set(address, image.decode().then(() => image));
    }
    return pictures.get(address);
  };

  // The gray values, 0 to 255, of one slice in an image of all slices.
  const sheet = () => document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const scratch = sheet(), gray = sheet(), colors = sheet();
  const resize = (context, width, height) => { context.canvas.width = width; context.canvas.height = height; };
  const values = (view, image, slice) => {
    resize(scratch, view.width, view.height);
    scratch.drawImage(image, -(slice % view.columns) * view.width, -Math.floor(slice / view.columns) * view.height);
    const rgba = scratch.getImageData(0, 0, view.width, view.height).data;
    return Uint8Array.from({length: rgba.length / 4}, (_, index) => rgba[4 * index]);
  };

  // Paint each voxel with its color: red, green, blue, opacity.
  const paint = (context, view, color) => {
    const layer = new ImageData(view.width, view.height);
    for (let voxel = 0; voxel < view.width * view.height; voxel++) {
      const found = color(voxel);
      if (found) layer.data.set(found, 4 * voxel);
    }
    resize(context, view.width, view.height);
    context.putImageData(layer, 0, 0);
  };

  // Draw the border of a mask as closed paths, so that dashes run on from edge to edge.
  const outline = (context, mask, view, color, width, dashes) => {
    const inside = (x, y) => x >= 0 && y >= 0 && x < view.width && y < view.height && mask[y * view.width + x] > 127;
    const row = view.width + 1, edges = new Map();  // from a corner of a voxel to the next corners, clockwise
    const edge = (from, to) => edges.get(from)?.push(to) ?? edges.set(from, [to]);
    for (let y = 0; y < view.height; y++) for (let x = 0; x < view.width; x++) {
      if (!inside(x, y)) continue;
      const corner = y * row + x;
      if (!inside(x, y - 1)) edge(corner, corner + 1);
      if (!inside(x + 1, y)) edge(corner + 1, corner + 1 + row);
      if (!inside(x, y + 1)) edge(corner + 1 + row, corner + row);
      if (!inside(x - 1, y)) edge(corner + row, corner);
    }
    context.beginPath();
    for (const [start, ends] of edges) while (ends.length) {
      context.moveTo(start % row, Math.floor(start / row));
      for (let corner = ends.pop(); corner !== start; corner = edges.get(corner).pop())
        context.lineTo(corner % row, Math.floor(corner / row));
      context.closePath();
    }
    context.save();
    context.resetTransform();  // lines are equally thick in all directions, whatever the shape of voxels
    context.strokeStyle = color; context.lineWidth = width; context.setLineDash(dashes);
    context.stroke();
    context.restore();
  };

  let drawing = 0;
  const draw = async () => {
    const turn = ++drawing, view = seen();
    const background = view.channels[state.channel];
    const base = await picture(typeof background === "number" ? view.channels[background] : background);
    const truth = view.truth ? values(view, await picture(view.truth), state.slice) : null;
    const levels = values(view, base, state.slice), spread = 255 / (state.high - state.low);
    const scale = Math.max(2, Math.ceil(512 / view.width)), line = clamp(scale / 2.5, 1.5, 3);
    if (turn !== drawing) return;  // all pictures share one canvas of gray
    paint(gray, view, (voxel) => {
      const level = clamp((levels[voxel] - state.low) * spread, 0, 255);
      return [level, level, level, 255];
    });
    for (const [index, run] of data.runs.entries()) {
      const canvas = at("canvas-" + index), figure = canvas.parentNode;
      figure.hidden = !(run in view.captions);
      if (figure.hidden) continue;
      const mask = run in view.masks ? values(view, await picture(view.masks[run]), state.slice) : null;
      const heat = run in view.maps && state.map ? values(view, await picture(view.maps[run]), state.slice) : null;
      if (turn !== drawing) return;
      canvas.width = view.width * scale; canvas.height = Math.round(view.height * scale * view.aspect);
      canvas.style.maxWidth = `${85 * canvas.width / canvas.height}vh`;  // never higher than the window
      const context = canvas.getContext("2d");
      const across = scale * state.zoom, down = across * view.aspect;
      context.setTransform(across, 0, 0, down, canvas.width / 2 - state.x * across, canvas.height / 2 - state.y * down);
      context.drawImage(gray.canvas, 0, 0);
      paint(colors, view, (voxel) => {
        const is = truth && truth[voxel] > 127, said = mask && mask[voxel] > 127;
        return heat && heat[voxel] > 12 ? [...MAP, Math.min(220, 40 + heat[voxel])]
          : state.errors && truth && mask && is !== said ? [...(said ? FALSE_POSITIVE : FALSE_NEGATIVE), 105] : null;
      });
      context.imageSmoothingEnabled = false;
      context.drawImage(colors.canvas, 0, 0);
      if (state.prediction && mask) outline(context, mask, view, PREDICTION, line, []);
      if (state.truth && truth) outline(context, truth, view, TRUTH, line, [7 * line, 5 * line]);
      at("caption-" + index).textContent = view.captions[run];
      canvas.setAttribute("aria-label", `${run}: ${state.patient}, slice ${state.slice + 1} of ${view.depth}, ${view.captions[run]}`);
    }
    at("where").textContent = `slice ${state.slice + 1} of ${view.depth}`;
    slider.setAttribute("aria-valuetext", at("where").textContent);
    at("window").value = state.high - state.low; at("level").value = (state.high + state.low) / 2; at("zoom").value = state.zoom;
    viewer.dataset.drawn = `${state.patient} ${state.slice} ${state.channel} ${turn}`;
  };

  const show = (slice) => {
    state.slice = clamp(slice, 0, seen().depth - 1);
    slider.value = state.slice;
    draw();
  };
  // Set the window (range of gray values from black to white) and its middle, the level.
  const setGray = (width, level) => {
    const half = clamp(width, 1, 255) / 2, middle = clamp(level, 0, 255);
    [state.low, state.high] = [middle - half, middle + half];
    draw();
  };
  // Zoom around the voxel (x, y), by default around the middle.
  const setZoom = (zoom, x = state.x, y = state.y) => {
    const before = state.zoom;
    state.zoom = clamp(zoom, 1, MAX_ZOOM);
    move(x + (state.x - x) * before / state.zoom, y + (state.y - y) * before / state.zoom);
  };
  const move = (x, y) => {
    const view = seen(), right = view.width / 2 / state.zoom, below = view.height / 2 / state.zoom;
    [state.x, state.y] = [clamp(x, right, view.width - right), clamp(y, below, view.height - below)];
    draw();
  };
  const reset = () => {
    [state.low, state.high] = seen().windows[state.channel];
    setZoom(1);
  };
  const open = (patient) => {
    state.patient = patient;
    pictures.clear();
    const view = seen();
    picker.value = patient;
    slider.max = view.depth - 1;
    at("before").disabled = patient === ids[0];
    at("after").disabled = patient === ids[ids.length - 1];
    if (at("map")) at("map").disabled = !Object.keys(view.maps).length;
    for (const [index, option] of [...at("channel").options].entries())
      option.textContent = data.channels[index] + (typeof view.channels[index] === "number" ? " (is FLAIR)" : "");
    for (const row of document.querySelectorAll("tr[data-patient]")) row.classList.toggle("shown", row.dataset.patient === patient);
    at("channel").parentNode.hidden = view.channels.every((one, index) => index === 1 || typeof one === "number");
    reset();
    show(view.start);
  };
  const next = (by) => open(ids[clamp(ids.indexOf(state.patient) + by, 0, ids.length - 1)]);
  const toggle = (name) => {
    if (!at(name) || at(name).disabled) return;
    at(name).checked = state[name] = !state[name];
    draw();
  };
  const channel = (index) => {
    state.channel = index; at("channel").value = index;
    [state.low, state.high] = seen().windows[index];
    draw();
  };
  const dragging = (mode) => { drag.value = viewer.dataset.drag = mode; };

  picker.addEventListener("change", () => open(picker.value));
  slider.addEventListener("input", () => show(Number(slider.value)));
  at("channel").addEventListener("change", (event) => channel(Number(event.target.value)));
  for (const name of LAYERS) at(name)?.addEventListener("change", (event) => { state[name] = event.target.checked; draw(); });
  for (const name of ["window", "level"])
    at(name).addEventListener("input", () => setGray(Number(at("window").value), Number(at("level").value)));
  at("zoom").addEventListener("input", () => setZoom(Number(at("zoom").value)));
  at("reset").addEventListener("click", reset);
  drag.addEventListener("change", () => dragging(drag.value));
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
    "+": () => setZoom(state.zoom * 1.25), "=": () => setZoom(state.zoom * 1.25), "-": () => setZoom(state.zoom / 1.25), 0: reset,
    d: () => dragging(drag.options[(drag.selectedIndex + 1) % drag.options.length].value),
  };
  // Keys work when the focus is in the viewer's section, or nowhere. Sliders and lists keep their arrow keys.
  document.addEventListener("keydown", (event) => {
    const act = keys[event.key], on = document.activeElement;
    if (!act || event.ctrlKey || event.metaKey || event.altKey || !(on === document.body || at("look").contains(on))) return;
    if (on.tagName === "SELECT" || (on.type === "range" && event.key.length > 1)) return;
    if (on === document.body && event.key.length > 1 && !event.key.endsWith("Left") && !event.key.endsWith("Right")) return;
    event.preventDefault();
    act();
  });
  // The voxel under the pointer.
  const under = (event) => {
    const view = seen(), canvas = event.target.closest("canvas");
    if (!canvas) return [state.x, state.y];
    const box = canvas.getBoundingClientRect();
    return [state.x + ((event.clientX - box.left) / box.width - .5) * view.width / state.zoom,
      state.y + ((event.clientY - box.top) / box.height - .5) * view.height / state.zoom];
  };
  let turned = 0;
  // After a click on the viewer, the wheel changes slices, and zooms with Ctrl. Before, it scrolls the page.
  viewer.addEventListener("wheel", (event) => {
    if (document.activeElement !== viewer) return;
    event.preventDefault();
    if (event.ctrlKey) {
      setZoom(state.zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1), ...under(event));
      return;
    }
    // A notch of a wheel is about 100 pixels or 3 lines. A trackpad sends many steps of a few pixels.
    turned += event.deltaMode === 1 ? event.deltaY * 33 : event.deltaY;
    if (Math.abs(turned) < 40) return;
    show(state.slice - Math.sign(turned));
    turned = 0;
  }, {passive: false});
  let grip = null;
  viewer.addEventListener("pointerdown", (event) => {
    if (event.button) return;  // a context menu would swallow the end of the drag
    const canvas = event.target.closest("canvas");
    viewer.focus({preventScroll: true});
    grip = {...state, left: event.clientX, top: event.clientY, mode: event.shiftKey ? "gray" : drag.value,
      pixel: canvas ? canvas.getBoundingClientRect().width / seen().width : 1};
    if (event.pointerType === "mouse") viewer.setPointerCapture(event.pointerId);
  });
  viewer.addEventListener("pointermove", (event) => {
    if (!event.buttons) grip = null;  // released where no event came from
    if (!grip) return;
    const right = event.clientX - grip.left, down = event.clientY - grip.top;
    if (grip.mode === "gray") setGray(grip.high - grip.low + right / 2, (grip.high + grip.low) / 2 + down / 2);
    else if (grip.mode === "move")
      move(grip.x - right / grip.pixel / state.zoom, grip.y - down / grip.pixel / seen().aspect / state.zoom);
    // A finger scrolls the page when it moves up or down, and changes slices when it moves sideways.
    else show(grip.slice + Math.round((right - (event.pointerType === "mouse" ? down : 0)) / 8));
  });
  for (const name of ["pointerup", "pointercancel"]) viewer.addEventListener(name, () => { grip = null; });

  dragging("slices");
  open(ids[0]);
})();
