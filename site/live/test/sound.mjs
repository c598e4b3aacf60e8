// node sound.mjs: the FFT against its definition, streamed blocks against the whole, what counts as a gap.

import assert from "node:assert/strict";
import { FFT } from "../src/fft.js";
import { Player } from "../src/sound.js";
import { SpeechStream } from "../src/stream.js";

for (const size of [2, 4, 8, 32, 64, 512, 1024]) {
  const re = Float64Array.from({ length: size }, (_, i) => Math.sin(3 * i * i)), im = re.map((x, i) => Math.cos(i) - x);
  const gotRe = re.slice(), gotIm = im.slice();
  new FFT(size).transform(gotRe, gotIm);
  for (let k = 0; k < size; k++) {
    let sumRe = 0, sumIm = 0;
    for (let n = 0; n < size; n++) {
      const angle = (-2 * Math.PI * ((k * n) % size)) / size, c = Math.cos(angle), s = Math.sin(angle);
      sumRe += re[n] * c - im[n] * s, sumIm += re[n] * s + im[n] * c;
    }
    assert.ok(Math.hypot(gotRe[k] - sumRe, gotIm[k] - sumIm) < 1e-9 * size, `size ${size}, frequency ${k}`);
  }
}

// A model whose mel frame says all that the codec's decoder looks at: three codes to each side, zeros past the ends; and
// a vocoder that gives each of a frame's samples the value of that frame, and notes its rounds.
const hop = 400, reach = 3, rounds = [];
let window = null; // what the vocoder was given last
let milliseconds = 0, clock = 0;
globalThis.performance = { now: () => clock };
const model = () => ({
  about: { config: { codec: { hop: 8 * hop }, audio: { hop, sample_rate: 40_000 } } },
  async mel(codes) {
    const at = (i) => codes[i]?.[0] ?? 0;
    return Float32Array.from({ length: 8 * codes.length }, (_, t) => {
      const i = Math.floor(t / 8);
      let seen = 0;
      for (let d = -reach; d <= reach; d++) seen += at(i + d) * (d + 4);
      return (seen + (t % 8)) / 1000;
    });
  },
  vocoder: {
    n_mels: 1, bins: 1, n_fft: 2 * hop,
    stft() {},
    audio(mel, frames, phase, count) {
      (window = mel), rounds.push(count), (clock += milliseconds * count * frames);
      assert.equal(mel.length, frames);
      return Float64Array.from({ length: frames * hop }, (_, i) => mel[Math.floor(i / hop)]);
    },
  },
});

async function spoken(codes, block, one = model()) {
  const stream = new SpeechStream(one, { block }), whole = await one.mel(codes), out = [];
  stream.gain = 1;
  for (const pair of [...codes, null]) {
    const samples = await (pair ? stream.push(pair) : stream.finish());
    if (!samples) continue;
    const first = stream.kept.start / hop; // up to the block's end the window is that of the whole
    assert.deepEqual(window.subarray(0, 8 * stream.done - first), whole.subarray(first, 8 * stream.done));
    out.push(samples);
  }
  return out;
}

for (const length of [1, 2, 3, 4, 7, 8, 20]) {
  const codes = Array.from({ length }, (_, i) => [1 + ((7 * i) % 11), 0]), whole = await model().mel(codes);
  for (const block of [1, 2, 4]) {
    const blocks = await spoken(codes, block);
    let t = 0;
    for (const [number, samples] of blocks.entries()) {
      for (let i = 0; i < samples.length; i++, t++) {
        if (number && i < 320) continue; // the cross-fade
        assert.ok(Math.abs(samples[i] - whole[Math.floor(t / hop)]) < 1e-6, `${length} codes, block ${block}, sample ${t}`);
      }
    }
    assert.equal(t, length * 8 * hop);
  }
}

// A hop is 10 ms. Of rounds that take 0.125 ms a frame, eight fit into a tenth of it; of 2 ms, none; of 0.02 ms, all.
const codes = Array.from({ length: 40 }, () => [1, 0]), slow = model();
rounds.length = 0, (milliseconds = 0.125), await spoken(codes, 4, slow);
assert.equal(rounds[0], 20), assert.ok(rounds.slice(1).every((each) => each === 8), `${rounds}`);
rounds.length = 0, (milliseconds = 2), await spoken(codes, 4, slow);
assert.equal(rounds[0], 8), assert.ok(rounds.slice(1).every((each) => each === 4), `${rounds}`);
rounds.length = 0, (milliseconds = 0.02), await spoken(codes, 4, slow);
assert.equal(rounds[0], 4), assert.ok(rounds.slice(1).every((each) => each === 20), `${rounds}`);

const player = new Player(1000), starts = [];
player.context = {
  currentTime: 1,
  createBuffer: (_, length) => ({ duration: length / 1000, copyToChannel() {} }),
  createBufferSource: () => ({ connect() {}, start: (at) => starts.push(at), stop() {} }),
};
const play = (now) => ((player.context.currentTime = now), player.play(new Float32Array(100)), starts.at(-1));
const near = (got, expected) => assert.ok(Math.abs(got - expected) < 1e-9, `${got}, expected ${expected}`);
near(play(1), 1.03), near(play(1.1), 1.13), assert.equal(player.gaps, 0); // each follows the one before
near(play(1.33), 1.33 + 0.16), assert.equal(player.gaps, 1), near(player.lead, 0.16); // 0.1 s late: the next starts later
player.hold(), near(play(9), 9.16), assert.equal(player.gaps, 1), near(player.lead, 0.16); // the reader had paused
player.stop(), near(player.lead, 0.16), player.stop(), near(player.lead, 0.08); // after an answer without a gap, sooner
