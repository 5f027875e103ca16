"""The house rules, read from the sources: imports go downwards, jit and Orbax have one address each."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "metadd_jax"
# The design's floors: who is higher may import who is lower.
FLOORS = {
    "structs": 0, "files": 0, "keys": 0, "provenance": 0, "ranges": 0, "registries": 0, "cores": 0,
    "eager": 0,
    "zoo": 1, "data": 1, "augment": 1, "dc_augment": 1, "transforms": 1, "parallel": 1, "parts": 1, "storage": 1,
    "features": 2, "split": 2, "exchange": 2, "training": 2,
    "invariant": 3, "generators": 3,
    "distillers": 4,
    "evaluation": 5, "pictures": 5,
    "job": 6,
    "cli": 7,
}  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400
FACE = FLOORS["evaluation"]  # the highest room that metadd_jax/__init__.py imports


def tree_of(path):
    return ast.parse(path.read_text(), filename=str(path))


def imports(path):
    """Every imported module of a file as a dotted name; ``from a import b`` gives "a.b"."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno} imports relatively"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_no_two_files_need_each_other():
    """Imports within functions and for types count too: a circle is one, however it is hidden."""
    scripts = sorted((ROOT / "experiments").rglob("*.py"))
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    files |= {
        path.stem: path for path in scripts if path.parent.name != "experiments"
    }  # they are imported by their names

    def behind(name):
        """The file of a module, or of the module that ``from module import name`` reads."""
        place = next((place for place in (name, name.rpartition(".")[0]) if place in files), None)
        return {files[place]} if place else set()

    needs = {path: set().union(*map(behind, imports(path))) - {path} for path in [*SOURCES, *scripts]}
    assert sum(map(len, needs.values())) > len(needs)
    graphlib.TopologicalSorter(needs).prepare()  # a CycleError names the files


def test_every_room_has_a_floor():
    assert {room_of(path) for path in SOURCES} - {"__init__"} == set(FLOORS)


def test_the_guide_has_the_floors():
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    told = {room.rstrip("/"): int(floor) for floor, rooms in rows for room in re.findall(r"`([^`]+)`", rooms)}
    assert told == FLOORS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_strictly_downwards(path):
    room = room_of(path)
    if room == "__init__":
        shown = {parts[1] for name in imports(path) if len(parts := name.split(".")) > 1}
        assert max(FLOORS[name] for name in shown) == FACE
        return
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "experiments", f"{path} imports the scripts"
        if parts[0] != "metadd_jax":
            continue
        if name == "metadd_jax":  # the package's face: for those who stand above all that it shows
            assert FLOORS[room] > FACE, f"{path} imports {name}, which imports {room}"
            continue
        assert len(parts) > 1 and parts[1] in FLOORS, f"{path} imports {name}, which has no floor"
        assert parts[1] == room or FLOORS[parts[1]] < FLOORS[room], f"{path} imports {name} upwards"


def uses(path, *names):
    """Lines where ``jax.NAME`` is spoken of or NAME is imported from jax or called bare."""
    found = []
    for node in ast.walk(tree_of(path)):
        attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax"
        bare = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
        imported = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax"
        named = imported and {alias.name for alias in node.names} & set(names)
        if (attribute and node.attr in names) or bare or named:
            found.append(node.lineno)
    return found


def test_jit_and_pmap_have_one_address_each():
    compilers = ("jit", "pmap", "shard_map", "distributed")
    speakers = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if uses(path, *compilers)}
    assert speakers == {"parallel.py", "eager.py"}
    assert {path.name for path in SOURCES if uses(path, *compilers[1:])} == {"parallel.py"}


def test_orbax_is_imported_in_one_file_only():
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if any(name.split(".")[0] == "orbax" for name in imports(path))
    }
    assert importers == {"storage/checkpoint.py"}


def test_no_file_is_too_long():
    everything = [*SOURCES, *(ROOT / "experiments").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in everything}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_two_files_of_tests_share_a_name():
    """pytest imports each under its bare name and leaves the second out, as an error that one has to notice."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in ("conftest.py", "__init__.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_the_readers_of_this_file_see_what_they_should(tmp_path):
    """The checks above are blind if their tools are: a file that breaks every rule is caught."""
    bad = tmp_path / "bad.py"
    bad.write_text("import jax\nfrom jax import pmap\nimport orbax.checkpoint as o\nx = jax.jit(len)\ny = jit(x)\n")
    assert imports(bad) == ["jax", "jax.pmap", "orbax.checkpoint"]
    assert sorted(uses(bad, "jit", "pmap")) == [2, 4, 5]
