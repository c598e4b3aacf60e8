// Typed questions as the closed world writes them: tinyomni/data/normalization.py, with the word lists that it exports.

const QUOTES = { "\u2018": "'", "\u2019": "'", "\u00b4": "'", "`": "'", "\u201c": '"', "\u201d": '"' };
const LETTERS = "abcdefghijklmnopqrstuvwxyz", MARKS = ".?!", NO_SPACE = ".?!,;:)]'\"", MAX_READINGS = 256;
const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];

export class Normalizer {
  constructor({ vocabulary, known, questions, phrases, spellings, names, question_words, short_shapes, long }) {
    Object.assign(this, { vocabulary: new Set(vocabulary), known: new Set(known), questions: new Set(questions), long });
    Object.assign(this, { asking: new Set(question_words), short: new Set(short_shapes) });
    this.phrases = new Map(Object.entries(phrases)), (this.names = new Map(Object.entries(names)));
    this.spellings = new Map(Object.entries(spellings));
  }

  normalize(text) {
    text = text.normalize("NFKC").replace(/[\u2018\u2019\u00b4`\u201c\u201d]/g, (each) => QUOTES[each]).replace(/(?!\s)[\p{Cc}\p{Cf}]/gu, "");
    const found = text.match(/\p{L}+(?:'\p{L}+)?|\p{Nd}+|\S/gu) ?? [];
    const tokens = found.flatMap((token) => (this.spellings.get(token.toLowerCase()) ?? token).split(" "));
    const places = [...tokens.keys()].filter((i) => /^[\p{L}\p{N}]/u.test(tokens[i]));
    if (!places.length) return text.trim().replace(/\s+/g, " ");
    const corrected = this.correct(places.map((i) => tokens[i].toLowerCase()));
    const phrase = this.phrases.get(corrected.join(" "));
    if (phrase) return phrase;
    corrected.forEach((word, n) => { if (this.known.has(word)) tokens[places[n]] = this.names.get(word) ?? word; });
    let written = "", capital = true;
    for (let token of tokens) {
      const last = written.slice(-1);
      if (MARKS.includes(token) && last && MARKS.includes(last)) {
        if (token === "?" || last === "?") written = written.slice(0, -1) + "?";
        continue;
      }
      if (capital && this.known.has(token.toLowerCase())) token = token[0].toUpperCase() + token.slice(1);
      written += (written && !NO_SPACE.includes(token[0]) ? " " : "") + token;
      capital = MARKS.includes(token);
    }
    if (this.asking.has(corrected[0])) return written.replace(/[.?!,;:]+$/, "") + "?";
    return MARKS.includes(written.slice(-1)) ? written : written + ".";
  }

  // Words of the world that are one slip away: two letters exchanged, one too many, a wrong one, one missing (Damerau, 1964).
  candidates(word) {
    if (this.known.has(word) || !/^[a-z]+$/.test(word)) return [];
    const near = new Set(), add = (each) => this.vocabulary.has(each) && near.add(each), sorted = (each) => [...each].sort().join("");
    for (let i = 0; i <= word.length; i++) {
      const a = word.slice(0, i), b = word.slice(i);
      if (b.length > 1) add(a + b[1] + b[0] + b.slice(2));
      if (b) add(a + b.slice(1));
      for (const letter of LETTERS) add(a + letter + b), b && add(a + letter + b.slice(1));
    }
    return [...near].filter((each) => !this.short.has(each) || sorted(each) === sorted(word)).sort();
  }

  // A long word where it can be meant as one word only; a short one where the whole becomes a question of the world.
  correct(given) {
    const found = given.map((word) => { const near = this.candidates(word); return near.length === 1 && word.length >= this.long ? near[0] : word; });
    let readings = [[]];
    for (const word of found) {
      const near = this.candidates(word), choices = near.length ? near : [word];
      readings = readings.flatMap((start) => choices.map((each) => [...start, each]));
      if (readings.length > MAX_READINGS) return found;
    }
    const asked = readings.filter((reading) => this.questions.has(reading.join(" ")));
    return asked.length === 1 ? asked[0] : found;
  }
}

// Whether words were changed, not only their case and punctuation.
export const reworded = (typed, read) => words(typed).join(" ") !== words(read).join(" ");
