"""Rows, comparisons and tables on accuracies whose statistics are known by heart."""

import json

import numpy as np
import pytest
from scipy import stats

from metadd_jax.evaluation import Row, report
from metadd_jax.structs import SyntheticSet

ROLES = {"convnet": "same", "vgg11": "seen", "vit": "unseen"}
# accuracies[set][distillation seed][network] = two training seeds
ACCURACIES = {
    "dm": [{"convnet": [0.5, 0.7], "vgg11": [0.4, 0.4], "vit": [0.2, 0.4]},
           {"convnet": [0.6, 0.8], "vgg11": [0.5, 0.5], "vit": [0.1, 0.3]}],
    "dm+metadd": [{"convnet": [0.5, 0.7], "vgg11": [0.5, 0.5], "vit": [0.4, 0.4]},
                  {"convnet": [0.6, 0.8], "vgg11": [0.5, 0.7], "vit": [0.1, 0.5]}],
}  # fmt: skip


@pytest.fixture
def rows():
    made = []
    for name, seeds in ACCURACIES.items():
        for seed, by_network in enumerate(seeds):
            table = [Row(network, tuple(values)) for network, values in by_network.items()]
            made += report.rows_of(name, seed, table, ROLES, labels="hard")
    return made


def test_rows_hold_what_the_design_promises(rows):
    assert rows[0] == {
        "set": "dm", "distill_seed": 0, "network": "convnet", "role": "same", "labels": "hard",
        "accuracies": [0.5, 0.7],
    }  # fmt: skip
    assert len(rows) == 12


def test_accuracies_are_seeds_by_networks_by_training_seeds(rows):
    values = report.accuracies(rows, "dm", roles=("seen", "unseen"))
    np.testing.assert_array_equal(values, [[[0.4, 0.4], [0.2, 0.4]], [[0.5, 0.5], [0.1, 0.3]]])
    assert report.accuracies(rows, "dm+metadd").shape == (2, 3, 2)
    # The order of the rows does not matter beyond the order of the networks.
    np.testing.assert_array_equal(report.accuracies(rows[3:6] + rows[:3], "dm"), report.accuracies(rows, "dm"))


def test_comparisons_are_paired_by_role(rows):
    compared = report.compare(rows, "dm", "dm+metadd")
    by_role = compared["by_role"]
    assert (compared["first"], compared["second"]) == ("dm", "dm+metadd")
    assert list(by_role) == ["same", "seen", "unseen", "foreign"]
    assert by_role["same"]["difference"] == 0
    np.testing.assert_allclose(by_role["seen"]["per_seed"], [0.1, 0.1])
    np.testing.assert_allclose(by_role["unseen"]["per_seed"], [0.1, 0.1])
    assert by_role["foreign"]["difference"] == pytest.approx(0.1)
    assert by_role["foreign"]["sign_test"]["positive"] == 4
    without_unseen = [row for row in rows if row["role"] != "unseen"]
    assert list(report.compare(without_unseen, "dm", "dm+metadd")["by_role"]) == ["same", "seen"]


def test_the_table_in_percent(rows):
    """Spread: over distillation seeds of the mean over training seeds, ddof 1."""
    spread = 10 / np.sqrt(2)  # of two values that are 10 apart
    assert report.table_lines(rows) == [
        "| set | convnet (same) | vgg11 (seen) | vit (unseen) | **mean seen** | **mean unseen** |",
        "|---|---|---|---|---|---|",
        f"| dm | 65.0 ± {spread:.1f} | 45.0 ± {spread:.1f} | 25.0 ± {spread:.1f} | **45.0 ± {spread:.1f}** "
        f"| **25.0 ± {spread:.1f}** |",
        f"| dm+metadd | 65.0 ± {spread:.1f} | 55.0 ± {spread:.1f} | 35.0 ± {spread:.1f} "
        f"| **55.0 ± {spread:.1f}** | **35.0 ± {spread:.1f}** |",
    ]
    one_seed = [row for row in rows if row["distill_seed"] == 0 and row["set"] == "dm"]
    assert report.table_lines(one_seed)[2] == "| dm | 60.0 | 40.0 | 30.0 | **40.0** | **30.0** |"


