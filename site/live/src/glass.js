// The glass: everything on the right half of the page. It only draws what the worker has sent: what is shown is what ran.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const make = (tag, text = "", attributes = {}) => Object.assign(document.createElement(tag), { textContent: text, ...attributes });
const KINDS = ["image", "audio", "text", "new"];

export class Glass {
  constructor(about, root) {
    Object.assign(this, { about, root, tokens: [], steps: [], vision: null, off: new Set(), talkerOff: new Set() });
    this.$ = (id) => root.querySelector(`#${id}`);
    this.drawHeads(), this.drawTable({}), this.pickVision();
  }

  // A new prompt: its tokens, to scale, and what the encoders showed.
  prompt({ tokens, seen }, image) {
    Object.assign(this, { tokens: [...tokens], steps: [], seen, image, prompted: tokens.length, picked: null });
    this.$("sequence").replaceChildren(...tokens.map((token, i) => this.chip(token, i)));
    this.root.hidden = false;
    this.count(), this.drawPatches(), this.drawSpectrogram(), this.drawTable({});
    this.$("distribution").replaceChildren(), (this.$("chosen").textContent = "hover a generated token");
  }

  // One generated token.
  step(step) {
    this.steps.push(step);
    const token = { kind: "new", label: step.label };
    this.tokens.push(token);
    this.$("sequence").append(this.chip(token, this.tokens.length - 1));
    this.count(), this.pick(this.steps.length - 1);
  }

  chip({ kind, label }, position) {
    const generated = position - this.prompted;
    const chip = make(kind === "new" ? "button" : "span", kind === "audio" ? "" : label, { className: `token ${kind}`, title: `${position}: ${kind} · ${label}` });
    chip.setAttribute("role", "listitem");
    if (kind === "new") {
      chip.type = "button";
      for (const event of ["pointerenter", "focus", "click"]) chip.addEventListener(event, () => this.pick(generated));
    }
    chip.style.setProperty("--looked", 1);
    return chip;
  }

  count() {
    const counts = KINDS.map((kind) => [kind, this.tokens.filter((token) => token.kind === kind).length]).filter(([, n]) => n);
    this.$("ledger").textContent = `${counts.map(([kind, n]) => `${kind} ${n}`).join(" + ")} = ${this.tokens.length} of ${this.about.config.thinker.ctx_len} tokens`;
  }

  // Show one generated token: its distribution, and what it looked at (mean of all heads, or the head under the pointer).
  pick(number, head = null) {
    const step = this.steps[number];
    if (!step) return;
    this.picked = number;
    const chips = [...this.$("sequence").children], { layers, heads } = this.about.config.thinker, { keys, attention } = step;
    const looked = new Float32Array(keys);
    for (let n = 0; n < layers * heads; n++) {
      if (head !== null && n !== head) continue;
      for (let k = 0; k < keys; k++) looked[k] += attention[n * keys + k] / (head === null ? layers * heads : 1);
    }
    const top = Math.max(...looked);
    chips.forEach((chip, i) => {
      chip.classList.toggle("picked", i === this.prompted + number);
      chip.style.setProperty("--looked", i < keys ? 0.15 + 0.85 * Math.sqrt(looked[i] / top) : 1);
    });
    this.looked = looked;
    const where = head === null ? "mean of all heads" : `layer ${Math.floor(head / heads) + 1}, head ${(head % heads) + 1}`;
    this.$("chosen").textContent = `“${step.label}”, p = ${Math.exp(step.logProb).toFixed(3)}; strength of colour above: its attention (${where})`;
    this.$("distribution").replaceChildren(...step.top.map(({ label, p }) => {
      const bar = make("div", "", { className: `bar${label === step.label ? " top" : ""}` }), fill = make("span");
      fill.style.width = `${100 * p}%`;
      bar.append(make("b", label), fill, make("span", p < 0.001 ? "< 0.1%" : `${(100 * p).toFixed(1)}%`, { style: "background:none" }));
      return bar;
    }));
    this.fillHeads(step), this.drawSpectrogram();
  }

  // -- heads --------------------------------------------------------------------------------------------------------

