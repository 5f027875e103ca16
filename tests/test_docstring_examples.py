"""What stands under "Example:" in a docstring gives what it shows; lines of code in the running text are sketches."""

import doctest
import importlib
import pkgutil

import pytest

import metadd_jax


def examples():
    for info in pkgutil.walk_packages(metadd_jax.__path__, "metadd_jax."):
        if "._" not in info.name:
            module = importlib.import_module(info.name)
            for test in doctest.DocTestFinder().find(module, info.name):
                if "Example:\n" in (test.docstring or ""):
                    yield pytest.param(test, id=test.name.removeprefix("metadd_jax."))


FOUND = list(examples())


def test_they_are_found():
    assert {"split.split_maps", "evaluation.statistics.holm", "zoo.registry.create"} <= {one.id for one in FOUND}


@pytest.mark.parametrize("example", FOUND)
def test_it_gives_what_it_shows(example):
    said = []
    assert example.examples
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)
