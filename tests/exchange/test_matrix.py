"""The matrix of docs/formats.md: every format is in it, every cell is a test that is there or the reason for none."""

import pathlib
import re

from metadd_jax.exchange import peers
from metadd_jax.job import export

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text()
MATRIX = PAGE.partition("## The matrix")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in MATRIX.splitlines() if line.startswith("| ")]
HEAD, *BODY = ROWS


def test_every_cell_is_there():
    assert len(HEAD) == 5 and len(BODY) >= 15
    assert [row for row in BODY if len(row) != 5 or not all(row)] == []


def test_the_tests_that_it_names_are_there():
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\btest_[a-z0-9_]+\b", MATRIX))
    assert len(named) > 8 and named <= there, named - there


def test_both_directions_of_every_row_name_a_test_or_the_reason():
    for row in BODY:
        for cell in row[3:]:
            assert re.search(r"\btest_\w+", cell) or len(cell.split()) > 2, (row[0], cell)


def test_no_format_is_left_out():
    read, written = ({name for row in BODY for name in re.findall(r"`([a-z0-9]+)`", row[place])} for place in (0, 2))
    assert set(peers.FORMATS) <= read, set(peers.FORMATS) - read
    assert set(export._WRITERS) <= written, set(export._WRITERS) - written
