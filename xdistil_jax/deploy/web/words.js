"use strict";
// xdistil_jax/text.py: words with their places. The patterns come from there, each set of
// characters written out, so that no browser's own Unicode has a say.

/** @typedef {{text: string, start: number, end: number}} Word  Offsets in code points. */
/** @typedef {{words: RegExp, visible: RegExp}} WordRules */

/**
 * @param {{pattern: string, visible: string}} facts
 * @returns {WordRules}
 */
function readWordRules(facts) {
  return { words: new RegExp(facts.pattern, "gu"), visible: new RegExp(facts.visible, "u") };
}

/**
 * Words and single marks of punctuation; every visible character is in one.
 * @param {string} text
 * @param {WordRules} rules
 * @returns {Word[]}
 */
function splitWords(text, rules) {
  const found = [];
  let unit = 0;
  let point = 0;
  for (const match of text.matchAll(rules.words)) {
    const start = point + countPoints(text, unit, match.index);
    unit = match.index + match[0].length;
    point = start + countPoints(text, match.index, unit);
    if (rules.visible.test(match[0])) found.push({ text: match[0], start, end: point });
  }
  return found;
}

/**
 * Code points between two places, which are given in UTF-16 units.
 * @param {string} text
 * @param {number} from
 * @param {number} to
 */
function countPoints(text, from, to) {
  let count = 0;
  for (let at = from; at < to; at += text.codePointAt(at) > 0xffff ? 2 : 1) count++;
  return count;
}
