"""What was compiled is told, the longest first."""

from xdistil_jax.report import compilations


def compiled(count):
    programs = {
        f"program {number}": {"compiled": 2, "found": 1, "seconds": float(number)}
        for number in range(count)
    }
    return {"compilations": {"misses": 0, "hits": 0, "seconds": 0.0, "programs": programs}}


def test_compilations_are_listed_longest_first_and_the_rest_summed():
    lines = [line.split() for line in compilations.table(compiled(15)).splitlines()]
    assert lines[0] == ["program", "compiled", "found", "on", "disk", "seconds"]
    assert [line[:2] for line in lines[1:13]] == [["program", str(n)] for n in range(14, 2, -1)]
    assert lines[1][2:] == ["2", "1", "14.0"]
    assert lines[13:] == [["3", "others", "6", "3", "3.0"], ["all", "30", "15", "105.0"]]
    assert max(map(len, compilations.table(compiled(15)).splitlines())) < 100


def test_compilations_of_several_runs_are_one_table():
    lines = compilations.table(compiled(2), compiled(1), {}).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["program", "1", "2", "1", "1.0"],
        ["program", "0", "4", "2", "0.0"],
        ["all", "6", "3", "1.0"],
    ]


def test_a_run_that_counted_no_programs_has_no_table():
    older = {"compilations": {"misses": 1, "hits": 0, "seconds": 1.0}}
    assert compilations.table(older) == ""