  drawHeads() {
    for (const [id, part, off] of [["heads", "thinker", this.off], ["talker-heads", "talker", this.talkerOff]]) {
      const { layers, heads } = this.about.config[part];
      this.$(id).replaceChildren(...Array.from({ length: layers }, (_, layer) => {
        const line = make("div", "", { className: "line" });
        line.append(make("span", `layer ${layer + 1}`));
        for (let h = 0; h < heads; h++) {
          const n = layer * heads + h, button = make("button", "", { className: "head", type: "button", title: `layer ${layer + 1}, head ${h + 1}` });
          button.setAttribute("aria-label", `${part}, layer ${layer + 1}, head ${h + 1}`), button.setAttribute("aria-pressed", "false");
          button.addEventListener("click", () => this.toggle(button, n, off));
          if (part === "thinker") {
            for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => this.picked !== null && this.pick(this.picked, n));
            for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => this.picked !== null && this.pick(this.picked));
          }
          line.append(button);
        }
        return line;
      }));
    }
  }

  toggle(button, number, off) {
    if (!off.delete(number)) off.add(number);
    button.classList.toggle("off", off.has(number)), button.setAttribute("aria-pressed", String(off.has(number)));
    this.onheads?.(this.scale("thinker", this.off), this.scale("talker", this.talkerOff));
  }

  scale(part, off) {
    const { layers, heads } = this.about.config[part];
    return Float32Array.from({ length: layers * heads }, (_, n) => (off.has(n) ? 0 : 1));
  }

  // For each head, the share of its attention that went to each modality, as coloured columns.
  fillHeads({ attention, keys }) {
    this.$("heads").querySelectorAll(".head").forEach((button, n) => {
      const shares = Object.fromEntries(KINDS.map((kind) => [kind, 0]));
      for (let k = 0; k < keys; k++) shares[this.tokens[k].kind] += attention[n * keys + k];
      button.replaceChildren(...KINDS.map((kind) => {
        const bar = make("u");
        bar.style.width = `${100 * shares[kind]}%`, (bar.style.background = `var(--${kind})`);
        return bar;
      }));
      button.title = `layer ${Math.floor(n / this.about.config.thinker.heads) + 1}: ${KINDS.map((kind) => `${kind} ${(100 * shares[kind]).toFixed(0)}%`).join(", ")}`;
    });
  }

  // -- image and audio ----------------------------------------------------------------------------------------------

  pickVision() {
    const { layers, heads } = this.about.config.vision, select = make("select");
    select.setAttribute("aria-label", "Layer and head of the image encoder");
    select.append(new Option("last layer, mean", "mean"));
    for (let n = 0; n < layers * heads; n++) select.append(new Option(`layer ${Math.floor(n / heads) + 1}, head ${(n % heads) + 1}`, n));
    select.addEventListener("change", () => this.drawPatches());
    this.$("vision-picker").append(select), (this.visionPicker = select);
  }

  drawPatches() {
    const canvas = this.$("patches"), pen = canvas.getContext("2d"), { cls } = this.seen ?? {};
    pen.clearRect(0, 0, canvas.width, canvas.height);
    canvas.closest("figure").hidden = !this.image;
    if (!this.image) return;
    pen.putImageData(this.image, 0, 0);
    const [layers, heads, places] = cls.dims, side = Math.sqrt(places - 1), size = canvas.width / side;
    const chosen = this.visionPicker.value === "mean" ? Array.from({ length: heads }, (_, h) => (layers - 1) * heads + h) : [Number(this.visionPicker.value)];
    const looked = Array.from({ length: places - 1 }, (_, p) => chosen.reduce((sum, n) => sum + cls.data[n * places + 1 + p], 0));
    const top = Math.max(...looked);
    looked.forEach((each, p) => {
      pen.fillStyle = `rgba(0,0,0,${0.75 * (1 - Math.sqrt(each / top))})`;
      pen.fillRect((p % side) * size, Math.floor(p / side) * size, size - 0.5, size - 0.5);
    });
  }

  drawSpectrogram() {
    const figure = this.$("sound-view"), mel = this.seen?.mel;
    figure.hidden = !mel;
    if (!mel) return;
    const [, frames, bands] = mel.dims, canvas = this.$("spectrogram"), scale = 4;
    canvas.width = Math.max(frames * scale, 1), (canvas.height = bands + 14);
    const pen = canvas.getContext("2d"), image = pen.createImageData(canvas.width, bands);
    for (let t = 0; t < canvas.width; t++) {
      for (let m = 0; m < bands; m++) {
        const value = Math.max(0, Math.min(1, (mel.data[Math.floor(t / scale) * bands + m] + 9) / 11));
        const at = 4 * ((bands - 1 - m) * canvas.width + t);
        image.data.set([255 * value, 200 * value ** 1.4, 90 + 60 * value, 255], at);
      }
    }
    pen.putImageData(image, 0, 0);
    const first = this.tokens.findIndex((token) => token.kind === "audio"), per = (4 * scale);
    const looked = this.looked ?? [], audio = this.tokens.filter((token) => token.kind === "audio").length;
    const top = Math.max(1e-9, ...Array.from({ length: audio }, (_, i) => looked[first + i] ?? 0));
    for (let i = 0; i < audio; i++) {
      pen.fillStyle = css("--audio"), (pen.globalAlpha = 0.12 + 0.88 * ((looked[first + i] ?? 0) / top));
      pen.fillRect(i * per, bands + 2, per - 1, 12), (pen.globalAlpha = 1);
    }
  }

  // -- the table ----------------------------------------------------------------------------------------------------

  // Every tensor of every graph that ran: axis names from the annotations, sizes of this run.
  drawTable(ran) {
    const { graphs, config } = this.about, table = make("table"), head = make("tr");
    head.append(...["graph", "tensor", "first call", "last call"].map((each) => make("th", each, { scope: "col" })));
    table.append(head);
    const named = (hint, dims) => {
      const names = /\((.*)\)/.exec(hint)?.[1].replace("{self.hop}", config.audio.hop).split(", ") ?? [];
      return dims.map((size, i) => (/[a-z]/.test(names[i] ?? "") ? `${names[i]} ${size}` : size)).join(" × ");
    };
    for (const [name, { axes, outputs }] of Object.entries(graphs)) {
      const { calls, first, last } = ran[name] ?? { first: {} };
      const { return: out, ...inputs } = axes, returned = out.match(/\([^)]*\) \w+/g);
      const hints = [...Object.entries(inputs).map(([each, hint]) => [each, hint, "→ "]), ...outputs.map((each, i) => [each, returned[i], "← "])];
      hints.filter(([each]) => first[each]).forEach(([each, hint, arrow], i) => {
        const row = make("tr"), title = make("th", i ? "" : `${name} ×${calls}`, { scope: "row" });
        row.append(title, make("td", arrow + each), make("td", named(hint, first[each])), make("td", calls > 1 ? named(hint, last[each]) : ""));
        table.append(row);
      });
    }
    this.$("shapes-table").replaceChildren(table);
  }
}
