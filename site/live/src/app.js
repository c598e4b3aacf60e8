// The page: wires the easel, the question, the worker and the glass together.

import { Easel, rgb } from "./draw.js";
import { Glass } from "./glass.js";
import { Roll } from "./roll.js";
import { Player, decode, record } from "./sound.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = ["What colour is the star?", "Where is the circle?", "How many things are there?", "Is there a red star?", "Describe the image.", "Hello, how are you?"];
const BUTTONS = ["go", "microphone"];

let worker, about, easel, glass, roll, player, imageless = false, recording = null, spokenAt = 0;

const say = (text, error = false) => { $("status").textContent = text, $("status").classList.toggle("error", error); };
const fail = (error) => say(error.message ?? String(error), true);

// The packed model: inside this page if it was built as one file, else beside it.
async function pack() {
  const inside = $("pack");
  if (inside) {
    const binary = atob(inside.textContent);
    inside.remove();
    return Uint8Array.from(binary, (each) => each.charCodeAt(0));
  }
  const answer = await fetch("model.pack");
  if (!answer.ok) throw new Error(`model.pack could not be read (${answer.status})`);
  const total = Number(answer.headers.get("content-length")), parts = [], reader = answer.body.getReader();
  for (let got = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value), (got += value.length);
    if (total) $("loading").value = (got / total) * 0.6;
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// As a file on disk a page may not load a worker by address: its text is inside then.
function startWorker() {
  const inside = $("worker");
  return new Worker(inside ? URL.createObjectURL(new Blob([inside.textContent], { type: "text/javascript" })) : "worker.js");
}

const handlers = {
  progress({ done }) { $("loading").value = 0.6 + 0.4 * done; },
  ready(message) {
    about = message.about;
    easel = new Easel($("canvas"), about.world), glass = new Glass(about, $("glass"));
    roll = new Roll($("roll"), about.config.codec.codebook_size), player = new Player(about.config.audio.sample_rate);
    // opening the sound device takes a while: at the first touch or key, before there is a question
    for (const each of ["pointerdown", "keydown"]) addEventListener(each, () => player.unlock(), { once: true });
    glass.onheads = (thinker, talker) => { worker.postMessage({ type: "heads", thinker, talker }), say("Ask again to see what changes."); };
    roll.onedit = () => { $("restore").disabled = !roll.edited, vocode(); };
    tools(), easel.random();
    $("loading").hidden = true, BUTTONS.forEach((id) => ($(id).disabled = false)), say("Ready.");
    window.tinyomni = { about, easel, glass, roll, player }; // to look at from the console, and for the tests
  },
  prompt(message) {
    const image = imageless ? null : easel.pen.getImageData(0, 0, 224, 224);
    glass.prompt(message, image), say(message.seen.transcript ? `Heard: “${message.seen.transcript}”` : message.read ? `Read as: “${message.read}”` : "Thinking …");
  },
  token(message) { glass.step(message), show(message.parts); },
  answer({ parts, certainty, unsure, of, ms, ran }) {
    glass.drawTable(ran), show(parts), $("answer").classList.toggle("unsure", unsure);
    const which = about.style === "wide" ? "least" : "mean";
    const what = { scene: " that this is a scene it can describe", speech: " what was said; letter by letter it heard something else" };
    say(`${unsure ? "Not sure" : "Sure"}${what[of] ?? ""}: ${which} log-probability of a token ${certainty.toFixed(3)}. ${ms.toFixed(0)} ms.`);
    window.tinyomni.answer = parts;
  },
  frame({ codes }) { roll.add(codes); },
  audio({ audio, ms }) {
    if (ms !== undefined && !spokenAt) {
      spokenAt = ms + 1000 * player.lead;
      $("sound-facts").textContent = `first sound after ${spokenAt.toFixed(0)} ms`;
    }
    player.play(audio);
  },
  spoken({ codes, ms, ran }) {
    $("replay").disabled = false, glass.drawTable(ran);
    $("sound-facts").textContent += `; ${codes.length} frames, ${(codes.length * 0.08).toFixed(2)} s, in ${ms.toFixed(0)} ms`;
  },
  done() { busy(false); },
  error({ message }) { fail({ message }), busy(false); },
};

function show({ transcript, description, lookup, answer }) {
  $("answer").textContent = answer;
  const rows = [["heard", transcript], ["sees", description], ["looks up", lookup]].filter(([, text]) => text);
  $("parts").replaceChildren(...rows.flatMap(([name, text]) => [Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: text })]));
}

function busy(yes) {
  for (const id of ["pause", "stop"]) $(id).disabled = !yes;
  $("step").disabled = true, ($("pause").textContent = "Pause");
}

