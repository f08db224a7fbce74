"""Buckets, emulated on loopback: what is whole is found again, and a run goes on from there."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.buckets import EMULATORS, NEEDS
from tests.started import launch, run_and_kill
from tests.teacher.across import TEXT
from tests.teacher.toys import build_toy, contents, make_store, random_rows
from tests.test_pipeline import StopAfter, compiled_once, lines, shrunk, weights
from xdistil_jax import Tagger, cli, files, pipeline, storage
from xdistil_jax.bucket import Bucket
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag
from xdistil_jax.storage import StorageError

ROOT = pathlib.Path(__file__).parents[1]
# A fixture, used by every test of this file.
assert compiled_once


@pytest.fixture(scope="module", params=sorted(EMULATORS))
def emulated(request):
    """(scheme, environment) of a server with the bucket ``there``."""
    for name in NEEDS[request.param]:
        pytest.importorskip(name, reason='pip install "xdistil_jax[emulators]"')
    with EMULATORS[request.param]() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        forget_connections(request.param)
        yield request.param, environment


def forget_connections(scheme: str) -> None:
    import fsspec

    fsspec.get_filesystem_class(scheme).clear_instance_cache()


class Machines:
    """Machines with disks of their own, and one bucket."""

    def __init__(self, url: str, disks: pathlib.Path, patch: pytest.MonkeyPatch) -> None:
        self.url, self.disks, self.patch = url, disks, patch

    def on(self, name: str) -> pathlib.Path:
        """The mirror on the disk of a machine, on which is worked from now on."""
        self.patch.setenv("XDISTIL_SCRATCH", str(self.disks / name))
        return storage.start(self.url, writes=True)

    def there(self) -> set[str]:
        return set(Bucket(self.url).listing())


@pytest.fixture
def machines(emulated, tmp_path, monkeypatch):
    return Machines(f"{emulated[0]}://there/{tmp_path.name}", tmp_path / "disks", monkeypatch)


def never_building(message: str) -> None:
    assert "building" not in message


def make_folder(final: pathlib.Path, **content: str) -> None:
    with files.atomic_folder(final) as folder:
        for name, text in content.items():
            (folder / name).write_text(text)
        (folder / "deeper").mkdir()
        (folder / "deeper" / "empty, ü#1").touch()


def test_what_one_machine_has_written_is_on_the_next(machines):
    first = machines.on("first")
    files.write_atomic(first / "note.json", "{}")
    make_folder(first / "stores" / "1", a="one")
    make_folder(first / "stores" / "10", a="ten")
    second = machines.on("second")
    assert [path.name for path in second.iterdir()] == [".mirror"]
    assert storage.names(second) == ["note.json", "stores"]
    storage.refresh(second)
    storage.settle(second / "stores" / "1")
    assert contents(second / "stores") == {"1/a": b"one", "1/deeper/empty, ü#1": b""}
    storage.settle(second, "stores/*")
    assert contents(second / "stores") == contents(first / "stores")
    assert (second / "note.json").read_text() == "{}"
    assert storage.bytes_of(second / "stores" / "10") == storage.bytes_of(first / "stores" / "10")


@pytest.mark.parametrize("end", [b"", b"\r", b"\n", b"\r\n", b"\n\r"])
def test_objects_keep_their_last_byte(machines, tmp_path, end):
    bucket, content = Bucket.at(machines.url), b"\x00\xff" + end
    bucket.write("written", content)
    (tmp_path / "file").write_bytes(content)
    bucket.upload({"a file": tmp_path / "file", "another": tmp_path / "file"})
    assert bucket.read(["written", "a file", "another"]) == [content] * 3


def test_what_is_under_way_stays_on_the_disk(machines):
    first = machines.on("first")
    before = machines.there()
    with files.atomic_folder(first / "store") as folder:
        files.write_atomic(folder / "part", "x")
        assert machines.there() == before
    assert machines.there() == before | {"store/part", "store/.whole"}


def test_a_folder_without_its_mark_is_uploaded_again(machines, monkeypatch):
    first = machines.on("first")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "write", die)
        with pytest.raises(KeyboardInterrupt):
            make_folder(first / "store", a="whole", b="too")
    assert "store/a" in machines.there()
    second = machines.on("second")
    storage.settle(second / "store")
    assert not (second / "store").exists()
    storage.settle(machines.on("first") / "store")
    storage.settle(second / "store")
    assert contents(second / "store") == contents(first / "store")


def test_an_object_cut_short_is_named(machines):
    make_folder(machines.on("first") / "store", a="whole")
    Bucket(machines.url).write("store/a", b"who")
    second = machines.on("second")
    with pytest.raises(StorageError, match=r"/store/a is damaged: 3 bytes where 5 .*Delete"):
        storage.settle(second / "store")
    assert not (second / "store").exists()


def test_files_are_the_buckets_and_logs_the_longer(machines):
    first = machines.on("first")
    for name in ("report.json", "short.jsonl", "long.jsonl"):
        files.write_atomic(first / name, "first")
    second = machines.on("second")
    storage.refresh(second)
    for name in ("report.json", "short.jsonl", "long.jsonl"):
        files.write_atomic(second / name, "second!")
    machines.on("first")
    (first / "long.jsonl").write_text("first and more")
    (first / "only.json").write_text("here")
    storage.refresh(first)
    storage.refresh(second)
    text = {"long.jsonl": "first and more", "only.json": "here"}
    text |= {"report.json": "second!", "short.jsonl": "second!"}
    for folder in (first, second):
        assert {path.name: path.read_text() for path in folder.glob("[!.]*")} == text


def test_only_the_newest_are_kept(machines):
    first = machines.on("first")
    for number in range(8, 12):
        (first / "checkpoints" / str(number)).mkdir(parents=True)
        (first / "checkpoints" / str(number) / "state").write_text(str(number))
        (first / "checkpoints" / f"{number + 1}.tmp").mkdir(exist_ok=True)
        storage.settle_newest(first / "checkpoints", keep=2)
    marks = {name for name in machines.there() if name.endswith(".whole")}
    assert marks == {"checkpoints/10/.whole", "checkpoints/11/.whole"}
    second = machines.on("second")
    storage.settle_newest(second / "checkpoints", keep=2)
    assert contents(second / "checkpoints") == {"11/state": b"11"}


def test_a_part_of_a_folder_is_fetched_and_never_pushed(machines):
    make_folder(machines.on("first") / "shards" / "0", rows="r", states="s", more="m")
    second = machines.on("second")
    shard = second / "shards" / "0"
    storage.settle(second, "shards/*", only=("rows",))
    storage.fetch_files([shard / "rows", shard / "states", shard / "absent"])
    assert {path.name for path in shard.glob("[!.]*")} == {"rows", "states"}
    storage.remove(shard)
    storage.settle(second, "shards/*")
    assert machines.there() == {".mirror"}


def test_a_folder_of_ones_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "_ask", lambda *_: pytest.fail("asked a bucket"))
    make_folder(tmp_path / "store", a="x")
    storage.settle(tmp_path / "store")
    storage.refresh(tmp_path)
    storage.remove(tmp_path / "store")
    assert storage.start(str(tmp_path), writes=True) == tmp_path
    assert storage.shown(tmp_path) == storage.places(tmp_path) == str(tmp_path)
    assert set(contents(tmp_path)) == {"store/a", "store/deeper/empty, ü#1"}


def test_a_bucket_that_is_not_there_is_named(emulated, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDISTIL_SCRATCH", str(tmp_path))
    url = f"{emulated[0]}://missing/runs"
    message = f"{url}: not found .* make the bucket 'missing', or correct the URL"
    for writes in (True, False):
        with pytest.raises(StorageError, match=message):
            storage.start(url, writes=writes)
    with pytest.raises(SystemExit, match=f"xdistil tag: {message}"):
        cli.main(["tag", f"{url}/quickstart/D4.1-0a1b2c3d", "text"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://there/x", "gs://", "s3:///", "az://there"])
def test_other_places_are_refused(url):
    with pytest.raises(ValueError, match=r"expected a folder, gs://BUCKET/PREFIX or s3://BUCKET"):
        storage.local(url)


def test_too_short_a_url_is_no_run():
    with pytest.raises(ValueError, match="expected the URL of a run, gs://BUCKET/…/EXPERIMENT/RUN"):
        Tagger.load("gs://there/x")


def test_what_is_lacking_is_said(tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason='pip install "xdistil_jax[s3]"')
    monkeypatch.setenv("XDISTIL_SCRATCH", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    # Nobody listens there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    forget_connections("s3")
    with pytest.raises(StorageError, match=r"may not use it \(NoCredentialsError.*aws configure"):
        storage.start("s3://there/x", writes=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_connections("s3")
    with pytest.raises(StorageError, match=r"s3://there/x can't be reached .* look at the network"):
        storage.start("s3://there/x", writes=True)


@pytest.mark.parametrize(
    ("url", "absent", "extra"),
    [("gs://there/x", "gcsfs", "gcs"), ("s3://there/x", "s3fs", "s3"), ("s3://x", "fsspec", "s3")],
)
def test_an_extra_that_is_not_installed_is_named(tmp_path, url, absent, extra):
    code = (
        f"import sys; sys.modules[{absent!r}] = None; from xdistil_jax import storage\n"
        f"try: storage.start({url!r}, writes=True)\n"
        "except storage.StorageError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "XDISTIL_SCRATCH": str(tmp_path)},
    )  # fmt: skip
    package = "gcsfs" if url.startswith("gs") else "s3fs"
    message = f"{url} needs {package}, which is not installed: pip install"
    assert said.stdout == f'{message} "xdistil_jax[{extra}]"\n', said.stderr


def test_caches_in_a_bucket_are_listed_and_removed(machines, capsys):
    store = make_store(random_rows(40))
    built = build_toy(machines.on("first") / "cache", store)
    second = machines.on("second")
    found = build_toy(second / "cache", store, rows=np.arange(3), say=never_building)
    for row in range(3):
        mine, its = (cache.stream(np.array([row]), 40) for cache in (built, found))
        np.testing.assert_array_equal(mine["logits"], its["logits"])
    arrays = list(second.glob("cache/*/shards/*/logits.npy"))
    assert 0 < len(arrays) < len(list(second.glob("cache/*/shards/*/rows.npy")))
    machines.on("third")
    cli.main(["cache", "ls", "--out", machines.url])
    assert f"{store.rows} rows" in capsys.readouterr().out
    cli.main(["cache", "rm", built.folder.name, "--out", machines.url])
    assert machines.there() == {".mirror"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run on one machine's disk."""
    return pipeline.run(shrunk(tmp_path_factory.mktemp("runs"), "D4.1"))


