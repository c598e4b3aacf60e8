// The scene that the model is shown: shapes put on a canvas, strokes, or a file.

const SVG = "http://www.w3.org/2000/svg";

export class Easel {
  // world: colours, outlines, places, radii and background, as exported from the course's own renderer
  constructor(canvas, world) {
    Object.assign(this, { canvas, world, colour: "red", shape: Object.keys(world.outlines)[0], size: "big" });
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.cursor = [0.5, 0.5], this.blank = true;
    this.clear();
    let last = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = at(event);
      if (this.shape === "brush") this.stroke(last, last);
      else this.put(...last), (last = null);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const point = at(event);
      this.stroke(last, point), (last = point);
    });
    canvas.addEventListener("pointerup", () => (last = null));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.pen.fillStyle = rgb(this.world.background);
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.blank = true;
  }

  path(shape, x, y, radius) {
    const { pen, world } = this;
    pen.beginPath();
    if (shape === "circle" || shape === "ring") pen.arc(x, y, radius, 0, 2 * Math.PI);
    if (shape === "ring") pen.moveTo(x + radius * world.hole, y), pen.arc(x, y, radius * world.hole, 0, 2 * Math.PI, true);
    for (const [a, b] of world.outlines[shape]) pen.lineTo(x + a * radius, y + b * radius);
    pen.closePath();
  }

  put(x, y, shape = this.shape, colour = this.colour, size = this.size) {
    if (shape === "brush") return;
    const { pen, world } = this, radius = world.radii[size];
    this.path(shape, x, y, radius);
    pen.fillStyle = rgb(world.colours[colour]);
    pen.fill("evenodd");
    pen.lineWidth = Math.max(0.75, radius * 0.05);
    pen.strokeStyle = colour === "black" ? "#000" : "rgb(90,90,90)";
    pen.stroke();
    this.changed();
  }

  stroke(from, to) {
    const { pen } = this;
    pen.beginPath(), pen.moveTo(...from), pen.lineTo(...to);
    pen.lineWidth = this.size === "big" ? 14 : 6, pen.lineCap = "round", pen.strokeStyle = rgb(this.world.colours[this.colour]);
    pen.stroke();
    this.changed();
  }

  changed() {
    this.blank = false;
    this.onchange?.();
  }

  key(event) {
    const steps = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] }[event.key];
    const { canvas, cursor } = this;
    if (steps) cursor.forEach((each, i) => (cursor[i] = Math.min(1, Math.max(0, each + steps[i]))));
    else if (event.key === "Enter" || event.key === " ") this.put(cursor[0] * canvas.width, cursor[1] * canvas.height);
    else return;
    event.preventDefault();
    this.onmove?.(cursor);
  }

  // One to three different things at different places, as in the course's scenes.
  random() {
    const { world, canvas } = this, pick = (list) => list[Math.floor(Math.random() * list.length)];
    const shuffled = (list) => list.map((each) => [Math.random(), each]).sort().map(([, each]) => each);
    this.clear();
    const count = 1 + Math.floor(Math.random() * 3);
    const places = shuffled(Object.values(world.places)).slice(0, count), shapes = shuffled(Object.keys(world.outlines));
    places.forEach(([right, down], i) => {
      const x = canvas.width / 2 + right * world.step, y = canvas.height / 2 + down * world.step;
      this.put(x, y, shapes[i], pick(Object.keys(world.colours)), pick(Object.keys(world.radii)));
    });
  }

  // An image file, cropped to a square, as `load_image` does.
  async file(file) {
    const image = await createImageBitmap(file).catch(() => {
      throw new Error(`Cannot decode “${file.name}” as an image. PNG, JPEG, WebP or GIF?`);
    });
    const side = Math.min(image.width, image.height), { pen, canvas } = this;
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "#fff", pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
    image.close();
    this.changed();
  }

  // 3 × size × size in 0…1
  pixels() {
    const { width, height } = this.canvas, { data } = this.pen.getImageData(0, 0, width, height);
    const out = new Float32Array(3 * width * height);
    for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) out[c * width * height + i] = data[4 * i + c] / 255;
    return out;
  }

  // A small picture of a shape for its button.
  icon(shape) {
    const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
    svg.setAttribute("viewBox", "-1.1 -1.1 2.2 2.2"), svg.setAttribute("aria-hidden", "true");
    const round = (r) => `M${r},0A${r},${r},0,1,1,-${r},0A${r},${r},0,1,1,${r},0Z`;
    const lines = (this.world.outlines[shape] ?? []).map(([a, b]) => `${a.toFixed(3)},${b.toFixed(3)}`).join("L");
    const shapes = { circle: round(1), ring: round(1) + round(this.world.hole), brush: "M-.9,.9C-.9,.2,-.4,.1,-.2,.4L.9,-.9L.4,.2C.2,.9,-.5,.9,-.9,.9Z" };
    path.setAttribute("d", shapes[shape] ?? `M${lines}Z`), path.setAttribute("fill-rule", "evenodd");
    svg.append(path);
    return svg;
  }
}

export const rgb = ([r, g, b]) => `rgb(${r},${g},${b})`;