async function ask({ wav = null } = {}) {
  const text = $("question").value.trim();
  if (!wav && !text) throw new Error("Type a question first, or speak one.");
  const unlocked = player.unlock(); // takes a while the first time: the model begins meanwhile
  player.stop(), roll.clear(), (spokenAt = 0), ($("replay").disabled = $("restore").disabled = true), ($("sound-facts").textContent = "");
  $("answer").textContent = "", $("answer").classList.remove("unsure"), show({ answer: "" }), busy(true);
  worker.postMessage({ type: "resume" });
  worker.postMessage({
    type: "ask", image: imageless ? null : easel.pixels(), wav, text: wav ? "" : text, temperature: Number($("temperature").value),
    aloud: $("aloud").checked, voice: Number($("voice").value), seed: Date.now() % 100000,
  });
  await unlocked;
}

async function vocode() {
  await player.unlock();
  player.stop(), worker.postMessage({ type: "vocode", codes: roll.codes });
}

function tools() {
  const choose = (row, buttons, pick) => {
    $(row).replaceChildren(...buttons);
    buttons.forEach((button) => {
      button.type = "button", button.setAttribute("role", "radio");
      button.addEventListener("click", () => { buttons.forEach((each) => each.setAttribute("aria-checked", String(each === button))), pick(button.value); });
    });
    buttons[0].click();
  };
  choose("shapes", [...Object.keys(about.world.outlines), "brush"].map((shape) => {
    const button = Object.assign(document.createElement("button"), { className: "shape", value: shape, title: shape });
    button.setAttribute("aria-label", shape), button.append(easel.icon(shape));
    return button;
  }), (shape) => (easel.shape = shape));
  choose("colours", Object.entries(about.world.colours).map(([name, value]) => {
    const button = Object.assign(document.createElement("button"), { className: "swatch", value: name, title: name });
    button.setAttribute("aria-label", name), (button.style.background = rgb(value));
    return button;
  }), (colour) => (easel.colour = colour));
  $("examples").replaceChildren(...EXAMPLES.map((text) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", () => { $("question").value = text, ask().catch(fail); });
    return button;
  }));
  easel.onmove = ([x, y]) => say(`Cursor at ${Math.round(100 * x)}% from the left, ${Math.round(100 * y)}% from the top. Enter puts a ${easel.size} ${easel.colour} ${easel.shape} there.`);
  easel.onchange = () => setImageless(false);
}

function setImageless(yes) {
  imageless = yes;
  $("no-image").setAttribute("aria-pressed", String(yes)), ($("canvas").style.opacity = yes ? 0.25 : 1);
}

async function hear(file) {
  const wav = await decode(await file.arrayBuffer(), about, file.name);
  await ask({ wav });
}

async function microphone() {
  if (!recording) {
    recording = await record();
    $("microphone").textContent = "■ Done", say("Listening …");
    return;
  }
  const stop = recording;
  recording = null, ($("microphone").textContent = "● Speak the question");
  await ask({ wav: await decode(await stop(), about, "the recording") });
}

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, (...all) => Promise.resolve(action(...all)).catch(fail));
  const later = (action) => async (...all) => action(...all);
  on("question-form", "submit", later((event) => (event.preventDefault(), ask())));
  on("random", "click", later(() => easel.random()));
  on("clear", "click", later(() => { easel.clear(), setImageless(false); }));
  on("no-image", "click", later(() => setImageless(!imageless)));
  on("size", "change", later(() => (easel.size = $("size").value)));
  on("temperature", "input", later(() => ($("temperature").nextElementSibling.value = $("temperature").value)));
  on("image-file", "change", later((event) => event.target.files[0] && easel.file(event.target.files[0])));
  on("audio-file", "change", later((event) => event.target.files[0] && hear(event.target.files[0])));
  on("microphone", "click", later(microphone));
  on("canvas", "dragover", later((event) => event.preventDefault()));
  on("canvas", "drop", later((event) => (event.preventDefault(), event.dataTransfer.files[0] && easel.file(event.dataTransfer.files[0]))));
  on("pause", "click", later(() => {
    const pausing = $("pause").textContent === "Pause";
    worker.postMessage({ type: pausing ? "pause" : "resume" }), player.hold();
    $("pause").textContent = pausing ? "Go on" : "Pause", ($("step").disabled = !pausing);
  }));
  on("step", "click", later(() => { worker.postMessage({ type: "step" }), player.hold(); }));
  on("stop", "click", later(() => { worker.postMessage({ type: "stop" }), player.stop(); }));
  on("replay", "click", later(vocode));
  on("restore", "click", later(() => { roll.restore(), ($("restore").disabled = true); }));
}

async function start() {
  worker = startWorker();
  worker.onmessage = ({ data }) => handlers[data.type](data);
  worker.onerror = (event) => fail({ message: `The model's thread failed: ${event.message}` });
  listen();
  const packed = await pack();
  worker.postMessage({ type: "load", pack: packed }, [packed.buffer]);
}

start().catch(fail);
