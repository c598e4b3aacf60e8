// The two code streams as a piano roll: the base code above, the residual code below, 80 ms a column; notes can be dragged.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Roll {
  constructor(canvas, entries) {
    Object.assign(this, { canvas, entries, codes: [], playing: -1, cursor: [0, 0] });
    this.pen = canvas.getContext("2d");
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = this.at(event);
      if (held) canvas.setPointerCapture(event.pointerId), this.set(held.frame, held.book, held.code);
    });
    canvas.addEventListener("pointermove", (event) => held && this.set(held.frame, held.book, this.at(event, held.book)?.code ?? 0));
    canvas.addEventListener("pointerup", () => held && ((held = null), this.onedit?.()));
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(codes) { this.codes = codes.map((pair) => [...pair]), (this.original = codes.map((pair) => [...pair])), this.draw(); }
  add(pair) { this.codes.push([...pair]), this.original.push([...pair]), this.draw(); }
  clear() { (this.codes = []), (this.original = []), this.draw(); }
  restore() { this.show(this.original), this.onedit?.(); }
  get edited() { return this.codes.some((pair, t) => pair.some((code, b) => code !== this.original[t][b])); }

  get width() { return this.canvas.width / Math.max(24, this.codes.length); }

  at(event, book = null) {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.canvas.width, y = ((event.clientY - box.top) / box.height) * this.canvas.height;
    const half = this.canvas.height / 2, frame = Math.floor(x / this.width);
    if (frame < 0 || frame >= this.codes.length) return null;
    book ??= y < half ? 0 : 1;
    const code = Math.round((1 - (y - book * half) / half) * (this.entries - 1));
    return { frame, book, code: Math.max(0, Math.min(this.entries - 1, code)) };
  }

  set(frame, book, code) { this.codes[frame][book] = code, this.draw(); }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], Tab: null }[event.key], up = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (!this.codes.length || (!moves && !up && event.key !== "x")) return;
    event.preventDefault();
    if (moves) this.cursor[0] = Math.max(0, Math.min(this.codes.length - 1, this.cursor[0] + moves[0]));
    if (event.key === "x") this.cursor[1] = 1 - this.cursor[1]; // to the other codebook
    const [frame, book] = this.cursor;
    if (up) this.set(frame, book, Math.max(0, Math.min(this.entries - 1, this.codes[frame][book] + up))), this.onedit?.();
    this.draw();
  }

  draw() {
    const { canvas, pen, codes, entries } = this, ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio, (canvas.height = canvas.clientHeight * ratio);
    const half = canvas.height / 2, width = this.width, tall = Math.max(4, half / entries * 2.5);
    pen.fillStyle = css("--line"), pen.fillRect(0, half - 0.5, canvas.width, 1);
    pen.fillStyle = css("--soft"), (pen.font = `${12 * ratio}px system-ui`);
    pen.fillText("base code", 6 * ratio, 16 * ratio), pen.fillText("residual code", 6 * ratio, half + 16 * ratio);
    codes.forEach((pair, t) => pair.forEach((code, book) => {
      const y = book * half + (1 - code / (entries - 1)) * (half - tall);
      const changed = code !== this.original[t][book], focus = document.activeElement === canvas && this.cursor[0] === t && this.cursor[1] === book;
      pen.fillStyle = css(changed ? "--accent" : "--speech");
      pen.globalAlpha = this.playing >= 0 && this.playing !== t ? 0.55 : 1;
      pen.fillRect(t * width, y, Math.max(2, width - 1), tall), (pen.globalAlpha = 1);
      if (focus) pen.strokeStyle = css("--ink"), pen.strokeRect(t * width - 1, y - 2, width + 1, tall + 4);
    }));
  }
}
