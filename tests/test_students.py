"""Students by their configuration: sizes, what they start from, and runs from files to a bundle."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_pipeline import compiled_once, shrunk, weights  # noqa: F401
from xdistil_jax import (
    DataSpec,
    Experiment,
    Sentence,
    StudentConfig,
    Tagger,
    load_corpus,
    pipeline,
    trees,
)
from xdistil_jax.alignment import Target
from xdistil_jax.configs import STUDENTS, student_config
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.deploy.bundle import load_bundle, save_bundle
from xdistil_jax.labels import ClassSet, TagSet
from xdistil_jax.models.checkpoints import load_encoder, save_encoder
from xdistil_jax.models.deberta import DebertaSpec
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.report.metrics import score
from xdistil_jax.students import (
    deployed,
    own_tokenizer,
    read_spec,
    start_identity,
    start_student,
    student_spec,
)

TAGS = TagSet(("LOC", "ORG", "PER"))
TEXT = [
    "Anna",
    "Berg",
    "fuhr",
    "nach",
    "Berlin",
    ",",
    "dann",
    "weiter",
    "nach",
    "Köln",
    "am",
    "Rhein",
    ".",
]
TOKENIZER = train_tokenizer([Sentence(tuple(TEXT), None, "de")] * 2, 200)
TINY = StudentConfig(kind="transformer", layers=2, width=16, heads=2, dropout=0.0)
TARGET = Target(12, ("layer_4",))
KEY = jax.random.key(0)


def sized(config, target=TARGET, length=24):
    return student_spec(config, target, TOKENIZER.vocab_size, len(TAGS), length)


def started(config, spec, table=None, tagset=TAGS):
    return start_student(config, spec, TOKENIZER, tagset, table, key=KEY)


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in trees.leaves(params)}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [("l6-h256", 12_750_080), ("l6-h384", 22_713_216), ("l12-h384", 33_360_000)],
)
def test_the_published_sizes(name, published):
    """Those of Hugging Face's BertModel, whose pooler of D × D + D parameters ours leaves out."""
    encoder = sized(student_config(name)).encoder
    whole = dataclasses.replace(encoder, vocab_size=30_522, positions=512, token_types=2)
    params = abstract_params(whole)
    width = whole.width
    assert count(params) - count(params["head"]) + width * width + width == published


def test_groups_are_known_from_the_configuration():
    for name in ("l6-h384", "l6-h256", "base"):
        config = student_config(name)
        assert config.groups == sized(config).groups
    stages = Experiment(student=TINY).plan()
    assert [stage.name for stage in stages[1:5]] == [
        *("logit/head", "logit/layer_2", "logit/layer_1", "logit/embed")
    ]
    assert stages[0].trainable == ("projection", "layer_2", "layer_1", "embed")
    assert stages[2].trainable == ("head", "layer_2")


