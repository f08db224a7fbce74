"""The page in a real browser finds what the tagger in Python finds, and makes no request."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from tests import browser
from tests.deploy.cutters import CUTTERS, LANGUAGES, odd_words, texts
from tests.deploy.test_onnx import SPECS
from tests.deploy.test_onnx import saved as saved_student
from tests.deploy.toys import TAGS, TEXT, save_toy, toy_params, toy_spec
from tests.test_export import make_run
from xdistil_jax import trees
from xdistil_jax.deploy import npm, web
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.onnx import build_graph, stored_int8
from xdistil_jax.deploy.steps import tokenizer_facts
from xdistil_jax.deploy.tagger import Tagger
from xdistil_jax.export import export
from xdistil_jax.text import words_of

pytestmark = pytest.mark.slow

START_S = 120


@pytest.fixture(scope="module")
def chromium():
    with browser.started(npm.CACHE.expanduser()) as found:
        yield found


def as_points(texts):
    """JSON has no lone surrogates that every reader takes."""
    return json.dumps([[ord(char) for char in text] for text in texts])


# A text from its code points; some are too long for one call.
TEXT_OF = "(points => points.map(point => String.fromCodePoint(point)).join(''))"


def opened(chromium, folder):
    """The page, from the disk, ready to answer; events until then are forgotten."""
    chromium.events.clear()
    chromium("Page.navigate", url=(folder / web.PAGE).as_uri())
    wait(chromium, "typeof opened !== 'undefined' && document.readyState === 'complete'")
    assert chromium.run("opened.then(() => 'ready', String)") == "ready"


def wait(chromium, condition):
    end = time.monotonic() + START_S
    while not chromium.run(f"Boolean({condition})"):
        assert time.monotonic() < end, f"still not so: {condition}"
        time.sleep(0.05)


def on_grid(weights):
    """Weights that int8 holds exactly, in all matrices that are large enough for it."""
    found = {}
    for path, leaf in weights.items():
        leaf = np.asarray(leaf)
        if leaf.ndim > 1 and leaf.size > 1 << 14:
            axis = -1 if path == "embed/table" else -2
            scale = np.abs(leaf).max(axis, keepdims=True) / np.float32(127)
            leaf = np.rint(leaf / scale) * scale
        found[path] = leaf
    return found


def save_page(folder, bundle):
    graph = stored_int8(build_graph(bundle)).SerializeToString()
    web.save_page(folder, bundle, graph, web.Page(LANGUAGES))
    return folder


def toy_bundle(folder, decoding):
    """Large enough that the table and the recurrent matrices are stored as int8."""
    spec = replace(toy_spec(), embed=100, hidden=70)
    weights = on_grid(dict(trees.leaves(toy_params(spec))))
    save_toy(folder, spec, weights=weights, decoding=decoding)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory, chromium):
    """(the tagger in Python, the browser in which the student's page is open)."""
    folder = tmp_path_factory.mktemp("web")
    bundle = toy_bundle(folder / "student", "iob2")
    opened(chromium, save_page(folder / "page", bundle))
    return Tagger(bundle), chromium


STUDENTS = {
    "iob2": lambda folder: toy_bundle(folder, "iob2"),
    "argmax": lambda folder: toy_bundle(folder, "argmax"),
    "transformer": lambda folder: saved_student(folder, SPECS["types"])[0],
}


@pytest.mark.parametrize("name", STUDENTS)
def test_spans_equal_the_tagger_s(tmp_path, name):
    bundle = STUDENTS[name](tmp_path / "student")
    with browser.started(npm.CACHE.expanduser()) as chromium:
        opened(chromium, save_page(tmp_path / "page", bundle))
        found = ask(chromium, texts())
    wanted = [[[e.type, e.start, e.end, True] for e in each] for each in Tagger(bundle)(texts())]
    for text, ours, theirs in zip(texts(), wanted, found, strict=True):
        assert theirs == ours, ascii(text[:200])
    assert len(texts()) > 80
    assert sum(map(bool, wanted)) > 60
    assert {kind for each in wanted for kind, *_ in each} == set(TAGS.types)


def ask(chromium, given):
    """For each text its entities: type, start, end, and whether its text is what stands there."""
    return chromium.run(
        f"""(async () => {{
            const tagger = await opened;
            const found = [];
            for (const points of {as_points(given)}) {{
                const text = {TEXT_OF}(points);
                const entities = await tagger.entities(text);
                const cut = (start, end) => Array.from(text).slice(start, end).join("");
                found.push(entities.map((each) =>
                    [each.type, each.start, each.end, each.text === cut(each.start, each.end)]));
            }}
            return found;
        }})()"""
    )


@pytest.mark.parametrize("name", CUTTERS)
def test_pieces_equal_the_tokenizer_s(student, name):
    _, chromium = student
    cutter = CUTTERS[name]()
    words = list(dict.fromkeys([*(w for text in texts() for w in words_of(text)), *odd_words()]))
    ids, ends = cutter.word_pieces(words)
    facts = json.dumps(tokenizer_facts(cutter))
    found = chromium.run(f"{as_points(words)}.map({TEXT_OF}).map(readTokenizer({facts}).idsOf)")
    for word, theirs, start, end in zip(words, found, ends, ends[1:], strict=False):
        assert theirs == ids[start:end].tolist(), ascii(word)
    assert len({number for each in found for number in each}) > 60


def test_it_asks_for_nothing_but_itself(student):
    _, chromium = student
    asked = [
        each["params"]["request"]["url"]
        for each in chromium.events
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert [url.partition(":")[0] for url in asked] == ["file", "blob"]
    trouble = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert not [each for each in chromium.events if each["method"] in trouble]
    told = "fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert chromium.run(told) == "refused"


def type_text(chromium, text):
    chromium("Input.insertText", text=text)


def press(chromium, key, code):
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        chromium("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)


def marked(chromium):
    """[(text, type), …] as they stand in the page, and all of its text without the types."""
    return chromium.run(MARKED)


MARKED = """(() => {
    const box = document.getElementById("marked");
    const marks = [...box.querySelectorAll("mark")].map((each) =>
        [each.firstChild.data, each.querySelector("bdi").textContent]);
    const copy = box.cloneNode(true);
    copy.querySelectorAll("bdi").forEach((each) => each.remove());
    return [marks, copy.textContent];
})()"""


def clear(chromium):
    chromium.run("element('text').value = ''; opened.then(answer)")


def test_what_is_typed_is_marked(student):
    tagger, chromium = student
    clear(chromium)
    chromium.run("element('text').focus()")
    typed = ""
    for part in ("Anna Berg 👍🏽 fuhr ", "nach Berlin, <b>&amp; ", "وصلت آنا إلى برلين\nМосква"):
        type_text(chromium, part)
        typed += part
        wait(chromium, f"{MARKED}[1] === {json.dumps(typed)}")
    wait(chromium, "element('spoken').textContent")
    wanted = [[each.text, each.type] for each in tagger([typed])[0]]
    assert wanted
    assert marked(chromium) == [wanted, typed]
    assert re.fullmatch(r"\d+\.\d ms", chromium.run("element('time').textContent"))
    said = chromium.run("element('spoken').textContent")
    assert said == "; ".join(f"{text}, {kind}" for text, kind in wanted)


def test_answers_to_older_texts_are_dropped(student):
    tagger, chromium = student
    short = "Anna Berg fuhr nach Berlin"
    long = f"{short}, dann weiter: {' '.join(TEXT)}. " * 300
    found = chromium.run(
        f"""(async () => {{
            const tagger = await opened;
            const box = element("text");
            const shown = [];
            const watcher = new MutationObserver(() => shown.push(element("marked").innerText));
            watcher.observe(element("marked"), {{ childList: true }});
            box.value = {json.dumps(long)};
            const older = answer(tagger);
            box.value = {json.dumps(short)};
            await Promise.all([older, answer(tagger)]);
            await new Promise((resolve) => setTimeout(resolve));
            watcher.disconnect();
            return shown.length;
        }})()"""
    )
    assert found == 1
    assert marked(chromium) == [[[e.text, e.type] for e in tagger([short])[0]], short]


def test_it_is_used_by_keyboard_alone(student):
    _, chromium = student
    clear(chromium)
    chromium.run("element('text').focus()")
    names = []
    for _ in web.Page(LANGUAGES).examples:
        press(chromium, "Tab", 9)
        names.append(chromium.run("document.activeElement.textContent"))
    assert names[:3] == ["German", "Russian", "Arabic"]
    press(chromium, "Enter", 13)
    example = chromium.run("element('text').value")
    assert re.search("[آ-ی]", example)
    wait(chromium, f"element('marked').textContent.startsWith({json.dumps(example[:1])})")


def test_its_types_and_languages_are_named(student):
    _, chromium = student
    assert chromium.run("element('legend').innerText.split(/\\s+/)") == list(TAGS.types)
    said = chromium.run("document.querySelector('main').innerText")
    assert "Named entities in 10 languages" in said
    assert (
        "German, Russian, Arabic, Hebrew, Hindi, Bangla, Tamil, Greek, Vietnamese, Persian" in said
    )


@pytest.mark.parametrize("damage", ["model", "student"])
def test_a_page_that_can_not_start_says_so(student, chromium, tmp_path, damage):
    folder = save_page(tmp_path / "page", student[0].bundle)
    html = (folder / web.PAGE).read_text(encoding="utf-8")
    broken = re.sub(rf'(id="{damage}">.{{200}}).{{40}}', rf"\1{'A' * 40}", html)
    assert broken != html
    (folder / web.PAGE).write_text(broken, encoding="utf-8")
    chromium("Page.navigate", url=(folder / web.PAGE).as_uri())
    wait(chromium, "document.getElementById('state')?.textContent.includes('started in this')")


def test_a_classifier_has_no_page(tmp_path):
    bundle, _ = saved_student(tmp_path / "student", SPECS["last"])
    with pytest.raises(BundleError, match="leave out --web"):
        web.save_page(tmp_path / "page", bundle, b"", web.Page())


def test_a_page_is_a_function_of_its_student(student, tmp_path):
    first, second = (save_page(tmp_path / name, student[0].bundle) for name in ("a", "b"))
    assert (first / web.PAGE).read_bytes() == (second / web.PAGE).read_bytes()
    licences = (first / web.LICENCES).read_text(encoding="utf-8")
    assert "onnxruntime-web 1.30.0" in licences
    assert "MIT License" in licences


def test_an_export_has_the_page_if_it_is_asked_for(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setattr(npm, "_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(npm.PackageError, match=r"npm pack onnxruntime-web@.*--web-packages"):
        export(run, tmp_path / "out", web=True, web_packages=str(tmp_path / "empty"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    to = export(run, tmp_path / "out", web=True)
    assert {path.name for path in (to / "web").iterdir()} == {web.PAGE, web.LICENCES}
    card = (to / "README.md").read_text(encoding="utf-8")
    assert "## In the browser" in card
    # The gate has asked the graph in the page, too.
    assert re.search(r"\|.*model\.int8\.onnx \| web/index\.html \|", card)