def same(folder: pathlib.Path, finished) -> None:
    for path, leaf in weights(finished.folder).items():
        np.testing.assert_array_equal(leaf, weights(folder)[path], err_msg=path)
    assert lines(folder) == lines(finished.folder)
    dev = json.loads((folder / "report.json").read_text())["figures"]["dev"]
    assert dev == finished.report["figures"]["dev"]


@pytest.mark.slow
@pytest.mark.parametrize("emulated", ["gs"], indirect=True)
def test_a_run_goes_on_on_another_machine(machines, finished, capsys):
    machines.on("first")
    flag = StopFlag()
    experiment = shrunk(machines.url, "D4.1")
    with pytest.raises(InterruptedRunError):
        pipeline.run(experiment, stop=flag, progress=StopAfter(6, flag))
    machines.on("second")
    messages: list[str] = []
    result = pipeline.run(experiment, say=messages.append)
    assert not [each for each in messages if "fine-tuning" in each or "building" in each]
    same(result.folder, finished)
    url = storage.shown(result.folder)
    assert url == f"{machines.url}/quickstart/{result.folder.name}"
    third = machines.on("third")
    again = pipeline.run_again(url, evaluate_test=True)
    assert again.dev == result.dev
    assert again.folder == third / "quickstart" / result.folder.name
    same(again.folder, finished)
    machines.on("fourth")
    text = "Anna wohnt in Köln ."
    assert Tagger.load(url)([text]) == Tagger.load(finished.folder)([text])
    cli.main(["eval", url])
    assert f"Report: {url}/report.md" in capsys.readouterr().out
    assert pipeline.run(experiment).report["test_readings"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("emulated", "calls"), [("gs", 2), ("s3", 7)], indirect=["emulated"])
