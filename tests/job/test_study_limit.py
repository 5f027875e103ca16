"""A study under --time-limit: the cell in work ends, the table is written, the exit status says that cells are left."""

import time

import pytest
from test_study import TINY, cache, done, without_a_cache_of_programs  # noqa: F401  # fixtures

from metadd_jax.job import cells, history, stopping, studies, study


def test_a_time_limit_ends_the_cell_in_work_but_not_the_table(done, cache, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    words = ["tiny", "--run-dir", str(tmp_path / "one"), "--cache-dir", str(cache), "--seeds", "1"]
    known = cells.run

    def run(cell, *args, **options):
        if cell.row != "random":
            time.sleep(30)  # longer than the limit
        known(cell, *args, **options)

    monkeypatch.setattr(cells, "run", run)
    began = time.monotonic()
    with pytest.raises(stopping.Stopped, match="stopped by the time limit of 2s"):
        study.run([*words, "--time-limit", "2s"])
    assert time.monotonic() - began < 25 and "1 of 3 cells are done" in capsys.readouterr().out
    assert history.read(tmp_path / "one")[0]["how"] == "2 of 3 cells are left"