def test_comparison_lines_in_points(rows):
    lines = report.comparison_lines(report.compare(rows, "dm", "dm+metadd"))
    assert "dm+metadd - dm" in lines[0]
    # Seen: differences .1, .1 and .0, .2 of two trainings: all of the spread is between trainings, sqrt(.01) points.
    assert "| seen | +10.00 | [+10.00, +10.00] | [+10.00, +10.00] | 0.00 | 10.00 | 2 up, 0 down, p = 0.5 |" in lines
    assert "| same | +0.00 | [+0.00, +0.00] | [+0.00, +0.00] | 0.00 | 0.00 | 0 up, 0 down, p = 1 |" in lines
    one_seed = [row for row in rows if row["distill_seed"] == 0]
    assert any("| one seed |" in line for line in report.comparison_lines(report.compare(one_seed, "dm", "dm+metadd")))


def test_the_seeds_that_a_comparison_needs(rows):
    """Seen: .1 .1 and .0 .2, means alike, within .02: sd .1 at one training, .0707 at two, .0316 at ten."""
    compared = report.compare(rows, "dm", "dm+metadd")
    needed = compared["by_role"]["seen"]["seeds_needed"]
    for trainings, seeds in needed.items():
        half = [stats.t.ppf(0.975, n - 1) * np.sqrt(0.01 / int(trainings) / n) for n in (seeds, seeds - 1)]
        assert half[0] <= 0.005 < half[1]
    told = ", ".join(f"{n} at {t}" for t, n in needed.items())
    assert f"; seen {told}; " in report.comparison_lines(compared)[-1]
    del compared["by_role"]["seen"]["seeds_needed"]  # as in the results of an earlier version
    assert "; seen " not in report.comparison_lines(compared)[-1]
    one_seed = report.compare([row for row in rows if row["distill_seed"] == 0], "dm", "dm+metadd")
    assert report.comparison_lines(one_seed)[-1].startswith("| foreign |")


def test_the_spread_in_its_parts(rows):
    """dm on convnet: trainings .5 .7 and .6 .8, so sd .1414 within; sets' means .6 .7, variance .005 - .02 / 2 < 0."""
    lines = report.spread_lines(rows)
    assert f"| dm | same | 0.00 | {100 * np.sqrt(0.02):.2f} |" in lines
    # seen: no spread within, means .4 and .5
    assert f"| dm | seen | {100 * np.sqrt(0.005):.2f} | 0.00 |" in lines
    once = [row | {"accuracies": row["accuracies"][:1]} for row in rows]
    assert report.spread_lines(once) == []


def test_equal_sets_of_several_seeds_say_so(rows):
    """Three draws of which two are the same images are two sets, whatever their labels or signed zeros."""
    one = SyntheticSet(np.zeros((2, 4, 4, 1), np.float32), np.arange(2))
    other = one.replace(images=one.images + 1)
    found = report.repeats({"dm": [one, other], "kmeans": [one, one.replace(images=-one.images)]}, range(5, 7))
    assert found == {"kmeans": [[5, 6]]}
    assert report.repeats({"dm": [one, other, one]}, range(3)) == {"dm": [[0, 2]]}
    table = report.table_lines(rows, repeats={"dm": [[0, 1]]})
    assert table[2].startswith("| dm (one set for seeds 0, 1) |")
    assert table[3].startswith("| dm+metadd |")


def results(rows):
    facts = {"meta_ratio": 0.25, "chance_corrected": -0.125, "mean_iou": 0.5, "high_area": [0.2, 0.4]}
    return {
        "notes": ["Three classes, two seeds."],
        "rows": rows,
        "comparisons": [report.compare(rows, "dm", "dm+metadd")],
        "agreement": {"dm": {"unseen": facts}},
        "whole_data": {"convnet": 0.987},
    }


