"use strict";
// What is typed is marked as it is typed.

const element = (id) => document.getElementById(id);
/** The number of the newest text: answers to older ones are dropped. */
let newest = 0;
/** What a screen reader is told waits until no one has typed for this long, in milliseconds. */
const QUIET = 600;

/** @param {Tagger} tagger */
function setUp(tagger) {
  const { facts } = tagger;
  element("title").textContent = document.title = facts.title;
  element("languages").textContent = facts.languages.map(nameLanguage).join(", ");
  element("about").hidden = !facts.languages.length;
  facts.types.forEach((type, number) => element("legend").append(mark(type, type, number)));
  facts.examples.forEach((example) => element("examples").append(button(example, tagger)));
  const box = element("text");
  let frame = 0;
  box.addEventListener("input", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => answer(tagger));
  });
  box.disabled = false;
  element("state").textContent = "";
  if (box.value) answer(tagger);
  else box.focus();
}

/** @param {Tagger} tagger */
async function answer(tagger) {
  const number = ++newest;
  const text = element("text").value;
  const begun = performance.now();
  const entities = await tagger.entities(text, () => number !== newest);
  if (entities === null || number !== newest) return;
  const spent = performance.now() - begun;
  show(text, entities, tagger.facts.types);
  element("time").textContent = text ? `${spent.toFixed(1)} ms` : "";
  tellLater(entities, number);
}

/**
 * @param {string} text
 * @param {Entity[]} entities
 * @param {string[]} types
 */
function show(text, entities, types) {
  const points = Array.from(text);
  const nodes = [];
  let at = 0;
  for (const { type, start, end } of entities) {
    nodes.push(points.slice(at, start).join(""));
    nodes.push(mark(points.slice(start, end).join(""), type, types.indexOf(type)));
    at = end;
  }
  nodes.push(points.slice(at).join(""));
  element("marked").replaceChildren(...nodes);
}

/** An entity, its type written beside it: colours alone would tell some readers nothing. */
function mark(text, type, number) {
  const found = document.createElement("mark");
  found.className = `kind-${number % 8}`;
  const label = document.createElement("bdi");
  label.textContent = type;
  if (text !== type) found.append(text);
  found.append(label);
  return found;
}

/** @param {{language: string, text: string}} example */
function button(example, tagger) {
  const found = document.createElement("button");
  found.type = "button";
  found.textContent = nameLanguage(example.language);
  found.addEventListener("click", () => {
    element("text").value = example.text;
    answer(tagger);
  });
  return found;
}

/** @param {string} code */
function nameLanguage(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code);
  } catch {
    return code;
  }
}

/** @param {Entity[]} entities */
function tellLater(entities, number) {
  setTimeout(() => {
    if (number !== newest) return;
    const said = entities.map(({ text, type }) => `${text}, ${type}`).join("; ");
    element("spoken").textContent = said || (element("text").value && "No entities");
  }, QUIET);
}

const opened = Tagger.open();
opened.then(setUp).catch((error) => {
  element("state").textContent = `The student can't be started in this browser: ${error}. `
    + "It needs WebAssembly with SIMD, and DecompressionStream: try a browser of 2024 or later.";
});
