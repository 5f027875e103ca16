"""The public face: annotated, documented, keys first, defaults by keyword, light to import."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import metadd_jax
from metadd_jax import cli

HEAVY = (
    "tyro",
    "tensorflow_datasets",
    "tensorflow",
    "matplotlib",
    "sklearn",
    "torch",
    "PIL",
    "tqdm",
    "mlxtend",
)
EMPTY = inspect.Parameter.empty


def modules():
    found = pkgutil.walk_packages(metadd_jax.__path__, "metadd_jax.")
    return [importlib.import_module(info.name) for info in found if "._" not in info.name]


def public(kind):
    """What a module defines itself under a name without underscore."""
    return [
        pytest.param(member, id=f"{module.__name__.removeprefix('metadd_jax.')}.{name}")
        for module in modules()
        for name, member in vars(module).items()
        if kind(member) and not name.startswith("_") and member.__module__ == module.__name__
    ]


FUNCTIONS = public(inspect.isfunction)


def parameters(function):
    return list(inspect.signature(function).parameters.values())


def test_the_walk_finds_the_library():
    names = {parameter.id for parameter in FUNCTIONS}
    assert {
        "distillers.distribution_matching.dm",
        "zoo.registry.create",
        "training.fitting.fit",
        "augment.transform",
    } <= names


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_annotated_and_documented(function):
    assert inspect.getdoc(function), "no docstring"
    assert inspect.signature(function).return_annotation is not EMPTY, "no return type"
    bare = [p.name for p in parameters(function) if p.annotation is EMPTY]
    assert not bare, f"parameters without a type: {bare}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_key_comes_first(function):
    positions = [i for i, p in enumerate(parameters(function)) if p.name == "key"]
    assert positions in ([], [0])
    assert not [p.name for p in parameters(function) if p.name in ("rng", "prng_key", "seed_key")]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_defaults_are_given_by_keyword(function):
    by_position = [p.name for p in parameters(function) if p.default is not EMPTY and p.kind is not p.KEYWORD_ONLY]
    assert not by_position


@pytest.mark.parametrize("cls", public(inspect.isclass))
def test_classes_and_their_methods_are_documented(cls):
    assert cls.__doc__
    methods = [
        name
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and not name.startswith("_") and member.__module__ == cls.__module__
    ]
    assert not [name for name in methods if not inspect.getdoc(getattr(cls, name)) and name != "replace"]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_what_is_exported_is_there_and_sorted(module):
    exported = getattr(module, "__all__", [])
    assert all(hasattr(module, name) for name in exported)
    assert len(set(exported)) == len(exported)


def test_the_import_stays_light():
    commands = ", ".join(f"metadd_jax.job.{name}" for name in cli.COMMANDS)  # and what a command needs to be read
    code = f"import sys, metadd_jax.cli, {commands}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_function_hides_its_module():
    """``from metadd_jax import training; training.fit`` is one thing: a module has the name of nothing in it."""
    promised = {"metadd_jax.split.split"}  # the contract's
    hidden = {
        f"{module.__name__}.{name}"
        for module in modules()
        for name in [module.__name__.split(".")[-1]]
        if callable(vars(module).get(name))
    }
    assert hidden == promised
