"use strict";
// xdistil_jax/labels.py: logits -> the best tags -> spans.

/** @typedef {{type: string, start: number, end: number}} Span */

/** "B-PER" -> ["B", "PER"]; "O" -> ["O", ""]. */
function splitTag(tag) {
  const dash = tag.indexOf("-");
  return dash < 0 ? [tag, ""] : [tag.slice(0, dash), tag.slice(dash + 1)];
}

/**
 * May the second tag stand right after the first?
 * @param {string[]} tags
 * @returns {boolean[][]}
 */
function allowedPairs(tags) {
  const split = tags.map(splitTag);
  return split.map(([, before]) =>
    split.map(([prefix, kind]) => prefix !== "I" || kind === before),
  );
}

/**
 * The number of each word's tag: of all valid IOB2 sequences the best, or each word's best.
 * @param {ArrayLike<number>[]} logits one for each word
 * @param {boolean[][]} follows
 * @param {"iob2" | "argmax"} decoding
 * @returns {number[]}
 */
function bestTags(logits, follows, decoding) {
  if (decoding === "argmax" || !logits.length) return logits.map(indexOfMax);
  let score = Array.from(logits[0], (value, tag) => (follows[0][tag] ? value : -Infinity));
  const origins = [];
  for (const word of logits.slice(1)) {
    const greatest = Math.max(...score);
    const origin = Array.from(word, (_, tag) =>
      indexOfMax(score.map((value, before) => (follows[before][tag] ? value : -Infinity))),
    );
    score = origin.map((before, tag) => score[before] - greatest + word[tag]);
    origins.push(origin);
  }
  const path = [indexOfMax(score)];
  for (const origin of origins.reverse()) path.push(origin[path[path.length - 1]]);
  return path.reverse();
}

/** The first one. @param {ArrayLike<number>} values */
function indexOfMax(values) {
  let best = 0;
  for (let at = 1; at < values.length; at++) if (values[at] > values[best]) best = at;
  return best;
}

/**
 * Entities as conlleval reads them: a stray I- opens one.
 * @param {string[]} tags
 * @returns {Span[]} in words
 */
function readSpans(tags) {
  const found = [];
  let open = null;
  [...tags, "O"].forEach((tag, at) => {
    const [prefix, kind] = splitTag(tag);
    if (open && (prefix !== "I" || kind !== open.type)) {
      found.push({ ...open, end: at });
      open = null;
    }
    if (kind && !open) open = { type: kind, start: at };
  });
  return found;
}
