// node agree.mjs MODEL.json FOLDER: run tokenizer, parser and vocoder on FOLDER/given.json; write what they gave there.

import fs from "node:fs";
import path from "node:path";
import { Model } from "../src/model.js";
import { Normalizer } from "../src/normalize.js";
import { normalizeLevel } from "../src/sound.js";
import { Tokenizer } from "../src/tokenizer.js";
import { Vocoder } from "../src/vocoder.js";

const [modelFile, folder] = process.argv.slice(2);
const about = JSON.parse(fs.readFileSync(modelFile)), given = JSON.parse(fs.readFileSync(path.join(folder, "given.json")));
const floats = (name) => {
  const bytes = fs.readFileSync(path.join(folder, name));
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
};
const tokenizer = new Tokenizer(about.tokenizer.pieces), model = Model.withParser(about);
const vocoder = new Vocoder({ ...about.vocoder, inverse: about.inverse, n_mels: about.config.audio.n_mels });
const wav = Float32Array.from(vocoder.audio(floats("mel"), given.frames, floats("phase")));
fs.writeFileSync(path.join(folder, "wav"), Buffer.from(wav.buffer));
const ids = given.texts.map((text) => tokenizer.encode(text));
const normalizer = new Normalizer(about.normalization), scaled = normalizeLevel(floats("faint"), 16000, about.level);
fs.writeFileSync(path.join(folder, "level"), Buffer.from(scaled.buffer));
const found = { questions: given.questions.map((each) => normalizer.normalize(each)), ids, texts: ids.map((each) => tokenizer.decode(each)), replies: given.replies.map(([text, spoken]) => model.parse(text, spoken)) };
const special = new Tokenizer(given.special.pieces);
found.special = given.special.ids.map((each) => ({ text: special.decode(each), parts: model.parts(each, true, special) }));
found.judged = given.judged.map(({ ids, logProbs, image, reading, thresholds, style }) => {
  const judge = Model.withParser({ ...about, thresholds, style }), parts = judge.parts(ids, reading !== null, special);
  return { ...judge.judge(ids, logProbs, { parts, image, reading }, special), apart: reading === null ? "-1" : String(judge.disagreement(reading, parts)) };
});
fs.writeFileSync(path.join(folder, "found.json"), JSON.stringify(found));
