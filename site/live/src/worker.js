// The model in a thread of its own, so that the page never waits for it.
//
//   in:   load {pack}, ask {…}, speak {text, voice}, vocode {codes}, heads {…}, pause, resume, step, stop
//   out:  progress, ready, prompt, token, answer, frame, audio, spoken, done, error

import * as ort from "onnxruntime-web/wasm";
import { Model } from "./model.js";
import { Normalizer, reworded } from "./normalize.js";
import { unpack } from "./pack.js";
import { SpeechStream } from "./stream.js";
import { generator } from "./vocoder.js";

let model, normalizer, job = 0, paused = false, steps = 0, wake = null;

const post = (type, data = {}, transfer = []) => self.postMessage({ type, ...data }, transfer);
const breathe = () => new Promise((resolve) => setTimeout(resolve)); // lets a message in

// Between two steps: wait while paused, unless a single step was asked for; false when another question has come.
async function go(number) {
  await breathe();
  while (paused && !steps && number === job) await new Promise((resolve) => (wake = resolve));
  if (steps) steps--;
  return number === job;
}

async function load({ pack }) {
  const files = await unpack(pack);
  ort.env.wasm.wasmBinary = files.get("ort.wasm");
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const about = JSON.parse(new TextDecoder().decode(files.get("model.json")));
  const bytes = Object.fromEntries(Object.keys(about.graphs).map((name) => [name, files.get(`${name}.onnx`)]));
  let done = 0;
  model = await Model.load(ort, about, bytes, (name) => post("progress", { done: ++done / Object.keys(bytes).length, name }));
  normalizer = new Normalizer(about.normalization);
  await warmUp();
  delete about.inverse, delete about.tokenizer, delete about.normalization;
  post("ready", { about });
}

// The first call of a graph takes several times as long as the next ones: it is made here, not in the first answer.
async function warmUp() {
  const { vision, audio } = model.about.config, image = new Float32Array(3 * vision.image_size ** 2).fill(0.5);
  const embedded = await model.embed({ image, wav: new Float32Array(audio.sample_rate), text: "Hello." });
  const steps = model.think(embedded, { maxNewTokens: 24 });
  while (!(await steps.next()).done);
  const stream = new SpeechStream(model);
  for await (const codes of model.talk("There is a small red star.")) if (await stream.push(codes)) break;
  model.ran = {};
  delete model.rounds; // measured while the code was still being compiled
}

async function ask({ image, wav, text, temperature, aloud, voice, seed = 0 }) {
  const number = ++job, started = performance.now(), read = normalizer.normalize(text);
  model.ran = {};
  const embedded = await model.embed({ image, wav, text: read });
  post("prompt", { read: reworded(text, read) ? read : null, tokens: embedded.tokens, seen: embedded.seen, ms: performance.now() - started });
  let ids = [], logProbs = [];
  for await (const step of model.think(embedded, { temperature, random: generator(seed) })) {
    if (!(await go(number))) return;
    ids.push(step.id), logProbs.push(step.logProb);
    const said = model.tokenizer.decode(ids);
    step.top = step.top.map(({ id, p }) => ({ p, label: model.tokenizer.label(id) }));
    delete step.logits;
    post("token", { ...step, text: said, parts: model.parts(ids, Boolean(wav)), ms: performance.now() - started }, [step.attention.buffer]);
  }
  const parts = model.parts(ids, Boolean(wav)), { transcript } = embedded.seen;
  const judged = model.judge(ids, logProbs, { parts, image: Boolean(image), reading: wav ? transcript : null });
  post("answer", { ran: model.ran, parts, ...judged, ms: performance.now() - started });
  if (aloud && parts.answer.trim()) await speak({ text: parts.answer, voice }, number);
  post("done");
}

async function speak({ text, voice }, number = ++job) {
  const stream = new SpeechStream(model), started = performance.now();
  const send = (audio) => audio && post("audio", { audio, ms: performance.now() - started }, [audio.buffer]);
  for await (const codes of model.talk(text, voice)) {
    if (!(await go(number))) return;
    post("frame", { codes });
    send(await stream.push(codes));
  }
  send(await stream.finish());
  post("spoken", { ran: model.ran, codes: stream.codes, ms: performance.now() - started });
}

async function vocode({ codes }) {
  const number = ++job, stream = new SpeechStream(model);
  for (const pair of codes) {
    if (!(await go(number))) return;
    const audio = await stream.push(pair);
    if (audio) post("audio", { audio }, [audio.buffer]);
  }
  const audio = await stream.finish();
  if (audio) post("audio", { audio }, [audio.buffer]);
}

const heads = ({ thinker, talker }) => {
  model.thinkerHeads.set(thinker), model.talkerHeads.set(talker);
};
const resume = () => { paused = false, steps = 0, wake?.(); };
const commands = { load, ask, speak: (message) => speak(message), vocode, heads, resume,
  pause: () => { paused = true; }, step: () => { steps++, wake?.(); }, stop: () => { job++, resume(); post("done"); } };

self.onmessage = async ({ data }) => {
  try {
    await commands[data.type](data);
  } catch (error) {
    post("error", { message: error.message ?? String(error) });
  }
};