def test_a_machine_that_dies_is_followed_by_another(machines, finished, calls):
    machines.on("first")
    run_and_kill(machines.url, "D4.1", calls)
    machines.on("second")
    same(pipeline.run(shrunk(machines.url, "D4.1")).folder, finished)


def both(*arguments: object) -> tuple[int, str]:
    """``tests.buckets`` in two processes; gives (code, what was said)."""
    return launch("tests.buckets", 2, *arguments, compiled=jax.config.jax_compilation_cache_dir)


@pytest.mark.slow
@pytest.mark.parametrize("emulated", ["gs"], indirect=True)
def test_hosts_without_a_common_disk_fill_one_cache(machines, tmp_path):
    store = make_store(TEXT)
    build_toy(tmp_path / "alone", store, devices=2, shard_bytes=6_000)
    code, said = both("cache", machines.url, tmp_path / "before", 1, 12)
    assert code == 128 + 9, said
    code, said = both("cache", machines.url, tmp_path / "after")
    assert code == 0, said
    third = machines.on("third")
    [name] = storage.names(third / "cache")
    storage.refresh(third / "cache" / name)
    storage.settle(third / "cache" / name, "plans/*", "shards/*")
    found, wanted = contents(third / "cache"), contents(tmp_path / "alone")
    assert found == {path: each for path, each in wanted.items() if not path.endswith(".lock")}


@pytest.mark.slow
@pytest.mark.parametrize("emulated", ["s3"], indirect=True)
def test_hosts_without_a_common_disk_train_one_student(machines, tmp_path):
    code, said = both("run", machines.url + "/whole", tmp_path / "whole")
    assert code == 0, said
    code, said = both("run", machines.url + "/killed", tmp_path / "before", 1, 9)
    assert code == 128 + 9, said
    code, said = both("run", machines.url + "/killed", tmp_path / "after")
    assert code == 0, said
    [wanted] = (tmp_path / "whole" / "0").glob("*/params.npz")
    [found] = (tmp_path / "after" / "0").glob("*/params.npz")
    with np.load(wanted) as wanted, np.load(found) as found:
        for path in wanted.files:
            np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)
    [whole] = (tmp_path / "whole" / "0").glob("*/records.json")
    [rest] = (tmp_path / "after" / "0").glob("*/records.json")
    assert len(json.loads(rest.read_text())) < len(json.loads(whole.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("emulated", ["gs"], indirect=True)
def test_hosts_without_a_common_disk_pretrain_one_teacher(machines, tmp_path):
    """And find it from other, empty disks."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "de.txt").write_text("".join(f"Anna wohnt in Haus {n}\n" for n in range(300)))
    for disks, trained in (("first", True), ("second", False)):
        code, said = both("pretrain", machines.url, tmp_path / disks, text)
        assert code == 0, said
        assert ("pretraining in" in said) == trained
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= machines.there()
