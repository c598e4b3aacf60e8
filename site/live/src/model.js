// The model on onnxruntime: image, audio and text in, tokens and speech codes out, each step with all that happened in it.
// The same steps as tinyomni/onnx/runtime.py.

import { Tokenizer, BOS, EOS } from "./tokenizer.js";
import { Vocoder } from "./vocoder.js";

export class Model {
  // ort: onnxruntime-web; about: model.json; bytes: name → Uint8Array of a graph
  static async load(ort, about, bytes, progress = () => {}) {
    const model = Model.withParser(about);
    Object.assign(model, { ort, tokenizer: new Tokenizer(about.tokenizer.pieces), sessions: {}, ran: {} });
    for (const name of Object.keys(about.graphs)) {
      model.sessions[name] = await ort.InferenceSession.create(bytes[name], { graphOptimizationLevel: "all" });
      progress(name);
    }
    const { thinker, talker, audio } = about.config;
    model.thinkerHeads = new Float32Array(thinker.layers * thinker.heads).fill(1);
    model.talkerHeads = new Float32Array(talker.layers * talker.heads).fill(1);
    model.vocoder = new Vocoder({ ...about.vocoder, inverse: about.inverse, n_mels: audio.n_mels });
    return model;
  }

  // What parses replies needs no graph.
  static withParser(about) {
    const { scratchpad, sentence } = about.reply;
    const patterns = { scratchpad: new RegExp(`^(?:${scratchpad})$`, "s"), sentence: new RegExp(sentence, "sy") };
    return Object.assign(new Model(), { about, ...patterns });
  }

  float(data, dims) { return new this.ort.Tensor("float32", data, dims); }
  int(data, dims) { return new this.ort.Tensor("int64", BigInt64Array.from(data, BigInt), dims); }

  // One graph; `ran` keeps the sizes of every tensor of its first and its last call.
  async run(name, inputs) {
    const outputs = await this.sessions[name].run(inputs);
    const dims = (tensors) => Object.fromEntries(Object.entries(tensors).map(([each, { dims }]) => [each, [...dims]]));
    const last = { ...dims(inputs), ...dims(outputs) }, { calls = 0, first = last } = this.ran[name] ?? {};
    this.ran[name] = { calls: calls + 1, first, last };
    return outputs;
  }

  emptyCache({ layers, heads }, dim, kvHeads = heads) {
    const dims = [layers, 1, kvHeads, 0, dim / heads];
    return { keys: this.float(new Float32Array(0), dims), values: this.float(new Float32Array(0), dims) };
  }

  // -- embed --------------------------------------------------------------------------------------------------------

  // image: Float32Array (3 × size × size) in 0…1; wav: Float32Array at the model's rate; text: string.
  // → the prompt (total × d_model), one description for each token, and what the encoders showed on the way.
  async embed({ image, wav, text }) {
    const { thinker, vision, audio } = this.about.config;
    const parts = [], tokens = [], seen = {};
    if (image) {
      const { token, attention } = await this.run("image", { image: this.float(image, [1, 3, vision.image_size, vision.image_size]) });
      parts.push(token.data), tokens.push({ kind: "image", label: "image" });
      seen.cls = { data: attention.data, dims: attention.dims };
    }
    if (wav) {
      const { mel } = await this.run("mel", { wav: this.float(wav, [1, wav.length]) });
      const { tokens: heard, log_probs } = await this.run("audio", { mel });
      parts.push(heard.data);
      for (let i = 0; i < heard.dims[1]; i++) tokens.push({ kind: "audio", label: `${i * 40} ms` });
      seen.mel = { data: mel.data, dims: mel.dims };
      seen.transcript = this.collapse(log_probs);
    }
    const ids = [BOS, ...this.tokenizer.encode(text ?? "")];
    const { embeddings } = await this.run("embed", { ids: this.int(ids, [1, ids.length]) });
    parts.push(embeddings.data);
    for (const id of ids) tokens.push({ kind: "text", label: this.tokenizer.label(id), id });
    const prompt = new Float32Array(tokens.length * thinker.d_model);
    let at = 0;
    for (const part of parts) prompt.set(part, at), (at += part.length);
    const limit = Math.floor(thinker.ctx_len / 4), sounds = tokens.filter((each) => each.kind === "audio").length;
    if (sounds > limit) throw new Error(`The recording has ${sounds} audio tokens, at most ${limit} fit. Use ${(limit * 4 * audio.hop) / audio.sample_rate} s or less.`);
    if (tokens.length + 1 > thinker.ctx_len) throw new Error(`The question has ${tokens.length} tokens, at most ${thinker.ctx_len} fit. Make it shorter.`);
    return { prompt, tokens, seen };
  }

