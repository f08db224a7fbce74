"""Trees: a split and its undoing, patterns that cover, complaints that name the nearest path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdistil_jax import trees

TREE = {
    "embed": {"table": 1},
    "layer_1": {"attention": {"kernel": 2, "bias": 3}, "mlp": {"kernel": 4}},
    "layer_10": {"attention": {"kernel": 5}},
    "head": {"kernel": 6, "bias": 7},
}
PATHS = [path for path, _ in trees.leaves(TREE)]

keys = st.text("abc_1", min_size=1, max_size=3)
nested = st.recursive(
    st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


def test_leaves_are_sorted_paths_without_the_holes():
    assert [*trees.leaves({"b": {"y": 0, "x": None}, "a": 2})] == [("a", 2), ("b/y", 0)]


@given(nested)
def test_unflatten_undoes_leaves(tree):
    assert trees.unflatten(dict(trees.leaves(tree))) == tree


@given(nested, st.data())
def test_combine_undoes_partition(tree, data):
    flat = dict(trees.leaves(tree))
    chosen = {path: data.draw(st.booleans()) for path in flat}
    inside, outside = trees.partition(tree, trees.unflatten(chosen))
    assert dict(trees.leaves(inside)) == {path: flat[path] for path in flat if chosen[path]}
    assert dict(trees.leaves(outside)) == {path: flat[path] for path in flat if not chosen[path]}
    assert trees.combine(inside, outside) == tree
    assert trees.combine(outside, inside) == tree


def test_zero_is_a_leaf_and_no_hole():
    inside, outside = trees.partition({"a": 0, "b": 0}, {"a": True, "b": False})
    assert trees.combine(inside, outside) == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("head", ["head/bias", "head/kernel"]),
        ("head/kernel", ["head/kernel"]),
        ("layer_1", ["layer_1/attention/bias", "layer_1/attention/kernel", "layer_1/mlp/kernel"]),
        ("layer_?", ["layer_1/attention/bias", "layer_1/attention/kernel", "layer_1/mlp/kernel"]),
        ("layer_*/attention/kernel", ["layer_1/attention/kernel", "layer_10/attention/kernel"]),
        ("layer_10/attention", ["layer_10/attention/kernel"]),
        ("*/bias", ["head/bias", "layer_1/attention/bias"]),
        ("*", PATHS),
    ],
)
def test_a_pattern_covers(pattern, covered):
    assert [path for path in PATHS if trees.matches(pattern, path)] == covered
    chosen = trees.mask(TREE, [pattern])
    assert [path for path, value in trees.leaves(chosen) if value] == covered
    assert [path for path, _ in trees.leaves(chosen)] == PATHS


def test_no_patterns_choose_nothing():
    assert not any(value for _, value in trees.leaves(trees.mask(TREE, [])))


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("haed", "head"), ("Head/kernel", "head/kernel"), ("layer_2/mlp", "layer_1/mlp")],
)
def test_a_pattern_that_matches_nothing_is_answered_with_the_nearest(pattern, near):
    with pytest.raises(trees.PatternError, match=f"'{pattern}' matches no parameter.*{near}"):
        trees.mask(TREE, ["head", pattern])


def test_a_pattern_far_from_everything_is_answered_with_the_paths():
    with pytest.raises(trees.PatternError, match="the paths are embed/table, head/bias"):
        trees.mask(TREE, ["###"])


def test_assign_names_the_one_pattern_of_each_parameter():
    found = trees.assign(TREE, ["head", "embed", "layer_*/attention", "layer_1/mlp"])
    assert set(found) == set(PATHS)
    assert found["layer_10/attention/kernel"] == "layer_*/attention"
    assert found["head/bias"] == "head"


def test_assign_refuses_gaps_overlaps_and_misses():
    with pytest.raises(trees.PatternError, match="'embed/table' is covered by no pattern"):
        trees.assign(TREE, ["head", "layer_*"])
    with pytest.raises(trees.PatternError, match="'head/bias' is covered by head and \\*/bias"):
        trees.assign(TREE, ["embed", "head", "layer_*", "*/bias"])
    with pytest.raises(trees.PatternError, match=r"'heads' matches no parameter.*head"):
        trees.assign(TREE, ["*", "heads"])


def test_describe_is_a_line_for_each_parameter():
    chosen = trees.mask(TREE, ["head"])
    lines = trees.describe(chosen).splitlines()
    assert [line[2:] for line in lines] == PATHS
    assert [line[2:] for line in lines if line.startswith("x ")] == ["head/bias", "head/kernel"]
    assert {line[:2] for line in lines} == {"x ", ". "}
