// Sound in and out: a microphone or a file becomes samples at the model's rate; blocks of speech are played without gaps.

export class Player {
  constructor(rate) {
    this.rate = rate, this.at = 0, this.sources = new Set(), this.gaps = 0;
    this.lead = 0.03; // seconds from the first block's arrival to its first sample; more after each gap
    this.held = false;
  }

  // Inside a click: a page may not play sound before.
  unlock() {
    this.context ??= new AudioContext();
    return this.context.resume();
  }

  play(samples) {
    if (!this.context) return;
    const buffer = this.context.createBuffer(1, samples.length, this.rate);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer, source.connect(this.context.destination);
    const now = this.context.currentTime;
    if (this.at < now) {
      if (this.at && !this.held) this.gaps++, (this.lead = Math.min(2, 2 * this.lead + now - this.at));
      this.at = now + this.lead;
    }
    this.held = false;
    source.start(this.at);
    this.at += buffer.duration;
    this.sources.add(source), (source.onended = () => this.sources.delete(source));
  }

  // The reader has paused the run: what comes late now is no gap.
  hold() { this.held = true; }

  stop() {
    if (!this.gaps) this.lead = Math.max(0.03, this.lead / 2);
    for (const source of this.sources) source.stop();
    this.sources.clear(), (this.at = 0), (this.gaps = 0);
  }
}

const FAINT = 0.01, QUIET = 1e-4; // 40 dB below the loudest moment; what counts as silence

// Encoded audio → samples at the model's rate, without the silence around the speech, at a usual level.
export async function decode(data, { config, level }, name) {
  const rate = config.audio.sample_rate;
  const context = new OfflineAudioContext(1, 1, rate); // decodes to its own rate
  const buffer = await context.decodeAudioData(data).catch(() => {
    throw new Error(`Cannot decode “${name}” as audio. WAV, MP3, OGG, FLAC or M4A?`);
  });
  const samples = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    const channel = buffer.getChannelData(c);
    for (let i = 0; i < samples.length; i++) samples[i] += channel[i] / buffer.numberOfChannels;
  }
  return normalizeLevel(trim(samples, rate), rate, level);
}

// `tinyomni/io/levels.py`: a recording fainter or louder than those of training is brought to their level.
export function normalizeLevel(samples, rate, { usual, target, loud }) {
  const energy = powers(samples, rate / 100).sort((a, b) => a - b), place = loud * (energy.length - 1), low = Math.floor(place);
  const quantile = energy[low] + (place - low) * ((energy[low + 1] ?? energy[low]) - energy[low]);
  const level = 10 * Math.log10(quantile + 1e-12);
  if (level >= usual[0] && level <= usual[1]) return samples;
  const gain = 10 ** ((target - level) / 20);
  return samples.map((each) => each * gain);
}

// The mean square of each step.
function powers(samples, step) {
  const found = [];
  for (let at = 0; at < samples.length; at += step) {
    let sum = 0;
    for (let i = at; i < Math.min(at + step, samples.length); i++) sum += samples[i] * samples[i];
    found.push(sum / step);
  }
  return found;
}

export function trim(samples, rate) {
  const step = rate / 100, power = powers(samples, step);
  const loudest = power.reduce((a, b) => Math.max(a, b), 0);
  if (loudest < QUIET * QUIET) throw new Error("The recording is silent. Was the microphone on?");
  const loud = power.map((each) => each > loudest * FAINT * FAINT);
  const first = loud.indexOf(true), last = loud.lastIndexOf(true);
  return samples.slice(Math.max(0, first - 1) * step, (last + 2) * step);
}

// Record until `stop` is called.
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch((error) => {
    throw new Error(`The microphone cannot be used: ${error.message}`);
  });
  const recorder = new MediaRecorder(stream), parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const finished = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  return async () => {
    recorder.stop(), await finished;
    for (const track of stream.getTracks()) track.stop();
    return new Blob(parts).arrayBuffer();
  };
}