def test_equal_widths_need_no_projection():
    spec = sized(TINY, Target(16, ("layer_4",)))
    assert spec.groups == ("head", "layer_2", "layer_1", "embed")
    assert set(trees.assign(abstract_params(spec), spec.groups).values()) == set(spec.groups)
    stages = Experiment(student=TINY).plan(spec.groups)
    assert stages[0].trainable == ("layer_2", "layer_1", "embed")
    assert "logit/layer_2" in [stage.name for stage in stages]


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (TINY, 12), (TINY, 16), (StudentConfig(embed=8, hidden=6), 12),
        (StudentConfig(embed=8, hidden=6, head_on="bilstm"), 12),
        (StudentConfig(embed=8, hidden=6, head_on="bilstm", projection="linear"), 12),
    ],
)  # fmt: skip
def test_logits_read_all_groups_but_those_of_states_only(config, width):
    """Each step of gradual unfreezing moves parameters that the step before left alone."""
    spec = sized(config, Target(width, ("layer_4",)))
    functional = build(spec)
    params = functional.init(KEY)
    tokens, lengths = jnp.arange(5, 13).reshape(2, 4), jnp.array([4, 3])

    def logits(params):
        return (functional.apply(params, tokens, lengths).logits ** 2).sum()

    gradients = flat(jax.grad(logits)(params))
    owner = trees.assign(params, spec.groups)
    moved = {owner[path] for path, leaf in gradients.items() if np.abs(leaf).max() > 0}
    assert moved == set(spec.groups) - set(config.states_only)
    for strategy in ("D4.2", "D3.2"):
        stages = Experiment(student=config, strategy=strategy).plan(spec.groups)
        assert {group for stage in stages for group in stage.trainable} == set(spec.groups)
        for stage in stages[1:]:
            assert set(stage.trainable) <= moved, stage.name
        assert len({stage.program for stage in stages}) == len(stages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, r"student.layers is 0: .*--student l6-h384"),
        ({"width": 0}, r"student.width is 0"),
        ({"heads": 3}, r"width 16 is no multiple of heads 3"),
        ({"kind": "bilstm"}, r"student.layers is 2, but a BiLSTM has none.*kind transformer"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        sized(dataclasses.replace(TINY, **changes))


# --- the start -------------------------------------------------------------------------------


def test_the_teachers_table_of_equal_width_is_taken_as_it_is():
    table = np.random.default_rng(0).standard_normal((TOKENIZER.vocab_size, 16), np.float32)
    _, params = started(TINY, sized(TINY), table)
    np.testing.assert_array_equal(params["embed"]["table"], table)
    assert {"positions", "norm"} <= params["embed"].keys()


def test_a_wider_table_is_compressed_to_the_scale_of_the_student():
    table = np.random.default_rng(0).standard_normal((TOKENIZER.vocab_size, 24), np.float32)
    spec, params = started(TINY, sized(TINY), table)
    found = np.asarray(params["embed"]["table"])
    assert found.std() == pytest.approx(spec.encoder.initializer, rel=1e-4)
    # Of rank 16, the best there is: what remains is what Eckart and Young leave.
    basis, _ = np.linalg.qr(found)
    residue = np.linalg.norm(table - basis @ (basis.T @ table)) ** 2
    best = np.sum(np.linalg.svd(table, compute_uv=False)[16:] ** 2)
    assert residue == pytest.approx(best, rel=1e-3)


def test_a_factored_embedding_is_one_table_in_the_end():
    table = np.random.default_rng(0).standard_normal((TOKENIZER.vocab_size, 24), np.float32)
    config = dataclasses.replace(TINY, embedding="projected")
    spec, params = started(config, sized(config), table)
    assert spec.source_width == 24
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * random.standard_normal(x.shape, np.float32), params)
    tokens, lengths = jnp.arange(8).reshape(2, 4), jnp.array([4, 3])
    before = build(spec).apply(params, tokens, lengths).logits
    final, kept = deployed(spec, params)
    assert "source" not in kept
    assert "projection" not in kept
    after = build(final).apply(kept, tokens, lengths)
    np.testing.assert_allclose(before, after.logits, atol=1e-5)
    assert after.hidden == {}
    assert jax.tree.structure(kept) == jax.tree.structure(abstract_params(final))
    moved = jax.tree.map(np.zeros_like, {"projection": params["embed"]["projection"]})
    other = {**params, "embed": {**params["embed"], **moved}}
    assert np.abs(build(spec).apply(other, tokens, lengths).logits - before).max() > 1e-3


