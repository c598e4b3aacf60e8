// A complex FFT of a power of two, in place (Cooley & Tukey, 1965).

export class FFT {
  constructor(size) {
    this.size = size;
    // the angles of each stage one after the other, so that the inner loop reads them in order
    this.cos = new Float64Array(size), this.sin = new Float64Array(size);
    for (let half = 1, at = 0; half < size; at += half, half *= 2) {
      for (let k = 0; k < half; k++) {
        this.cos[at + k] = Math.cos((Math.PI * k) / half);
        this.sin[at + k] = Math.sin((Math.PI * k) / half);
      }
    }
    const bits = Math.log2(size);
    this.order = Uint32Array.from({ length: size }, (_, i) => {
      let turned = 0;
      for (let b = 0; b < bits; b++) turned |= ((i >> b) & 1) << (bits - 1 - b);
      return turned;
    });
  }

  // Forward transform of (re, im). For the inverse swap the two arguments, and divide by the size.
  transform(re, im) {
    const { size, cos, sin, order } = this;
    for (let i = 0; i < size; i++) {
      const j = order[i];
      if (j > i) {
        const r = re[i], m = im[i];
        re[i] = re[j], im[i] = im[j], re[j] = r, im[j] = m;
      }
    }
    for (let half = 1, at = 0; half < size; at += half, half *= 2) {
      for (let start = 0; start < size; start += 2 * half) {
        for (let k = 0; k < half; k++) {
          const wr = cos[at + k], wi = -sin[at + k];
          const a = start + k, b = a + half;
          const tr = re[b] * wr - im[b] * wi, ti = re[b] * wi + im[b] * wr;
          re[b] = re[a] - tr, im[b] = im[a] - ti;
          re[a] += tr, im[a] += ti;
        }
      }
    }
  }
}
