// A complex FFT of a power of two (Cooley & Tukey, 1965), four points at a time: each stage reads the values once where
// two stages of two points would read them twice.

export class FFT {
  constructor(size) {
    const stages = [];
    for (let left = size; left > 1; left /= stages[0]) stages.unshift(left === 2 ? 2 : 4); // an odd power begins with two
    this.size = size, this.pairs = stages[0] === 2;
    // Element i begins where its number, written in digits of these radices, says when it is read backwards.
    let order = [0];
    for (const radix of stages) order = Array.from({ length: radix }, (_, j) => order.map((i) => i * radix + j)).flat();
    this.order = Uint32Array.from(order);
    const turns = []; // exp(-2πi·nk/4q) for n = 1, 2, 3, in the order in which the stages read them
    for (let q = this.pairs ? 2 : 1; 4 * q <= size; q *= 4) {
      for (let k = 0; k < q; k++) {
        for (const n of [1, 2, 3]) turns.push(Math.cos((Math.PI * n * k) / (2 * q)), -Math.sin((Math.PI * n * k) / (2 * q)));
      }
    }
    this.turns = Float64Array.from(turns);
    this.re = new Float64Array(size), this.im = new Float64Array(size);
  }

  // Forward transform of (re, im), in place. For the inverse swap the two arguments, and divide by the size.
  transform(re, im) {
    const { size, pairs, order, turns, re: r, im: m } = this;
    for (let i = 0; i < size; i++) r[i] = re[order[i]], m[i] = im[order[i]];
    if (pairs) {
      for (let i = 0; i < size; i += 2) {
        const x = r[i], y = m[i];
        r[i] = x + r[i + 1], m[i] = y + m[i + 1], r[i + 1] = x - r[i + 1], m[i + 1] = y - m[i + 1];
      }
    }
    for (let q = pairs ? 2 : 1, at = 0; 4 * q <= size; at += 6 * q, q *= 4) {
      for (let start = 0; start < size; start += 4 * q) {
        for (let k = 0, t = at; k < q; k++, t += 6) {
          const a = start + k, b = a + q, c = b + q, d = c + q;
          const br = r[b] * turns[t] - m[b] * turns[t + 1], bi = r[b] * turns[t + 1] + m[b] * turns[t];
          const cr = r[c] * turns[t + 2] - m[c] * turns[t + 3], ci = r[c] * turns[t + 3] + m[c] * turns[t + 2];
          const dr = r[d] * turns[t + 4] - m[d] * turns[t + 5], di = r[d] * turns[t + 5] + m[d] * turns[t + 4];
          const evenR = r[a] + cr, evenI = m[a] + ci, oddR = br + dr, oddI = bi + di;
          const evenR2 = r[a] - cr, evenI2 = m[a] - ci, oddR2 = br - dr, oddI2 = bi - di;
          r[a] = evenR + oddR, m[a] = evenI + oddI;
          r[b] = evenR2 + oddI2, m[b] = evenI2 - oddR2;
          r[c] = evenR - oddR, m[c] = evenI - oddI;
          r[d] = evenR2 - oddI2, m[d] = evenI2 + oddR2;
        }
      }
    }
    re.set(r), im.set(m);
  }
}