  // The likeliest character of each audio token; repeats merged, blanks dropped.
  collapse({ data, dims: [, frames, characters] }) {
    let text = "", last = 0;
    for (let t = 0; t < frames; t++) {
      const best = argmax(data.subarray(t * characters, (t + 1) * characters));
      if (best !== last && best) text += this.about.characters[best - 1];
      last = best;
    }
    return text.trim();
  }

  // -- think --------------------------------------------------------------------------------------------------------

  // Greedy at temperature 0. Yields after each token what was chosen, from which distribution, and who looked where.
  async *think({ prompt, tokens }, { maxNewTokens = 64, temperature = 0, random = Math.random } = {}) {
    const { thinker } = this.about.config;
    let cache = this.emptyCache(thinker, thinker.d_model, thinker.kv_heads);
    let x = this.float(prompt, [1, tokens.length, thinker.d_model]);
    const scale = this.float(this.thinkerHeads, [thinker.layers, thinker.heads]);
    const most = Math.min(maxNewTokens, thinker.ctx_len - tokens.length);
    for (let step = 0; step < most; step++) {
      const out = await this.run("think", { embeddings: x, ...cache, head_scale: scale });
      const logits = out.logits.data, probs = softmax(logits);
      const id = temperature > 0 ? draw(softmax(logits, temperature), random) : argmax(logits);
      const { dims, data } = out.attention; // layers, heads, queries, keys: the last query chose this token
      const [layers, heads, queries, keys] = dims, attention = new Float32Array(layers * heads * keys);
      for (let n = 0; n < layers * heads; n++) {
        attention.set(data.subarray((n * queries + queries - 1) * keys, (n * queries + queries) * keys), n * keys);
      }
      yield { id, label: this.tokenizer.label(id), logits: Float32Array.from(logits), logProb: Math.log(probs[id]), top: best(probs, 8), attention, keys };
      if (id === EOS) return;
      cache = { keys: out.new_keys, values: out.new_values };
      x = (await this.run("embed", { ids: this.int([id], [1, 1]) })).embeddings;
    }
  }

  // The parts of a reply, split at its special tokens where it has them: `split_reply` of tinyomni/reply.py.
  parts(ids, spoken, tokenizer = this.tokenizer) {
    const { separators } = tokenizer, start = separators ? ids.indexOf(separators.scratchpad) : -1;
    if (start < 0) return this.parse(tokenizer.decode(ids), spoken);
    const at = ids.indexOf(separators.answer, start), end = at < 0 ? ids.length : at;
    const text = (from, to) => tokenizer.decode(ids.slice(from, to)).trim();
    const written = text(start + 1, end), stop = written.indexOf(". ");
    const [description, lookup] = stop < 0 ? [written, ""] : [written.slice(0, stop), written.slice(stop + 2)];
    return { transcript: text(0, start) || null, description: description || null, lookup: lookup || null, answer: text(end + 1) };
  }

  // Transcript, description, lookup and answer of a reply: `parse_reply` of tinyomni/reply.py, by its own patterns.
  parse(text, spoken) {
    let start = 0, found = this.scratchpad.exec(text);
    while (spoken && !found) {
      this.sentence.lastIndex = start;
      if (!this.sentence.exec(text)) break;
      start = this.sentence.lastIndex;
      found = this.scratchpad.exec(text.slice(start));
    }
    if (!found) return { transcript: null, description: null, lookup: null, answer: text };
    const { description, lookup, answer } = found.groups;
    return { transcript: text.slice(0, start).trimEnd() || null, description, lookup: lookup ?? null, answer: answer ?? "" };
  }

