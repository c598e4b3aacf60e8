// Log-mel spectrogram → waveform by Griffin-Lim with momentum: tinyomni/vocoder.py, in chunks that can be played while
// the next ones are made. Griffin & Lim (1984); Perraudin, Balazs & Søndergaard (2013).

import { FFT } from "./fft.js";

const LOG_FLOOR = 1e-5, MOMENTUM = 0.99;

export class Vocoder {
  // inverse: (frequencies × mels), the pseudo-inverse of the mel filters
  constructor({ n_fft, hop, inverse, n_mels, iterations = 32 }) {
    Object.assign(this, { n_fft, hop, inverse, n_mels, iterations });
    this.bins = n_fft / 2 + 1;
    this.fft = new FFT(n_fft);
    this.window = Float64Array.from({ length: n_fft }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / n_fft));
    this.re = new Float64Array(n_fft), this.im = new Float64Array(n_fft);
  }

  // (frames × mels) log-mel → (columns × bins) magnitudes, column by column
  magnitudes(mel, frames) {
    const { n_mels, bins, inverse } = this;
    const out = new Float64Array(frames * bins), linear = new Float64Array(n_mels);
    for (let t = 0; t < frames; t++) {
      for (let m = 0; m < n_mels; m++) linear[m] = Math.max(0, Math.exp(Math.min(20, mel[t * n_mels + m])) - LOG_FLOOR);
      for (let f = 0; f < bins; f++) {
        let sum = 0;
        for (let m = 0; m < n_mels; m++) sum += inverse[f * n_mels + m] * linear[m];
        out[t * bins + f] = Math.max(0, sum);
      }
    }
    return out;
  }

  // Columns → samples: inverse FFT, window, overlap-add, divided by the sum of squared windows. Two columns share one
  // FFT: of two real signals one is its real part, the other its imaginary part.
  istft(re, im, columns, length) {
    const { n_fft, hop, bins, fft, window } = this, half = n_fft / 2;
    const wav = new Float64Array(n_fft + hop * columns), a = this.re, b = this.im;
    for (let t = 0; t < columns; t += 2) {
      const p = t * bins, q = t + 1 < columns ? p + bins : -1;
      for (let f = 0; f <= half; f++) {
        const edge = f === 0 || f === half; // as irfft: the imaginary part of the first and the last bin means nothing
        const pr = re[p + f], pi = edge ? 0 : im[p + f], qr = q < 0 ? 0 : re[q + f], qi = q < 0 || edge ? 0 : im[q + f];
        a[f] = pr - qi, b[f] = pi + qr;
        if (!edge) a[n_fft - f] = pr + qi, b[n_fft - f] = qr - pi;
      }
      fft.transform(b, a); // swapped: the inverse
      const at = t * hop;
      for (let i = 0; i < n_fft; i++) {
        const w = window[i] / n_fft;
        wav[at + i] += a[i] * w;
        wav[at + hop + i] += b[i] * w;
      }
    }
    const weight = this.weights(columns), out = new Float64Array(length);
    for (let i = 0; i < length; i++) {
      const at = i + half;
      out[i] = weight[at] > 1e-11 ? wav[at] / weight[at] : 0;
    }
    return out;
  }

  // The sum of squared windows at each sample; the same for all rounds.
  weights(columns) {
    if (this.weightColumns !== columns) {
      const { n_fft, hop, window } = this;
      this.weight = new Float64Array(n_fft + hop * columns), this.weightColumns = columns;
      for (let t = 0; t < columns; t++) for (let i = 0; i < n_fft; i++) this.weight[t * hop + i] += window[i] * window[i];
    }
    return this.weight;
  }

  // Samples → columns, centred, zeros past the ends; two columns share one FFT here too.
  stft(wav, columns, re, im) {
    const { n_fft, hop, bins, fft, window } = this, half = n_fft / 2, a = this.re, b = this.im, length = wav.length;
    for (let t = 0; t < columns; t += 2) {
      const one = t * hop - half, two = one + hop;
      for (let i = 0; i < n_fft; i++) {
        const x = one + i, y = two + i;
        a[i] = x >= 0 && x < length ? wav[x] * window[i] : 0;
        b[i] = y >= 0 && y < length ? wav[y] * window[i] : 0;
      }
      fft.transform(a, b);
      const p = t * bins, q = t + 1 < columns ? p + bins : -1;
      for (let f = 0; f <= half; f++) {
        const g = (n_fft - f) % n_fft;
        re[p + f] = (a[f] + a[g]) / 2, im[p + f] = (b[f] - b[g]) / 2;
        if (q >= 0) re[q + f] = (b[f] + b[g]) / 2, im[q + f] = (a[g] - a[f]) / 2;
      }
    }
  }

  // Log-mel (frames × mels) → frames × hop samples. `phase` gives the first angles (columns × bins); random by default.
  audio(mel, frames, phase = null, iterations = this.iterations) {
    const { bins, hop } = this;
    const columns = frames + 1, size = columns * bins;
    const magnitudes = new Float64Array(size);
    magnitudes.set(this.magnitudes(mel, frames));
    magnitudes.copyWithin(frames * bins, (frames - 1) * bins, frames * bins); // the last one again
    const re = new Float64Array(size), im = new Float64Array(size);
    const oldRe = new Float64Array(size), oldIm = new Float64Array(size);
    const newRe = new Float64Array(size), newIm = new Float64Array(size);
    const random = generator(1);
    for (let i = 0; i < size; i++) {
      const angle = phase ? phase[i] : 2 * Math.PI * random();
      (re[i] = magnitudes[i] * Math.cos(angle)), (im[i] = magnitudes[i] * Math.sin(angle));
    }
    const share = MOMENTUM / (1 + MOMENTUM);
    let wav = this.istft(re, im, columns, frames * hop);
    for (let round = 0; round < iterations; round++) {
      this.stft(wav, columns, newRe, newIm);
      for (let i = 0; i < size; i++) {
        const x = newRe[i] - share * oldRe[i], y = newIm[i] - share * oldIm[i];
        const scale = magnitudes[i] / Math.max(1e-16, Math.sqrt(x * x + y * y));
        (re[i] = x * scale), (im[i] = y * scale);
      }
      oldRe.set(newRe), oldIm.set(newIm);
      wav = this.istft(re, im, columns, frames * hop);
    }
    return wav;
  }
}

// Random numbers in 0…1 that are the same each time (Mulberry32): the same codes give the same samples.
export function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
