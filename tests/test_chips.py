"""The table of chips: complete, editable, and wrong entries named."""

import json

import pytest

from xdistil_jax.chips import TABLE, Chip, read_chip


def test_every_chip_can_be_read_and_says_where_its_figures_are_from():
    names = json.loads(TABLE.read_text())["chips"]
    assert {"v5e", "v6e", "v5p"} <= set(names)
    for name in names:
        chip = read_chip(name)
        assert chip.name == name
        assert len(chip.source) > 20
        assert 0 < chip.student_utilisation < chip.encoder_utilisation < 1


def write(tmp_path, **changes):
    row = json.loads(TABLE.read_text())["chips"]["v5e"]
    row = {key: value for key, value in {**row, **changes}.items() if value != "gone"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"chips": {"ours": row}}))
    return path


@pytest.mark.parametrize("price", [None, 0, 0.5])
def test_a_table_of_ones_own(tmp_path, price):
    chip = read_chip("ours", write(tmp_path, usd_per_hour=price))
    assert isinstance(chip, Chip)
    assert chip.usd_per_hour == price


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"chips\.json has no chip 'v5': did you mean v5[ep]\?"):
        read_chip("v5")
    with pytest.raises(ValueError, match=r"mine\.json, ours: missing or unknown: flops$"):
        read_chip("ours", write(tmp_path, flops="gone"))
    with pytest.raises(ValueError, match="ours: missing or unknown: flopps"):
        read_chip("ours", write(tmp_path, flopps=1))
    for wrong in (None, 0, -1, "fast"):
        with pytest.raises(ValueError, match=r"mine\.json, ours, hbm_gb: .* no positive number"):
            read_chip("ours", write(tmp_path, hbm_gb=wrong))
    with pytest.raises(ValueError, match="usd_per_hour"):
        read_chip("ours", write(tmp_path, usd_per_hour=-1))
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(ValueError, match=r'mine\.json: expected JSON \{"chips"'):
        read_chip("ours", tmp_path / "mine.json")
    with pytest.raises(FileNotFoundError):
        read_chip("ours", tmp_path / "none.json")
