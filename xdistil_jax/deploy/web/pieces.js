"use strict";
// tokenizer.json: a word -> the ids of its pieces, each word by itself. What its steps do with
// single characters is written out by xdistil_jax/deploy/steps.py.

/** @typedef {(parts: string[]) => string[]} Step */
/** @typedef {{idsOf: (word: string) => number[], first: number, last: number}} Tokenizer */

/** Words whose pieces are remembered. */
const REMEMBERED = 50000;

/** @returns {Tokenizer} */
function readTokenizer(facts) {
  const steps = facts.steps.map((step) => STEPS[step.kind](step));
  const pieces = MODELS[facts.model.kind](facts.model);
  const known = new Map();
  function idsOf(word) {
    let ids = known.get(word);
    if (ids === undefined) {
      const parts = steps.reduce((now, step) => step(now).filter(Boolean), [facts.before + word]);
      ids = parts.flatMap(pieces);
      if (!ids.length) ids = [facts.unknown];
      if (known.size >= REMEMBERED) known.clear();
      known.set(word, ids);
    }
    return ids;
  }
  return { idsOf, first: facts.first, last: facts.last };
}

/** What normalises and cuts a word before its pieces are looked up, by kind. */
const STEPS = {
  characters: (step) => {
    const gone = inRanges(step.gone);
    const space = inRanges(step.space);
    const padded = inRanges(step.padded);
    const change = (char) => {
      if (char in step.others) return step.others[char];
      const point = char.codePointAt(0);
      return gone(point) ? "" : space(point) ? " " : padded(point) ? ` ${char} ` : char;
    };
    return (parts) => parts.map((part) => Array.from(part, change).join(""));
  },
  form: (step) => {
    const changes = inRanges(step.changes);
    // A browser may know characters that the tokenizer doesn't know yet.
    const isNew = (char) => !changes(char.codePointAt(0)) && char.normalize(step.form) !== char;
    return (parts) => parts.map((part) => normalizeRuns(part, step.form, isNew));
  },
  precompiled: (step) => {
    const transform = readCharacterMap(step.map);
    return (parts) => parts.map((part) => transformClusters(part, transform));
  },
  replace: (step) => {
    const pattern = new RegExp(step.pattern, "gu");
    return (parts) => parts.map((part) => part.replace(pattern, () => step.content));
  },
  split: (step) => {
    const gone = inRanges(step.gone);
    const alone = inRanges(step.alone);
    return (parts) => parts.flatMap((part) => splitPart(part, gone, alone));
  },
  metaspace: (step) => (parts) =>
    parts.flatMap((part) => {
      let marked = part.replaceAll(" ", step.mark);
      if (step.prepend && !marked.startsWith(step.mark)) marked = step.mark + marked;
      return step.split ? splitBefore(marked, step.mark) : [marked];
    }),
};

/**
 * @param {number[]} ranges first and last of each, ascending
 * @returns {(point: number) => boolean}
 */
function inRanges(ranges) {
  return (point) => {
    let low = 0;
    let high = ranges.length / 2;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ranges[2 * middle + 1] < point) low = middle + 1;
      else high = middle;
    }
    return 2 * low < ranges.length && ranges[2 * low] <= point;
  };
}

/** What stands between new characters, by Unicode's form; they stay. */
function normalizeRuns(part, form, isNew) {
  let found = "";
  let run = "";
  for (const char of part) {
    if (!isNew(char)) run += char;
    else [found, run] = [found + run.normalize(form) + char, ""];
  }
  return found + run.normalize(form);
}

/** Some characters part what stands around them and go; others stand alone. */
function splitPart(part, gone, alone) {
  const found = [""];
  for (const char of part) {
    const point = char.codePointAt(0);
    if (gone(point)) found.push("");
    else if (alone(point)) found.push(char, "");
    else found[found.length - 1] += char;
  }
  return found.filter(Boolean);
}

/** Each mark begins a part. */
function splitBefore(text, mark) {
  const parts = text.split(mark);
  return parts.map((part, number) => (number ? mark + part : part)).filter(Boolean);
}

/**
 * SentencePiece's map of characters, a double array of bytes: what a text begins with -> what
 * stands for all of it. As the tokenizers library reads it: the shortest entry decides.
 * @param {string} packed base64
 * @returns {(text: string) => string | undefined}
 */
