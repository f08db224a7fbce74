"""The persistent compilation cache: counted, kept on disk, gone from the settings afterwards."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import pytest

from xdistil_jax import compilation
from xdistil_jax.compilation import named, persistent_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def settings():
    return {name: getattr(jax.config, name) for name in SETTINGS}


@pytest.fixture(autouse=True)
def no_folder():
    """As in a fresh process, whatever the environment says."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def compile_once(number):
    """A program of its own for each ``number``; a new closure, so jit itself remembers nothing."""
    x = jnp.ones(3)
    return jax.jit(lambda x: jnp.sin(x) * number)(x).block_until_ready()


def test_a_miss_then_a_hit(tmp_path):
    jnp.ones(3).block_until_ready()
    with persistent_cache(tmp_path / "cache") as first:
        compile_once(3)
    assert (first.misses, first.hits) == (1, 0)
    assert first.seconds > 0
    assert any((tmp_path / "cache").iterdir())
    with persistent_cache(tmp_path / "cache") as second:
        compile_once(3)
        assert (second.misses, second.hits) == (0, 1)
        compile_once(4)
    assert (second.misses, second.hits) == (1, 1)
    assert (first.misses, first.hits) == (1, 0)


@pytest.mark.parametrize(("most", "kept"), [("100", False), ("1000000", True), (None, True)])
def test_programs_are_let_go_of_once_they_are_too_many(tmp_path, monkeypatch, most, kept):
    """LLVM ends a process that has no memory map left for a program."""
    limit = tmp_path / "max_map_count"
    if most:
        limit.write_text(f"{most}\n")
    monkeypatch.setattr(compilation, "_MOST_MAPS", limit)
    double = jax.jit(named("double")(lambda x: 2 * x))
    with persistent_cache(tmp_path / "cache"):
        double(jnp.ones(3)).block_until_ready()
    with persistent_cache(tmp_path / "cache") as again:
        double(jnp.ones(3)).block_until_ready()
    assert ("double" in again.programs) == (not kept)


def test_nothing_is_counted_or_kept_outside(tmp_path):
    with persistent_cache(tmp_path / "cache") as counted:
        compile_once(5)
    kept = sorted((tmp_path / "cache").iterdir())
    compile_once(6)
    assert counted.misses == 1
    assert sorted((tmp_path / "cache").iterdir()) == kept


def test_settings_are_restored_after_success_and_failure(tmp_path):
    before = settings()
    with persistent_cache(tmp_path):
        assert settings() != before
        assert settings()[SETTINGS[1]] == 0
    assert settings() == before
    with pytest.raises(RuntimeError, match="on purpose"), persistent_cache(tmp_path):
        raise RuntimeError("on purpose")
    assert settings() == before


def test_the_folder_that_the_caller_has_chosen_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    with persistent_cache(tmp_path / "ours") as counted:
        compile_once(7)
    assert counted.misses == 1
    assert any((tmp_path / "theirs").iterdir())
    assert not (tmp_path / "ours").exists()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")


def test_a_relative_folder_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with persistent_cache("cache"):
        monkeypatch.chdir(tmp_path / "elsewhere")
        compile_once(8)
    assert any((tmp_path / "cache").iterdir())


def test_programs_are_counted_by_their_names(tmp_path):
    def program(factor):
        @named("a program")
        def call(x):
            return jnp.sin(x) * factor

        return jax.jit(call)

    three, four = jnp.ones(3), jnp.ones(4)
    with persistent_cache(tmp_path / "cache") as first:
        program(11)(three)
        compile_once(11)
    assert {name: each.compiled for name, each in first.programs.items()} == {
        "a program": 1, "<lambda>": 1
    }  # fmt: skip
    with persistent_cache(tmp_path / "cache") as second:
        again = program(11)
        again(three)
        again(four)
        again(four)
    (found,) = second.programs.values()
    assert (found.compiled, found.found) == (1, 1)
    assert found.seconds == second.seconds > 0
    assert asdict(second) == {
        "misses": 1, "hits": 1, "seconds": second.seconds, "programs": {"a program": asdict(found)}
    }  # fmt: skip
