"""What a study is, and the files that hold one."""

import pytest

from metadd_jax.job import studies


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