function readCharacterMap(packed) {
  const bytes = fromBase64(packed);
  const size = new DataView(bytes.buffer).getUint32(0, true);
  const units = new Uint32Array(bytes.slice(4, 4 + size).buffer);
  const values = bytes.subarray(4 + size);
  const offset = (unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);
  const encoder = new TextEncoder();
  return (text) => {
    let at = offset(units[0]);
    for (const byte of encoder.encode(text)) {
      at ^= byte;
      const unit = units[at];
      if (byte === 0 || unit === undefined || (unit & 0x800000ff) >>> 0 !== byte) return undefined;
      at ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const start = units[at] & 0x7fffffff;
        return new TextDecoder().decode(values.subarray(start, values.indexOf(0, start)));
      }
    }
    return undefined;
  };
}

/** Characters that are seen as one are looked up as one if they are of less than six bytes. */
function transformClusters(text, transform) {
  const clusters = new Intl.Segmenter("und", { granularity: "grapheme" }).segment(text);
  return Array.from(clusters, ({ segment }) => {
    const short = new TextEncoder().encode(segment).length < 6;
    const whole = short ? transform(segment) : undefined;
    return whole ?? Array.from(segment, (char) => transform(char) ?? char).join("");
  }).join("");
}

/** What cuts a part into pieces and gives their ids, by kind. */
const MODELS = {
  WordPiece: (model) => {
    const ids = numberPieces(model.pieces);
    return (part) => longestPieces(Array.from(part), ids, model);
  },
  Unigram: (model) => {
    const ids = numberPieces(model.pieces);
    const longest = Math.max(...model.pieces.map((piece) => Array.from(piece).length));
    const table = { ...model, ids, longest, lowest: Math.min(...model.scores) - 10 };
    return (part) => likeliestPieces(Array.from(part), table);
  },
};

/** @param {(string | null)[]} pieces */
function numberPieces(pieces) {
  return new Map(pieces.map((piece, id) => [piece, id]));
}

/** WordPiece: the longest piece that fits, again and again; a rest without one makes all unknown. */
function longestPieces(chars, ids, model) {
  if (chars.length > model.longest) return [model.unknown];
  const found = [];
  let start = 0;
  while (start < chars.length) {
    let end = chars.length;
    let id;
    for (; end > start; end--) {
      const piece = chars.slice(start, end).join("");
      id = ids.get(start ? model.prefix + piece : piece);
      if (id !== undefined) break;
    }
    if (id === undefined) return [model.unknown];
    found.push(id);
    start = end;
  }
  return found;
}

/** Unigram: the pieces whose scores have the greatest sum; unknown ones side by side are one. */
function likeliestPieces(chars, table) {
  const best = Array.from({ length: chars.length + 1 }, () => ({ score: 0, start: -1, id: -1 }));
  function reach(start, end, score, id) {
    const sum = best[start].score + score;
    if (best[end].start < 0 || sum > best[end].score) best[end] = { score: sum, start, id };
  }
  for (let start = 0; start < chars.length; start++) {
    let piece = "";
    let single = false;
    for (let end = start + 1; end <= Math.min(start + table.longest, chars.length); end++) {
      piece += chars[end - 1];
      const id = table.ids.get(piece);
      if (id === undefined) continue;
      reach(start, end, table.scores[id], id);
      single = single || end === start + 1;
    }
    if (!single) reach(start, start + 1, table.lowest, table.unknown);
  }
  const found = [];
  let unknown = "";
  for (let end = chars.length; end > 0; end = best[end].start) {
    const piece = chars.slice(best[end].start, end).join("");
    if (best[end].id === table.unknown) {
      unknown = piece + unknown;
      continue;
    }
    if (unknown) found.push(unknown);
    unknown = "";
    found.push(piece);
  }
  if (unknown) found.push(unknown);
  return found.reverse().flatMap((piece) => pieceOrBytes(piece, table));
}

function pieceOrBytes(piece, table) {
  const id = table.ids.get(piece);
  if (id !== undefined) return [id];
  if (!table.bytes) return [table.unknown];
  const hex = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
  const bytes = Array.from(new TextEncoder().encode(piece), (byte) => table.ids.get(hex(byte)));
  return bytes.includes(undefined) ? [table.unknown] : bytes;
}
