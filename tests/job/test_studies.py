"""What a study is, and the files that hold one."""

import dataclasses

import pytest

from metadd_jax import provenance
from metadd_jax.invariant import CONTROLS
from metadd_jax.job import cells, prepare, studies


def test_a_file_holds_a_study(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'preset = "smoke"\nseeds = 4\nreferences = ["dm"]\n[rows]\nrandom = "random"\ndm = "--no-wrapped"\n'
    )
    mine = studies.get(str(file))
    assert (mine.name, mine.seeds, mine.references, mine.preset) == ("mine", 4, ("dm",), "smoke")
    assert mine.real("random") == "random" and mine.real("dm") is None
    assert mine.words("random") == ["smoke"] and mine.words("dm") == ["smoke", "--no-wrapped"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows = 3", "rows of .* is 3; docs/studies.md shows"),
        ("sedes = 3", "says 'sedes'.*did you mean 'seeds'"),
        ("seeds = 3", "has no \\[rows\\]"),
        ("[rows]\nx = 3", "rows of .* shows what stands there"),
        ("[rows]\nx = ", "is no TOML file"),
        ('references = ["y"]\n[rows]\nx = ""', "has no row 'y'.*use 'x'"),
        ("[rows]", "has no rows"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        studies.get(str(file))


def test_an_unknown_study_is_one_line():
    with pytest.raises(ValueError, match=r"unknown study 'competitor'.*did you mean 'competitors'"):
        studies.get("competitor")
    with pytest.raises(ValueError, match=r"cannot read the study .*gone.toml \(No such file"):
        studies.get("gone.toml")


@pytest.mark.parametrize("name", studies.STUDIES)
def test_the_studies_of_the_package_can_be_read(name):
    found = studies.configs(studies.STUDIES[name], [])
    assert list(found) == list(studies.STUDIES[name].rows)


# The digits have no 5,000 images to spare.
CHOOSING = [name for name, one in studies.STUDIES.items() if one.split == "validation" and one.preset == "cifar10_cpu"]


def test_settings_are_chosen_on_5000_held_out_images_and_seeds_that_measure_nothing():
    assert set(CHOOSING) >= {"factorial", "strength", "auxiliaries", "threshold", "layers", "controls", "schedule"}
    for name in CHOOSING:
        chosen = studies.STUDIES[name]
        row = next(reversed(chosen.rows))
        one = dataclasses.replace(chosen, rows={row: chosen.rows[row]}, references=(), against={})
        config = studies.configs(one, [])[row]
        assert (config.evaluate_on, config.first_seed, config.own.start) == ("validation", 100, "kmeans")
        # 1,500 of a class, of which a third is set aside: 1,000 train and 500 judge.
        assert (config.train_per_class, int(config.validation_fraction * 1500 + 0.5)) == (1500, 500)
        # No row says otherwise.
        said = {word for other in chosen.rows for word in chosen.words(other)}
        assert not said & {"--first-seed=0", "test", "random"} and "--init" in said
        measured = studies.configs(dataclasses.replace(one, split="test"), [])[row]
        assert (measured.evaluate_on, measured.first_seed) == ("test", 0)


def test_a_split_that_is_none_is_refused():
    with pytest.raises(ValueError, match="split='train' must be one of test, validation"):
        dataclasses.replace(studies.STUDIES["soft"], split="train")


def test_a_row_is_compared_with_its_own_base_alone():
    mine = studies.Study(
        name="mine", about="x", rows=dict.fromkeys(("a", "b", "c", "d", "e"), ""), references=("a",), against={"d": "c"}
    )
    assert mine.compared() == {"a": ["b", "e"]}
    with pytest.raises(ValueError, match="mine has no row 'x'"):
        dataclasses.replace(mine, against={"d": "x"})


def test_every_control_stands_alone_and_in_the_place_of_the_map_terms():
    rows = studies.STUDIES["controls"].rows
    assert {f"{name} alone" for name in CONTROLS} <= set(rows)
    beside = " ".join(text for name, text in rows.items() if name.startswith("CE + "))
    assert all(f"{name}=" in beside for name in CONTROLS if name != "ce")  # CE + CE is CE


def test_the_files_of_studies_decide_no_cell(monkeypatch):
    """So that a new study, or a new column of the table, makes no cell anew."""
    seen = []
    monkeypatch.setattr(provenance, "sources", lambda *places: seen.extend(places) or "x")
    usual = prepare.DistillConfig()
    dataset = prepare.load_data(usual)
    cells.Cell("row", None, usual).decides(dataset)
    files = {place for place in seen if place.startswith("job/")}
    assert files == set(cells._JOB)
    apart = dataclasses.replace(usual, seen_data="unused")
    cells.Cell("row", None, apart).decides(dataset)
    assert {place for place in seen if place.startswith("job/")} - files == {"job/seen_data.py"}


def test_a_row_of_a_consensus_says_which_networks_were_asked():
    one = studies.Study(
        name="one", about="Real images.", rows={"all": "consensus --no-wrapped", "dm": "--no-wrapped", "k": "kmeans"}
    )
    assert [one.real(row) for row in one.rows] == ["consensus", None, "kmeans"]
    found = studies.configs(one, [])
    assert (found["all"].own.start, found["all"].looks) == ("consensus", True)
    assert (found["dm"].own.start, found["dm"].looks) == ("random", False)


def test_a_set_without_a_loss_is_the_same_one_whatever_loss_its_study_is_about():
    held_out = dataclasses.replace(studies.STUDIES["default"], split="validation")
    bare, other = (studies.configs(study, [])["DM"] for study in (held_out, studies.STUDIES["factorial"]))
    assert cells.Cell("DM", None, bare).settings == cells.Cell("DM", None, other).settings
    wrapped = [
        studies.configs(study, [])[row]
        for study, row in ((held_out, "DM + MetaDD"), (studies.STUDIES["factorial"], "CE"))
    ]
    assert wrapped[0].metadd != wrapped[1].metadd
