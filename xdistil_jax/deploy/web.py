"""A student as one HTML file that tags what is typed, in any browser, from any place.

Scripts, model and runtime lie in the file: browsers refuse to load them beside a page that was
opened from a disk. Its content policy forbids every request, so nothing that is typed leaves it.
"""

import base64
import gzip
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdistil_jax import files
from xdistil_jax.deploy import npm
from xdistil_jax.deploy.bundle import Bundle, BundleError
from xdistil_jax.deploy.steps import tokenizer_facts, word_rules
from xdistil_jax.labels import ClassSet

_SOURCES = Path(__file__).with_name("web")
_SCRIPT, _PROGRAM = "dist/ort.wasm.min.js", "dist/ort-wasm-simd-threaded.wasm"
_FACTORY = "dist/ort-wasm-simd-threaded.mjs"
RUNTIME = npm.Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    (_SCRIPT, _PROGRAM, _FACTORY),
)
PAGE, LICENCES = "index.html", "LICENCES.txt"
CARD_SECTION = f"""\
## In the browser

`web/{PAGE}` marks entities as one types: open it from the disk, or put it on any static host. It
computes in fp32 with weights that are stored as int8, and makes no request. `web/{LICENCES}` holds
the licences of what it brings along."""
_LINK = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_TAG = re.compile(r'<script src="([\w.]+)"></script>')


@dataclass(frozen=True)
class Page:
    """What the page says of a student, beside what lies in its bundle."""

    languages: Sequence[str] = ()

    @property
    def title(self) -> str:
        if len(self.languages) < 2:
            return "Named entities"
        return f"Named entities in {len(self.languages)} languages"

    @property
    def examples(self) -> list[dict[str, str]]:
        """Of the student's languages, or all, where these aren't known. Never a user's own text."""
        known = json.loads((_SOURCES / "examples.json").read_text(encoding="utf-8"))
        chosen = [each for each in self.languages if each in known] or list(known)
        return [{"language": each, "text": known[each]} for each in chosen]


def save_page(
    folder: str | Path,
    bundle: Bundle,
    graph: bytes,
    page: Page,
    *,
    packages: str | Path | None = None,
) -> None:
    """Write ``index.html`` and ``LICENCES.txt``; ``graph`` is the student's, as ``deploy.onnx``
    writes it. ``packages`` is a folder with the tarballs from npm, or one to keep them in.

    Raises:
        BundleError: for a student that doesn't tag words.
        PackageError: if the runtime can't be had.
        ValueError: if the tokenizer does what the page can't do.
    """
    if isinstance(bundle.tagset, ClassSet):
        raise BundleError("the page marks entities, and this student classifies: leave out --web")
    runtime = npm.fetch(RUNTIME, packages)
    blocks = {
        "student": json.dumps(student_facts(bundle, page), ensure_ascii=False).encode(),
        "model": graph,
        "program": runtime[_PROGRAM],
        "factory": runtime[_FACTORY],
    }
    html = compose({Path(_SCRIPT).name: runtime[_SCRIPT].decode()}, blocks)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(folder / PAGE, html)
    files.write_atomic(folder / LICENCES, *_licences())


def student_facts(bundle: Bundle, page: Page) -> dict[str, Any]:
    """All that the page knows of the student, but for its graph."""
    return {
        "title": page.title,
        "languages": list(page.languages),
        "examples": page.examples,
        "types": list(bundle.tagset.types),
        "tags": list(bundle.tagset.tags),
        "decoding": bundle.decoding,
        "limits": {"length": bundle.max_length, "overlap": bundle.max_length // 4},
        "words": word_rules(),
        "tokenizer": tokenizer_facts(bundle.tokenizer),
    }


def compose(scripts: dict[str, str], blocks: dict[str, bytes]) -> str:
    """The page in one file: ``web/index.html`` with what it names written into it.

    ``blocks`` are data for the scripts, as base64 of gzip: the runtime shrinks to a third.
    """

    def read(name: str) -> str:
        text = scripts.get(name) or (_SOURCES / name).read_text(encoding="utf-8")
        if re.search(r"</(script|style)|<!--", text):
            raise ValueError(f"{name} holds what ends a block of HTML")
        return text

    html = (_SOURCES / PAGE).read_text(encoding="utf-8")
    styles = [read(name) for name in _LINK.findall(html)]
    codes = [read(name) for name in _TAG.findall(html)]
    style, code = iter(styles), iter(codes)
    html = _LINK.sub(lambda _: f"<style>{next(style)}</style>", html)
    data = "".join(
        f'<script type="text/plain" id="{name}">{_packed(content)}</script>\n'
        for name, content in blocks.items()
    )
    first = _TAG.search(html).start()
    html = html[:first] + data + html[first:]
    html = _TAG.sub(lambda _: f"<script>{next(code)}</script>", html)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_policy(styles, codes)}">'
    return html.replace("<meta charset", f"{policy}\n<meta charset", 1)


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """No request at all, and no code but this. The runtime loads its own script as a blob."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hashes(styles)}",
            f"script-src {_hashes(scripts)} blob: 'wasm-unsafe-eval'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hashes(texts: Sequence[str]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _licences() -> list[str]:
    """Of the runtime in the page; onnxruntime, which is installed here, brings its own."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.submodule_search_locations[0])
    intro = (
        f"{PAGE} holds {RUNTIME.name} {RUNTIME.version} ({RUNTIME.url}) under the "
        "following licence, with parts under those that stand behind it.\n\n"
    )
    texts = [(folder / name).read_text("utf-8") for name in ("LICENSE", "ThirdPartyNotices.txt")]
    return [intro, "\n\n".join(texts)]