@pytest.fixture
def published(tmp_path) -> pathlib.Path:
    """A checkpoint as those of XtremeDistilTransformers: a bare BertModel with a vocab.txt."""
    spec = EncoderSpec(TOKENIZER.vocab_size, 16, 3, 2, 32, positions=40, classes=2, stacked=False)
    params = jax.tree.map(np.asarray, build(spec).init(jax.random.key(5)))
    save_encoder(tmp_path, spec, params, ("O", "B-X"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    pieces = sorted(TOKENIZER.backend.get_vocab().items(), key=lambda piece: piece[1])
    (tmp_path / "vocab.txt").write_text("\n".join(piece for piece, _ in pieces) + "\n")
    return tmp_path


def test_a_published_checkpoint_starts_a_student(published):
    config = StudentConfig(kind="transformer", checkpoint=str(published), dropout=0.0)
    assert own_tokenizer(config) == str(published)
    assert config.groups == ("head", "projection", "layer_3", "layer_2", "layer_1", "embed")
    spec = sized(config)
    assert (spec.encoder.width, spec.encoder.positions, spec.encoder.token_types) == (16, 40, 2)
    _, params = started(config, spec)
    theirs = load_encoder(published, len(TAGS), key=KEY, stacked=False)
    batch = jnp.arange(5, 13).reshape(2, 4), jnp.array([4, 3])
    bare = dataclasses.replace(spec.encoder, outputs=("embedding", "layer_3"))
    inner = {name: below for name, below in params.items() if name != "projection"}
    ours = build(bare).apply(inner, *batch).hidden
    expected = build(theirs.spec).apply(theirs.params, *batch).hidden
    for name in ("embedding", "layer_3"):
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5)


def test_the_lowest_layers_of_a_checkpoint_will_do(published):
    config = StudentConfig(kind="transformer", checkpoint=str(published), layers=2)
    _, params = started(config, sized(config))
    theirs = load_encoder(published, len(TAGS), key=KEY, stacked=False).params
    assert "layer_3" not in params
    for name in ("layer_1", "layer_2"):
        for path, leaf in flat(params[name]).items():
            np.testing.assert_array_equal(leaf, flat(theirs[name])[path], err_msg=path)


def test_the_teachers_table_may_take_the_place_of_the_checkpoints(published):
    """As the third version of the code does: ``--compress_word_embedding`` and a checkpoint."""
    config = StudentConfig(kind="transformer", checkpoint=str(published), width=16, layers=2)
    spec = sized(config)
    own = flat(started(config, spec)[1])
    teachers = np.random.default_rng(0).standard_normal((TOKENIZER.vocab_size, 24), np.float32)
    changed = dataclasses.replace(config, embedding="pca")
    found = flat(started(changed, spec, teachers)[1])
    centred = teachers - teachers.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:16]
    table = centred @ directions.T
    expected = table * (spec.encoder.initializer / table.std())
    signs = np.sign((found["embed/table"] * expected).sum(0))
    np.testing.assert_allclose(found["embed/table"], expected * signs, atol=1e-5)
    drawn = flat(started(dataclasses.replace(config, embedding="random"), spec)[1])
    assert np.abs(drawn["embed/table"] - own["embed/table"]).max() > 0.01
    for path in own.keys() - {"embed/table"}:
        np.testing.assert_array_equal(found[path], own[path], err_msg=path)
        np.testing.assert_array_equal(drawn[path], own[path], err_msg=path)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"checkpoint": "any", "embedding": "projected", "layers": 1}, "a table of its own width"),
        ({"checkpoint": "any", "embedding": "pca", "layers": 1}, r"student.width is 0.*to know it"),
        ({"layers": 1, "head_on": "bilstm"}, r"student.head_on is bilstm.* a BiLSTM's"),
        ({"layers": 1, "projection": "linear"}, "student.projection is linear"),
        ({"layers": 1, "pooling": "max"}, "student.pooling is max"),
    ],
)
def test_choices_that_a_transformer_has_not_are_refused(choices, said):
    with pytest.raises(ValueError, match=said):
        Experiment(student=StudentConfig(kind="transformer", **choices)).plan()


def test_checkpoints_that_do_not_fit_are_named(published, tmp_path_factory):
    given = StudentConfig(kind="transformer", checkpoint=str(published))
    with pytest.raises(ValueError, match=r"student.width is 24, but .* has 16: leave it at 0"):
        sized(dataclasses.replace(given, width=24))
    with pytest.raises(ValueError, match=r"student.layers is 4, but .* has 3: leave it at 0"):
        sized(dataclasses.replace(given, layers=4))
    with pytest.raises(ValueError, match=r"teacher.max_length is 64.* 40 positions"):
        sized(given, length=64)
    with pytest.raises(ValueError, match=r"no student of ours.*--student.kind transformer"):
        sized(dataclasses.replace(given, kind="bilstm"))
    file = published / "config.json"
    usual = file.read_text()
    file.write_text(json.dumps({**json.loads(usual), "hidden_act": "silu"}))
    with pytest.raises(ValueError, match=r"computes with silu, .* expected gelu, gelu_tanh, relu"):
        sized(given)
    file.write_text(usual)
    other = tmp_path_factory.mktemp("deberta")
    spec = DebertaSpec(TOKENIZER.vocab_size, 16, 1, 2, 32, classes=2, family="deberta-v2")
    save_encoder(other, spec, build(spec).init(KEY), ("O", "B-X"))
    with pytest.raises(ValueError, match=r"is a deberta-v2: a student starts from bert, roberta"):
        sized(dataclasses.replace(given, checkpoint=str(other)))