def test_agreement_lines():
    facts = {"meta_ratio": 0.25, "chance_corrected": -0.125, "mean_iou": 0.5, "high_area": [0.2, 0.4]}
    assert report.agreement_lines({"dm": {"unseen": facts}})[-1] == "| dm | unseen | 0.250 | -0.125 | 0.500 | 0.300 |"


def test_pulls_and_seconds_are_shown_where_they_were_measured(rows, tmp_path):
    at = {"ai": {"norm": 0.3, "cosine": -0.125}}
    measured = {"pulls": {"dm+metadd": {"start": at, "end": {"ai": {"norm": 0.6, "cosine": 0.5}}}}}
    markdown = report.write(tmp_path, results(rows) | measured | {"seconds": {"dm": 0.25}})
    assert "| dm+metadd | ai | 0.30 | 0.60 | -0.12 | +0.50 |" in markdown
    assert "dm 0.25." in markdown
    assert "Seconds a step" not in report.write(tmp_path, results(rows))


def test_both_files_are_written(rows, tmp_path):
    markdown = report.write(tmp_path, results(rows))
    assert (tmp_path / "results.md").read_text() == markdown
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["rows"] == rows
    assert stored["comparisons"][0]["by_role"]["seen"]["difference"] == pytest.approx(0.1)
    for part in (
        "# Results",
        "Three classes",
        *report.table_lines(rows),
        "convnet 98.7",
        "| dm | unseen | 0.250 |",
    ):
        assert part in markdown
    assert "(percent on the test split): convnet 98.7" in markdown
    choosing = report.write(tmp_path / "choosing", results(rows) | {"evaluated_on": "validation"})
    assert "(percent on the validation split): convnet 98.7" in choosing
    bare = report.write(tmp_path / "bare", results(rows) | {"whole_data": {}, "comparisons": [], "agreement": {}})
    assert "whole training split" not in bare and "Paired" not in bare and "meta ratio" not in bare


def test_a_training_that_diverged_is_told_and_costs_no_other_number(rows, tmp_path):
    """vgg11 came to nothing once on dm's first set: what it enters says so, what it does not enter stays."""
    before = report.table_lines(rows)[2].split(" | ")
    first = next(row for row in rows if row["set"] == "dm" and row["network"] == "vgg11")
    first["accuracies"] = [float("nan"), 0.4]
    after = report.table_lines(rows)[2].split(" | ")
    assert after == [
        *before[:2],
        "diverged (1 of 4 trainings)",
        before[3],
        "**diverged (1 of 4 trainings)**",
        *before[5:],
    ]
    compared = report.compare(rows, "dm", "dm+metadd")
    assert compared["by_role"]["seen"] == {"diverged": "1 of 8 trainings"}
    assert compared["by_role"]["unseen"]["difference"] == pytest.approx(0.1)
    assert "| seen | none: 1 of 8 trainings diverged |" in "\n".join(report.comparison_lines(compared))
    assert not any("| dm | seen" in line for line in report.spread_lines(rows))
    markdown = report.write(tmp_path, {**results(rows), "rows": rows, "comparisons": [compared]})
    assert "diverged" in markdown and "nan" not in markdown
    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [None, 0.4] in [row["accuracies"] for row in stored["rows"]]
    assert report.markdown(report.read(tmp_path)) == markdown


def test_results_are_read_back_only_as_they_were_written(rows, tmp_path):
    written = report.write(tmp_path, results(rows))
    kept = report.read(tmp_path)
    assert kept["rows"] == rows and report.markdown(kept) == written == (tmp_path / "results.md").read_text()
    file = tmp_path / "results.json"
    text = file.read_text()
    for damaged in (text.replace("0.", "1.", 1), text[:-9], "[]", "", "{}"):
        file.write_text(damaged)
        assert report.read(tmp_path) is None
    file.unlink()
    assert report.read(tmp_path) is None
