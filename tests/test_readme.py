"""The README's example runs as it stands, and with the lines edited that it invites to edit."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "edit", ["as it stands", pytest.param("another network, without MetaDD", marks=pytest.mark.slow)]
)
def test_the_example(edit, cache, monkeypatch):
    monkeypatch.setenv("METADD_CACHE", str(cache))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "another network" in edit:
        code, edits = re.subn('network = "[^"]*"', 'network = "lenet"', code)
        assert edits == 1
    if "without MetaDD" in edit:
        code = "\n".join(line for line in code.splitlines() if "drop this line" not in line)
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["synthetic"].images.shape == (10, 28, 28, 1)
    assert int(found["state"].step) == 3
    assert all(0 <= value <= 1 for value in found["rows"][0].accuracies)
    assert ("loss_base" in found["metrics"]) == (edit == "as it stands")
