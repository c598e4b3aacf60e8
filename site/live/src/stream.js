// Speech as it is written: code frames in, audio out in blocks, long before the last frame is there.
//
// Each block is vocoded together with the end of the one before (its phases are kept, so that the waves go on in step)
// and with one frame to come; where two blocks meet they are cross-faded.

const CONTEXT = 8, AHEAD = 8, FADE = 320; // mel frames before and behind a block; samples of a cross-fade
// Rounds of Griffin-Lim for a block: as many as fit into this share of the time that its window lasts, so that a slow
// machine speaks a little rougher rather than with gaps.
const SHARE = 0.1, FEWEST = 4, MOST = 20;

export class SpeechStream {
  constructor(model, { block = 1 } = {}) {
    const { codec, audio } = model.about.config;
    this.model = model, this.block = block;
    this.perFrame = codec.hop / audio.hop, this.hop = audio.hop, this.rate = audio.sample_rate;
    model.rounds ??= MOST; // the next answer begins with what this one has learned about the machine
    this.look = 3; // frames to each side that the codec's decoder looks at
    this.codes = [], this.done = 0, this.kept = null;
    this.gain = 1.8; // speech comes out with peaks near 0.5
  }

  // A new pair of codes; a block of audio when one is ready, else null.
  async push(codes) {
    this.codes.push(codes);
    return this.codes.length - this.done >= this.block + this.look ? this.emit(this.codes.length - this.look) : null;
  }

  // What is left.
  async finish() {
    return this.done < this.codes.length ? this.emit(this.codes.length) : null;
  }

  async emit(to) {
    const { model, perFrame, hop } = this, { vocoder } = model, { n_mels } = vocoder;
    const first = Math.max(0, this.done * perFrame - CONTEXT);
    const from = Math.max(0, Math.floor(first / perFrame) - this.look), skip = from * perFrame;
    const mel = await model.mel(this.codes.slice(from));
    const last = Math.min(this.codes.length, to) * perFrame + (to < this.codes.length ? AHEAD : 0);
    const frames = last - first;
    const phase = this.kept && this.phases(first, frames);
    const began = performance.now();
    const wav = vocoder.audio(mel.subarray((first - skip) * n_mels, (last - skip) * n_mels), frames, phase, model.rounds);
    const share = ((performance.now() - began) / 1000) * (this.rate / (frames * hop));
    model.rounds = Math.max(FEWEST, Math.min(MOST, Math.round((model.rounds * SHARE) / share)));
    const start = this.done * perFrame * hop, end = to * perFrame * hop, offset = start - first * hop;
    const out = new Float32Array(end - start);
    for (let i = 0; i < out.length; i++) out[i] = wav[offset + i];
    if (this.kept) {
      for (let i = 0; i < Math.min(FADE, out.length); i++) {
        const old = this.kept.wav[start + i - this.kept.start] ?? out[i], share = i / FADE;
        out[i] = old * Math.sqrt(1 - share) + out[i] * Math.sqrt(share);
      }
    }
    this.kept = { wav, start: first * hop };
    this.done = to;
    return out.map((x) => Math.max(-1, Math.min(1, x * this.gain)));
  }

  // First angles of a window: those of the audio that is there, for the columns that it covers; the rest random.
  phases(first, frames) {
    const { vocoder } = this.model, { bins, n_fft } = vocoder, { hop } = this;
    const columns = frames + 1, re = new Float64Array(columns * bins), im = new Float64Array(columns * bins);
    const known = Float64Array.from({ length: frames * hop }, (_, i) => this.kept.wav[first * hop + i - this.kept.start] ?? 0);
    vocoder.stft(known, columns, re, im);
    const covered = (this.kept.start + this.kept.wav.length - first * hop - n_fft / 2) / hop;
    return Float64Array.from({ length: columns * bins }, (_, i) =>
      Math.floor(i / bins) <= covered ? Math.atan2(im[i], re[i]) : 2 * Math.PI * Math.random());
  }
}