def bundled(folder, spec, params, tagset=TAGS, tokenizer=TOKENIZER):
    """A student of ours, in a run folder."""
    kind = "transformer" if isinstance(spec, TransformerSpec) else "bilstm"
    save_bundle(
        folder / "student", kind=kind, sizes=dataclasses.asdict(spec), weights=flat(params),
        tokenizer=tokenizer, tagset=tagset, max_length=24, decoding="iob2",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("config", [TINY, StudentConfig(embed=6, hidden=5)], ids=["T", "BiLSTM"])
def test_a_bundle_gives_its_spec_back(tmp_path, config):
    spec, params = deployed(*started(config, sized(config)))
    folder = bundled(tmp_path, spec, params)
    found = read_spec(load_bundle(folder / "student"))
    assert found == spec
    assert hash(found) == hash(spec)


@pytest.mark.parametrize("config", [TINY, StudentConfig(embed=6, hidden=5)], ids=["T", "BiLSTM"])
def test_a_student_of_ours_starts_another_by_piece(tmp_path, config):
    spec, params = deployed(*started(config, sized(config)))
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), params)
    # Cut otherwise, and with other numbers.
    other = train_tokenizer([Sentence((*TEXT, "Xylophon"), None, "de")] * 3, 150)
    kept = {**params, "embed": dict(params["embed"])}
    kept["embed"]["table"] = random.standard_normal(
        (other.vocab_size, kept["embed"]["table"].shape[1]), np.float32
    )
    old = dataclasses.replace(
        spec, **(
            {"encoder": dataclasses.replace(spec.encoder, vocab_size=other.vocab_size)}
            if isinstance(spec, TransformerSpec) else {"vocab_size": other.vocab_size}
        ),
    )  # fmt: skip
    folder = bundled(tmp_path, old, kept, tokenizer=other)
    again = dataclasses.replace(config, checkpoint=str(folder))
    assert own_tokenizer(again) == ""
    said: list[str] = []
    _, begun = start_student(
        again, sized(again), TOKENIZER, TAGS, None, key=jax.random.key(9), say=said.append
    )
    mine, its = TOKENIZER.backend.get_vocab(), other.backend.get_vocab()
    shared = [piece for piece in mine if piece in its]
    assert len(shared) > 20
    assert any(mine[piece] != its[piece] for piece in shared)
    for piece in shared:
        np.testing.assert_array_equal(
            begun["embed"]["table"][mine[piece]], kept["embed"]["table"][its[piece]], err_msg=piece
        )
    taken = {path for path in flat(kept) if path != "embed/table"}
    for path in taken:
        np.testing.assert_array_equal(flat(begun)[path], flat(kept)[path], err_msg=path)
    assert folder.name in said[0]
    identity = start_identity(again)
    (folder / "report.json").write_text("{}")
    assert start_identity(again) == identity
    (folder / "student" / "labels.json").write_text("{}")
    assert start_identity(again) != identity
    bundled(folder / "again", old, kept, tokenizer=other)
    again = dataclasses.replace(again, checkpoint=str(folder / "again"))
    with_other_tags = TagSet(("EVENT", "LOC", "PER"))
    _, fresh = start_student(again, sized(again), TOKENIZER, with_other_tags, None, key=KEY)
    assert np.abs(flat(fresh)["head/kernel"] - flat(kept)["head/kernel"]).max() > 0.1
    np.testing.assert_array_equal(
        flat(fresh)[min(taken - {"head/bias", "head/kernel"})],
        flat(kept)[min(taken - {"head/bias", "head/kernel"})],
    )


@pytest.mark.parametrize("config", [TINY, StudentConfig(embed=6, hidden=5)], ids=["T", "BiLSTM"])
def test_a_student_of_tags_starts_one_of_classes(tmp_path, config):
    spec, params = deployed(*started(config, sized(config)))
    again = dataclasses.replace(config, checkpoint=str(bundled(tmp_path, spec, params)))
    classes = ClassSet(tuple(f"topic {n}" for n in range(len(TAGS))))
    assert len(classes) == len(TAGS)
    made = student_spec(again, TARGET, TOKENIZER.vocab_size, len(classes), 24, pool="last")
    _, begun = start_student(again, made, TOKENIZER, classes, None, key=jax.random.key(9))
    heads = {path for path in flat(params) if path.startswith("head/")}
    assert heads
    for path, leaf in flat(params).items():
        if path not in heads:
            np.testing.assert_array_equal(flat(begun)[path], leaf, err_msg=path)
    assert np.abs(flat(begun)["head/kernel"] - flat(params)["head/kernel"]).max() > 0.01


def test_a_student_of_other_sizes_is_refused(tmp_path):
    config = StudentConfig(embed=6, hidden=5)
    folder = bundled(tmp_path, *deployed(*started(config, sized(config))))
    other = StudentConfig(embed=7, hidden=6, checkpoint=str(folder))
    with pytest.raises(ValueError, match="has nothing that fits this student: give the student"):
        started(other, sized(other, Target(13, ("layer_4",))))
    wrong = StudentConfig(kind="transformer", layers=2, checkpoint=str(folder))
    with pytest.raises(ValueError, match=r"is a BiLSTM: set --student.kind bilstm"):
        sized(wrong)


