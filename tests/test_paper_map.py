"""The map from the papers to the code: complete, fresh, and read from docstrings alone."""

from pathlib import Path

import pytest

from pipeline.errors import BadInput
from pipeline.paper_map import PLACE, Note, collect, paper_map, references, write_paper_map

ROOT = Path(__file__).resolve().parents[1]
BUILT = {  # the numbered equations of the papers that are built so far
    "Wu2016": {"Eq. 1"},
    "Dai2015": {"Eq. 1", "Eq. 2", "Eq. 3", "Eq. 4"},
}

SOURCE = '''"""Losses.

Implements: Dai2015 Sec. 4.3.
"""

raise RuntimeError("the map reads, it does not run")


def loss(x):
    """Mean loss.

    Implements: Wu2016 Eq. 1, Table 7; Dai2015 Eq. 10 (the fixed labels of
        Dai2015 Table 2).
    Reading: the paper moves t;
        we keep the hardest.
    Returns: a number.
    """


class Choice:
    def cost(self):
        """Implements: Dai2015 Eq. 2, Eq. 4; Wu2016 Eq. 1."""
'''


@pytest.fixture
def small(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "losses.py").write_text(SOURCE)
    return tmp_path


def note(text):
    return Note("Implements", text, "pipeline/x.py", 3, "f")


def test_every_equation_that_is_built_has_a_home():
    homes = {
        reference[:2]
        for n in collect(ROOT)
        if n.kind == "Implements"
        for reference in references(n)
    }
    missing = {(p, what) for p, whats in BUILT.items() for what in whats} - homes
    assert not missing


def test_the_map_in_docs_is_fresh():
    assert (ROOT / PLACE).read_text(encoding="utf-8") == paper_map(ROOT), (
        "run `python -m pipeline paper-map`"
    )


def test_every_place_in_the_map_is_there():
    for found in collect(ROOT):
        line = (ROOT / found.file).read_text(encoding="utf-8").splitlines()[found.line - 1]
        assert found.name == "module" or found.name.split(".")[-1] in line


def test_reads_modules_functions_and_methods_without_running_them(small):
    found = [(n.kind, n.line, n.name) for n in collect(small)]
    assert found == [
        ("Implements", 1, "module"),
        ("Implements", 9, "loss"),
        ("Reading", 9, "loss"),
        ("Implements", 21, "Choice.cost"),
    ]


def test_a_note_runs_on_over_lines_and_ends_at_the_next_field(small):
    texts = [n.text for n in collect(small) if n.kind == "Reading"]
    assert texts == ["the paper moves t; we keep the hardest."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wu2016 Eq. 1.", [("Wu2016", "Eq. 1", "")]),
        ("Dai2015 Eq. 3, Eq. 4.", [("Dai2015", "Eq. 3", ""), ("Dai2015", "Eq. 4", "")]),
        (
            "Wu2016 Sec. 2.3 (as Table 1 (left)); Yu2016 Fig. 2",
            [("Wu2016", "Sec. 2.3", "as Table 1 (left)"), ("Yu2016", "Fig. 2", "")],
        ),
    ],
)
def test_references_name_paper_and_number_and_keep_the_remark(text, expected):
    assert references(note(text)) == expected


@pytest.mark.parametrize("text", ["the first equation", "Eq. 1", "Wu2016", "Wu2016 Eqs. 1-3"])
def test_a_line_that_names_no_numbered_thing_is_refused(text):
    with pytest.raises(BadInput, match="pipeline/x.py:3"):
        references(note(text))


def test_rows_are_ordered_by_paper_kind_and_number(small):
    table = [line for line in paper_map(small).splitlines() if line.startswith(("| Dai", "| Wu"))]
    assert [tuple(row.split(" | ")[:2]) for row in table] == [
        ("| Dai2015", "Eq. 2"),
        ("| Dai2015", "Eq. 4"),
        ("| Dai2015", "Eq. 10"),
        ("| Dai2015", "Sec. 4.3"),
        ("| Wu2016", "Eq. 1"),
        ("| Wu2016", "Eq. 1"),
        ("| Wu2016", "Table 7"),
    ]
    assert "[`pipeline/losses.py:9` loss](../pipeline/losses.py#L9)" in table[2]


def test_the_written_map_follows_the_code(small):
    write_paper_map(small)
    before = (small / PLACE).read_text()
    source = small / "pipeline" / "losses.py"
    source.write_text("# one line more\n" + source.read_text())
    assert before != paper_map(small)
    write_paper_map(small)
    assert (small / PLACE).read_text() == paper_map(small)
