"use strict";
// xdistil_jax/deploy/tagger.py: text -> entities, with the student that lies in this page.

/** @typedef {{text: string, type: string, start: number, end: number}} Entity  In code points. */

/** Rows of a long text that are answered at once; between two lots the page can breathe. */
const ROWS = 8;

/** @param {string} text base64 */
function fromBase64(text) {
  const units = atob(text);
  const bytes = new Uint8Array(units.length);
  for (let at = 0; at < units.length; at++) bytes[at] = units.charCodeAt(at);
  return bytes;
}

/**
 * What lies in a block of this page: base64 of gzip.
 * @param {string} id
 */
async function unpack(id) {
  const packed = new Blob([fromBase64(document.getElementById(id).textContent)]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** One thread, so that the page needs no headers from a server. */
async function openSession() {
  const [model, program, factory] = await Promise.all(["model", "program", "factory"].map(unpack));
  const script = URL.createObjectURL(new Blob([factory], { type: "text/javascript" }));
  Object.assign(ort.env.wasm, {
    numThreads: 1,
    wasmBinary: program.buffer,
    wasmPaths: { mjs: script },
  });
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  URL.revokeObjectURL(script);
  return session;
}

/** A student, ready to answer. */
class Tagger {
  constructor(facts, session) {
    this.facts = facts;
    this.session = session;
    this.rules = readWordRules(facts.words);
    this.tokenizer = readTokenizer(facts.tokenizer);
    this.follows = allowedPairs(facts.tags);
    /** Rows of the last text and their logits: most of a long text stays as one types. */
    this.recent = new Map();
  }

  static async open() {
    const [facts, session] = await Promise.all([unpack("student"), openSession()]);
    return new Tagger(JSON.parse(new TextDecoder().decode(facts)), session);
  }

  /**
   * @param {string} text
   * @param {() => boolean} isStale asked between two lots: is no one waiting any more?
   * @returns {Promise<Entity[] | null>} null if no one was waiting
   */
  async entities(text, isStale = () => false) {
    const words = splitWords(text, this.rules);
    const logits = await this.wordLogits(words.map((word) => word.text), isStale);
    if (logits === null) return null;
    const numbers = bestTags(logits, this.follows, this.facts.decoding);
    const points = Array.from(text);
    return readSpans(numbers.map((number) => this.facts.tags[number])).map((span) => {
      const [start, end] = [words[span.start].start, words[span.end - 1].end];
      return { text: points.slice(start, end).join(""), type: span.type, start, end };
    });
  }

  /** @returns {Promise<Float32Array[] | null>} the logits of each word */
  async wordLogits(words, isStale) {
    const rows = words.length ? encodeRows(words, this.tokenizer, this.facts.limits) : [];
    const keyed = rows.map((row) => ({ ...row, key: row.tokens.join() }));
    const known = new Map(keyed.map(({ key }) => [key, this.recent.get(key)]));
    const unknown = keyed.filter(({ key }) => !known.get(key));
    for (let first = 0; first < unknown.length; first += ROWS) {
      if (first) await new Promise((resolve) => setTimeout(resolve));
      if (isStale()) return null;
      const lot = unknown.slice(first, first + ROWS);
      const found = await this.logits(lot.map((row) => row.tokens));
      lot.forEach(({ key }, row) => known.set(key, found[row]));
    }
    this.recent = known;
    const logits = new Array(words.length);
    for (const { key, owned } of keyed) {
      for (const [word, piece] of owned) logits[word] = known.get(key)[piece];
    }
    return logits;
  }

  /**
   * @param {number[][]} rows pieces
   * @returns {Promise<Float32Array[][]>} the logits of each piece of each row
   */
  async logits(rows) {
    const width = Math.max(...rows.map((row) => row.length));
    const tokens = new BigInt64Array(rows.length * width);
    rows.forEach((row, at) => row.forEach((id, place) => {
      tokens[at * width + place] = BigInt(id);
    }));
    const lengths = Int32Array.from(rows, (row) => row.length);
    const answer = await this.session.run({
      tokens: new ort.Tensor("int64", tokens, [rows.length, width]),
      lengths: new ort.Tensor("int32", lengths, [rows.length]),
    });
    const { data, dims } = answer.logits;
    const piece = (number) => data.subarray(number * dims[2], (number + 1) * dims[2]);
    return rows.map((row, at) => row.map((_, place) => piece(at * width + place)));
  }
}
