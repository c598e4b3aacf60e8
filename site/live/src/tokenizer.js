// Text ↔ ids: the course's SentencePiece BPE. The same ids as tinyomni/tokenizer.py.

const SPACE = "\u2581"; // SentencePiece's sign for a space
export const PAD = 0, BOS = 1, EOS = 2;

export class Tokenizer {
  // pieces: [text, score, kind] by id, where kind is "normal", "byte" or "control"
  constructor(pieces) {
    this.pieces = pieces;
    this.ids = new Map(), this.bytes = [];
    pieces.forEach(([text, , kind], id) => {
      if (kind === "byte") this.bytes[parseInt(text.slice(3, 5), 16)] = id;
      else if (kind === "normal") this.ids.set(text, id);
    });
    const [scratchpad, answer] = ["<|scratchpad|>", "<|answer|>"].map((name) => pieces.findIndex(([text, , kind]) => kind === "control" && text === name));
    this.separators = answer < 0 ? null : { scratchpad, answer }; // special tokens between the parts of a reply
  }

  // Text → ids, without BOS. A space is put in front, so that the first word is the same piece as elsewhere.
  encode(text) {
    if (!text) return [];
    const ids = [];
    const escaped = (" " + text).split(SPACE);
    escaped.forEach((part, place) => {
      if (place) ids.push(...this.spell(SPACE));
      if (part) ids.push(...this.merge(part.replaceAll(" ", SPACE)));
    });
    return ids;
  }

  // The bytes of what no piece covers.
  spell(text) {
    return [...new TextEncoder().encode(text)].map((byte) => this.bytes[byte]);
  }

  // Join the pair of neighbours with the best score, the left one first, until no pair is a piece.
  merge(text) {
    const parts = Array.from(text);
    for (;;) {
      let best = -1, score = -Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const id = this.ids.get(parts[i] + parts[i + 1]);
        if (id !== undefined && this.pieces[id][1] > score) [best, score] = [i, this.pieces[id][1]];
      }
      if (best < 0) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
    return parts.flatMap((part) => (this.ids.has(part) ? [this.ids.get(part)] : this.spell(part)));
  }

  // Ids → text; control pieces stand for nothing, but before the answer a colon is read.
  decode(ids) {
    const bytes = [];
    for (const id of ids) {
      const [text, , kind] = this.pieces[id];
      if (kind === "byte") bytes.push(parseInt(text.slice(3, 5), 16));
      else if (id === this.separators?.answer) bytes.push(58);
      else if (kind === "normal") bytes.push(...new TextEncoder().encode(text.replaceAll(SPACE, " ")));
    }
    return new TextDecoder().decode(new Uint8Array(bytes)).replace(/^ /, "");
  }

  // What a piece looks like on the page.
  label(id) {
    const [text, , kind] = this.pieces[id];
    return kind === "control" ? { 0: "PAD", 1: "BOS", 2: "EOS", 3: "UNK" }[id] ?? text : text.replaceAll(SPACE, " ").trim() || "␣";
  }
}
