"""Tables of Markdown keep their columns whatever stands in a cell."""

from xdistil_jax import markdown


def test_a_table_has_its_columns():
    text = markdown.table(["class", "F1", "count"], [["a|b", "1.0", "2"], ["c", "—", "3"]])
    assert text.splitlines() == [
        "| class | F1 | count |",
        "|---|---:|---:|",
        r"| a\|b | 1.0 | 2 |",
        "| c | — | 3 |",
    ]
    assert markdown.table(["only"], []) == "| only |\n|---|"
