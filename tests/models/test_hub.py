"""The Hugging Face hub: the real client against a stand-in on loopback, and its cache offline."""

import base64
import dataclasses
import functools
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from tests.deploy.toys import save_toy
from xdistil_jax import StudentConfig, cli
from xdistil_jax.alignment import Target
from xdistil_jax.data.tokenizer import load_tokenizer
from xdistil_jax.deploy.bundle import BundleError, push_bundle
from xdistil_jax.deploy.tagger import Tagger
from xdistil_jax.labels import TagSet
from xdistil_jax.models import hub
from xdistil_jax.models.checkpoints import save_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.students import start_student, student_spec

LARGE = (".safetensors", ".onnx")
NAME, TEXT = "someone/tiny-tagger", "Anna Berg fuhr nach Berlin."


class Stand(ThreadingHTTPServer):
    """Repositories: name -> branch -> file -> content; as the client's calls need it.

    Weights go the way of large files: asked for by their hash, put elsewhere, named in the commit.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.private, self.asked, self.large = {}, {}, [], {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet."""

    def reply(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def files(self, name, revision):
        """Of a branch, or of the one commit that each branch has."""
        branches = self.server.repositories.get(name, {})
        known = {**branches, **{_commit(branch): each for branch, each in branches.items()}}
        return known.get(revision)

    def absent(self):
        code = "RevisionNotFound" if self.path.count("revision") else "RepoNotFound"
        self.reply({"error": "not here"}, 404, X_Error_Code=code)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        branch = "(refs/pr/[0-9]+|[^/]+)"
        if found := re.fullmatch(
            rf"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/{branch})?", path
        ):
            files = self.files(found[1], found[2] or "main")
            if files is None:
                return self.absent()
            if "/tree/" in path:
                sizes = [
                    {"type": "file", "path": n, "size": len(c), "oid": _etag(c)}
                    for n, c in files.items()
                ]
                return self.reply(sizes)
            listed = [{"rfilename": name} for name in files]
            sha = _commit(found[2] or "main")
            return self.reply({"id": found[1], "sha": sha, "siblings": listed})
        if found := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{branch}/(.+)", path):
            content = (self.files(found[1], found[2]) or {}).get(found[3])
            if content is None:
                return self.reply({}, 404, X_Error_Code="EntryNotFound")
            about = {"ETag": f'"{_etag(content)}"', "X_Repo_Commit": _commit(found[2])}
            return self.reply(content, **about)
        return self.reply({}, 404)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self):
        """A large file, to the address that was told, without the token."""
        assert "Authorization" not in self.headers
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        self.server.large[self.path.rsplit("/", 1)[1]] = content
        self.reply({})

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_stand":
            return self.reply({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            self.server.repositories.setdefault(name, {"main": {}})
            self.server.private[name] = given.get("private", given.get("visibility") == "private")
            return self.reply({"url": f"{self.server.url}/{name}", "name": name})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.reply({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if not found:
            return self.reply({}, 200)
        name, what, revision = found.groups()
        branches = self.server.repositories[name]
        if what == "branch":
            branches.setdefault(revision, dict(branches["main"]))
            return self.reply({})
        if what == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {
                    "path": each,
                    "uploadMode": "lfs" if each.endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for each in paths
            ]
            return self.reply({"files": modes})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert not value["path"].endswith(LARGE)
                branches[revision][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branches[revision][value["path"]] = self.server.large[value["oid"]]
        oid = _commit(revision)
        url = f"{self.server.url}/{name}/commit/{oid}"
        return self.reply({"commitUrl": url, "commitOid": oid, "success": True})


def _commit(revision):
    """The one commit of a branch; of a commit, itself."""
    whole = re.fullmatch("[0-9a-f]{40}", revision)
    return revision if whole else hashlib.sha1(revision.encode()).hexdigest()


def _etag(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def stand(tmp_path, monkeypatch):
    server = Stand()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # Its own way for large files is the hub's alone; the one before it is served everywhere.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_stand")
    yield server
    server.shutdown()
    server.server_close()


def test_weights_that_are_pickled_are_not_fetched_and_a_revision_may_have_others(stand, tmp_path):
    """As the checkpoints of XtremeDistilTransformers lie there."""
    encoder = EncoderSpec(9, 16, 2, 2, 32, positions=40, classes=3, stacked=False)
    params = jax.tree.map(np.asarray, build(encoder).init(jax.random.key(5)))
    save_encoder(tmp_path / "made", encoder, params, ("O", "B-LOC", "I-LOC"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "berlin", "anna", "in", "##s")
    base = {"config.json": whole["config.json"], "vocab.txt": "\n".join(pieces).encode()}
    name = "someone/tiny-uncased"
    stand.repositories[name] = {
        "main": {**base, "pytorch_model.bin": b"\x80\x02"},
        "refs/pr/1": {**base, "model.safetensors": whole["model.safetensors"]},
    }
    tagset = TagSet(("LOC",))
    config = StudentConfig(kind="transformer", checkpoint=name)
    spec = student_spec(config, Target(12, ("layer_4",)), 9, 3, 24)
    assert spec.encoder.width == 16
    tokenizer = load_tokenizer(name)
    assert tokenizer.word_pieces([("Berlin", "Anna")])[0].tolist() == [5, 6]
    start = functools.partial(
        start_student, tokenizer=tokenizer, tagset=tagset, table=None, key=jax.random.key(0)
    )
    with pytest.raises(hub.CheckpointError, match=r"tiny-uncased' on .* no safetensors; pickled"):
        start(config, spec)
    assert not [path for _, path in stand.asked if path.endswith(".bin")]
    _, found = start(dataclasses.replace(config, revision="refs/pr/1"), spec)
    np.testing.assert_array_equal(
        found["layer_2"]["attention"]["query"]["kernel"],
        params["layer_2"]["attention"]["query"]["kernel"],
    )


@pytest.fixture
def folder(tmp_path):
    save_toy(tmp_path / "run" / "student")
    (tmp_path / "run" / "student" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def test_what_is_pushed_is_what_is_loaded(stand, folder, capsys):
    cli.main(["push", str(folder), "--repo", NAME, "--private"])
    assert capsys.readouterr().out == f"{stand.url}/{NAME}/commit/{_commit('main')}\n"
    pushed = stand.repositories[NAME]["main"]
    student = folder / "student"
    sealed = {"config.json", "labels.json", "model.safetensors", "tokenizer.json"}
    assert {name for name in pushed if name != ".gitattributes"} == sealed
    assert all(pushed[name] == (student / name).read_bytes() for name in sealed)
    assert stand.private[NAME]
    assert Tagger.load(NAME)(TEXT) == Tagger.load(folder)(TEXT) != []
    got = {path.rsplit("/", 1)[1] for method, path in stand.asked if "/resolve/" in path}
    assert got == sealed


def test_a_branch_is_a_revision(stand, folder, tmp_path):
    push_bundle(folder, NAME)
    save_toy(tmp_path / "other", seed=5)
    push_bundle(tmp_path / "other", NAME, revision="v2")
    assert not stand.private[NAME]
    assert set(stand.repositories[NAME]) == {"main", "v2"}
    main, other = (stand.repositories[NAME][each]["model.safetensors"] for each in ("main", "v2"))
    assert main != other
    second = Tagger.load(NAME, revision="v2")(TEXT)
    assert second == Tagger.load(tmp_path / "other")(TEXT)
    assert Tagger.load(NAME)(TEXT) == Tagger.load(folder)(TEXT) != second
    with pytest.raises(
        BundleError, match="'someone/tiny-tagger', revision 'v3', is no folder here"
    ):
        Tagger.load(NAME, revision="v3")


def test_weights_are_pushed_as_large_files(stand, folder):
    push_bundle(folder, NAME)
    weights = (folder / "student" / "model.safetensors").read_bytes()
    assert list(stand.large.values()) == [weights]
    push_bundle(folder, NAME)
    assert stand.repositories[NAME]["main"]["model.safetensors"] == weights


def test_the_cache_answers_without_the_hub(stand, folder, monkeypatch):
    push_bundle(folder, NAME)
    online = Tagger.load(NAME)(TEXT)
    stand.shutdown()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(stand.asked)
    assert Tagger.load(NAME)(TEXT) == online
    assert Tagger.load(NAME, revision="main")(TEXT) == online
    assert len(stand.asked) == asked
    with pytest.raises(BundleError, match=r"'someone/else' is no folder here, .*didn't give it"):
        Tagger.load("someone/else")


def test_what_the_hub_refuses_is_told(stand, folder, monkeypatch):
    with pytest.raises(BundleError, match="'someone/nothing' is no folder here"):
        Tagger.load("someone/nothing")
    with pytest.raises(
        BundleError, match="'no name' is no name of a repository: expected OWNER/NAME"
    ):
        push_bundle(folder, "no name")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BundleError, match="the Hugging Face hub didn't take 'someone/tiny-tagger'"):
        push_bundle(folder, NAME)
    (folder / "student" / "labels.json").write_text("{}")
    with pytest.raises(BundleError, match=r"labels\.json is damaged"):
        push_bundle(folder, NAME)


def test_without_its_client_the_pip_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match="pip install huggingface_hub"):
        Tagger.load(NAME)


@pytest.mark.parametrize(
    "name", ["a", "a/b/c", "../b", "a/../b", "/a/b", "a/.b", "gs://a/b", "a b/c"]
)
def test_names_of_the_hub_are_told_from_paths(name):
    assert not hub.is_name(name)
    assert hub.is_name("owner/name-1.0_x")


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_toy(tmp_path / "someone" / "tiny")
    assert Tagger.load("someone/tiny")(TEXT)