# --- runs ------------------------------------------------------------------------------------

DATA = DataSpec(synthetic=True, languages=("de",), train_limit=60)
SMALL = dataclasses.replace(TINY, layers=1, width=12)


def run_of(out, strategy="D4.1", *, student=SMALL, attention=0.0, **teacher) -> Experiment:
    whole = shrunk(out, strategy, steps_per_call=4)
    return dataclasses.replace(
        whole,
        data=DATA,
        teacher=dataclasses.replace(whole.teacher, layers=2, **teacher),
        student=student,
        tuning=dataclasses.replace(whole.tuning, attention=attention),
        run=dataclasses.replace(whole.run, buckets=1, held_out=20),
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def marks_of(result) -> set[str]:
    return set((result.folder / "plan.txt").read_text().splitlines())


@pytest.mark.parametrize("strategy", ["D1", pytest.param("D4.2", marks=pytest.mark.slow)])
def test_a_transformer_is_distilled_from_files_to_figures(out, strategy):
    experiment = run_of(out, strategy)
    result = pipeline.run(experiment)
    bundle = load_bundle(result.folder / "student")
    assert bundle.kind == "transformer"
    assert not [path for path in bundle.weights if path.startswith("projection")]
    kept = result.report["figures"]["dev"]["models"]["student"]["parameters"]
    assert kept == count(bundle.weights)
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    names = list(dict.fromkeys(json.loads(line)["stage_name"] for line in lines))
    assert names == [stage.name for stage in experiment.plan()]
    sentences = load_corpus(DATA).dev
    bare = [sentence._replace(tags=None) for sentence in sentences]
    spelled = Tagger.load(result.folder).tags(bare)
    found = score([s.tags for s in sentences], spelled, [s.language for s in sentences])
    assert found.mean == pytest.approx(result.dev_f1, abs=0.1)


@pytest.mark.slow
def test_all_layers_and_their_attention_imitate_the_top_of_the_teacher(out):
    student = dataclasses.replace(SMALL, heads=3, align="top")
    result = pipeline.run(run_of(out, student=student, attention=10.0))
    assert {f"x projection/layer_{n}/kernel" for n in (2, 1)} <= marks_of(result)
    record = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert "attention" in json.dumps(record)
    words = dataclasses.replace(student, vocab_size=40, tokenizer="")
    with pytest.raises(ValueError, match="attention is compared piece by piece"):
        pipeline.run(run_of(out, student=words, attention=10.0))


@pytest.mark.slow
def test_a_bilstm_imitates_several_layers(out):
    student = StudentConfig(embed=8, hidden=8)
    result = pipeline.run(run_of(out, student=student, hidden_layers=(2, 1, 0)))
    names = ("projection/kernel", "projection/layer_1/kernel", "projection/embedding/kernel")
    assert {f"x {name}" for name in names} <= marks_of(result)
    assert set(weights(result.folder)) == {
        *("bilstm/bias", "bilstm/kernel", "bilstm/recurrent", "embed/table"),
        *("head/bias", "head/kernel", "projection/bias", "projection/kernel"),
    }


@pytest.mark.slow
def test_a_checkpoint_with_another_tokenizer_is_distilled_and_starts_the_next(out, tmp_path):
    corpus = load_corpus(DATA)
    tokenizer = train_tokenizer(corpus.train, 250)
    spec = EncoderSpec(tokenizer.vocab_size, 16, 1, 2, 32, positions=130, classes=7, stacked=False)
    params = jax.tree.map(np.asarray, build(spec).init(KEY))
    save_encoder(tmp_path, spec, params, corpus.tagset.tags)
    tokenizer.save(tmp_path)
    config = StudentConfig(kind="transformer", checkpoint=str(tmp_path), dropout=0.0)
    first = pipeline.run(run_of(out, "logit-ce", student=config))
    pieces = set(load_bundle(first.folder / "student").tokenizer.backend.get_vocab())
    assert pieces <= set(tokenizer.backend.get_vocab())
    said: list[str] = []
    second = dataclasses.replace(config, checkpoint=str(first.folder))
    found = pipeline.run(run_of(out, "logit-ce", student=second), say=said.append)
    assert [line for line in said if f"starts from {first.folder}" in line]
    assert found.folder != first.folder


def test_names_lead_to_students():
    assert {"l6-h256", "l6-h384", "l12-h384"} <= STUDENTS.keys()
    assert student_config("l12-h384").depth == 12