  // How certain a reply is, whether it is called unsure, and of what: `Reply.certainty`, `unsure`, `doubts_scene` and
  // `doubts_speech` of tinyomni/reply.py. reading: what the recogniser reads in the recording; null without one.
  judge(ids, logProbs, { parts, image, reading }, { separators } = this.tokenizer) {
    const { style, thresholds, reply } = this.about, below = (value, limit) => limit !== undefined && value < limit;
    const mean = logProbs.reduce((sum, each) => sum + each, 0) / logProbs.length;
    const certainty = style === "wide" ? Math.min(...logProbs) : mean;
    const described = image && (parts.description || parts.answer).startsWith(reply.describes);
    const first = logProbs[separators ? ids.indexOf(separators.scratchpad) + 1 : 0];
    const apart = reading !== null && thresholds.asr !== undefined && this.disagreement(reading, parts) > reply.most_apart;
    const scene = Boolean(described) && below(first, thresholds.scene), speech = !scene && apart;
    const unsure = scene || speech || below(certainty, thresholds[reading === null ? "typed" : "spoken"]);
    return { certainty, unsure, of: scene ? "scene" : speech ? "speech" : null };
  }

  // How far the recogniser's reading is from what a reply takes a recording for: `disagreement` of tinyomni/reply.py.
  disagreement(reading, { transcript, answer }) {
    if (!transcript && answer === this.about.reply.heard_nothing) return 0;
    const starts = [0];
    this.sentence.lastIndex = 0;
    while (!transcript && this.sentence.exec(answer)) starts.push(this.sentence.lastIndex);
    const letters = (text) => (text.toLowerCase().match(/[a-z]+/g) ?? []).join(" "), read = letters(reading);
    const takenFor = starts.map((start) => letters((transcript || answer).slice(start))).filter(Boolean);
    return Math.min(...takenFor.map((each) => editDistance(read, each) / each.length));
  }

  // -- speak --------------------------------------------------------------------------------------------------------

  // Yields the codes of each frame of 80 ms as they are written.
  async *talk(text, voice = 0) {
    const { talker } = this.about.config;
    let ids = [...(voice ? [talker.vocab - voice] : []), ...this.tokenizer.encode(text)];
    const limit = Math.min(talker.max_frames, Math.max(50, Math.min(1000, 30 * ids.length)));
    let cache = this.emptyCache(talker, talker.talker_dim), codes = [0, 0];
    const scale = this.float(this.talkerHeads, [talker.layers, talker.heads]);
    for (let frame = 0; frame < limit; frame++) {
      const out = await this.run("talk", {
        text: this.int(ids, [1, ids.length]), codes: this.int(codes, [1, 1, 2]), ...cache, head_scale: scale,
      });
      if (frame && out.end.data[0] > 0) return;
      codes = [argmax(out.base.data), argmax(out.residual.data)];
      yield codes;
      cache = { keys: out.new_keys, values: out.new_values };
      ids = [];
    }
  }

  // Codes → log-mel, 8 frames for each pair.
  async mel(codes) {
    return (await this.run("codec", { codes: this.int(codes.flat(), [1, codes.length, 2]) })).mel.data;
  }
}

// Insertions, deletions and substitutions (Levenshtein, 1966).
function editDistance(one, two) {
  let row = Array.from({ length: two.length + 1 }, (_, j) => j);
  for (let i = 1; i <= one.length; i++) {
    const next = [i];
    for (let j = 1; j <= two.length; j++) next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (one[i - 1] !== two[j - 1]));
    row = next;
  }
  return row[two.length];
}

export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

export function softmax(logits, temperature = 1) {
  let top = -Infinity, sum = 0;
  for (const each of logits) if (each > top) top = each;
  const out = new Float32Array(logits.length);
  for (let i = 0; i < logits.length; i++) sum += out[i] = Math.exp((logits[i] - top) / temperature);
  for (let i = 0; i < out.length; i++) out[i] /= sum;
  return out;
}

function draw(probs, random) {
  let left = random();
  for (let i = 0; i < probs.length; i++) if ((left -= probs[i]) < 0) return i;
  return argmax(probs);
}

function best(probs, count) {
  return Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a]).slice(0, count).map((id) => ({ id, p: probs[id] }));
}
