"""What CONTRIBUTING.md, the hooks and the requirements say of each other and of the code."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CHECKS = (ROOT / ".ci" / "run").read_text()


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    return {line for line in lines if line and not line.startswith(("#", "-e"))}


def test_files_that_the_guide_names_are_there():
    named = set(re.findall(r"`([a-z_.]+(?:/[a-z_.]+)+)`", GUIDE))
    assert len(named) > 10
    absent = {name for name in named if not (ROOT / name).exists() and not (ROOT / "metadd_jax" / name).exists()}
    assert absent == set()
    links = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert links and [link for link in links if not (ROOT / link).is_file()] == []


def test_requirements_are_those_of_the_project():
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    assert requirements("requirements-test.txt") == {*extras["test"], *extras["docs"]}
    base, command = set(project["dependencies"]), set(extras["experiments"])
    assert base - {"numpy>=1.26"} | command == requirements("requirements.txt") and not base & command


def test_hooks_and_workflow_run_what_ci_runs():
    hooks = re.findall(r"entry: (ruff \w+|mypy)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == ["ruff format", "ruff check", "mypy"]
    assert [hook for hook in hooks if f"\n{hook} " not in CHECKS] == []
    assert "- run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_type_check_leaves_no_part_of_the_package_out():
    assert PROJECT["tool"]["mypy"]["files"] == ["metadd_jax"] and "exclude" not in PROJECT["tool"]["mypy"]
    for override in PROJECT["tool"]["mypy"]["overrides"]:
        assert not any(module.startswith("metadd_jax") for module in override["module"])
    sources = {path: path.read_text() for path in (ROOT / "metadd_jax").rglob("*.py")}
    ignores = [line for text in sources.values() for line in text.splitlines() if "type: ignore" in line]
    assert [line for line in ignores if not re.search(r"# type: ignore\[[a-z-]+\]  # \w+", line)] == []
