"use strict";
// xdistil_jax/data/windows.py and data/rows.py, for one text: its words -> rows of pieces.

/** @typedef {{tokens: number[], owned: [number, number][]}} Row  Owned: (word, its first piece). */

/**
 * Words start up to end of each window, of at most `room` pieces, `overlap` of them shared.
 * @param {number[]} ends where each word's pieces end, with a 0 before
 * @param {number} room
 * @param {number} overlap
 * @returns {[number, number][]}
 */
function planWindows(ends, room, overlap) {
  const last = ends.length - 1;
  const found = [];
  let start = 0;
  while (ends[last] - ends[start] > room) {
    const end = countUntil(ends, (each) => each <= ends[start] + room) - 1;
    found.push([start, end]);
    // The next one must reach a word further: a long word may leave less to be shared.
    const reach = Math.max(ends[end] - overlap, ends[end + 1] - room);
    start = countUntil(ends, (each) => each < reach);
  }
  // The last one reaches back as far as it can.
  if (found.length) start = countUntil(ends, (each) => each < ends[last] - room);
  found.push([start, last]);
  return found;
}

/** How many at the beginning of an ascending list are so. */
function countUntil(values, isSo) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isSo(values[middle])) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The window that owns each word: where it stands farthest from an edge, the first one in a tie.
 * @param {[number, number][]} windows
 * @param {number[]} ends
 * @returns {number[]}
 */
function ownWords(windows, ends) {
  const owner = new Array(ends.length - 1).fill(-1);
  const best = new Array(ends.length - 1).fill(-1);
  windows.forEach(([start, end], number) => {
    for (let word = start; word < end; word++) {
      const context = Math.min(ends[word] - ends[start], ends[end] - ends[word + 1]);
      if (context > best[word]) [owner[word], best[word]] = [number, context];
    }
  });
  return owner;
}

/**
 * @param {string[]} words
 * @param {Tokenizer} tokenizer
 * @param {{length: number, overlap: number}} limits
 * @returns {Row[]}
 */
function encodeRows(words, tokenizer, limits) {
  const room = limits.length - 2;
  const pieces = words.map((word) => tokenizer.idsOf(word).slice(0, room));
  const ends = [0];
  for (const ids of pieces) ends.push(ends[ends.length - 1] + ids.length);
  const windows = planWindows(ends, room, limits.overlap);
  const owner = ownWords(windows, ends);
  return windows.map(([start, end], number) => {
    const owned = [];
    for (let word = start; word < end; word++) {
      if (owner[word] === number) owned.push([word, 1 + ends[word] - ends[start]]);
    }
    const tokens = [tokenizer.first, ...pieces.slice(start, end).flat(), tokenizer.last];
    return { tokens, owned };
  });
}
