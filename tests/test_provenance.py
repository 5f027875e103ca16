"""What decides a number: code as it was loaded, and the list of the package's own files, held against the imports."""

import importlib.util
import sys
import threading

import pytest
from test_floors import PACKAGE, imports

from metadd_jax import provenance, zoo

OWN = '''
import functools, logging
from flax import linen as nn
import jax, jax.numpy as jnp

LOG = logging.getLogger("own")
SCALE = 2.0
TABLE = {"a", "b", "c"}

def helper(x):
    return SCALE * jnp.tanh(x)

@jax.custom_jvp
def rounded(x):
    return helper(x)

@rounded.defjvp
def _(primals, tangents):
    return rounded(*primals), tangents[0]

@functools.partial(jax.jit, static_argnames="power")
def raised(x, power=3):
    return x ** power

def louder(by):
    def decorate(method):
        @functools.wraps(method)
        def wrapped(self, *args, **options):
            LOG.debug("called")
            return by * method(self, *args, **options)
        return wrapped
    return decorate

class Block(nn.Module):
    width: int = 4
    start: object = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

    @nn.compact
    @louder(1.5)
    def __call__(self, x):
        """A layer."""
        return jax.checkpoint(raised)(rounded(nn.Dense(self.width, kernel_init=self.start)(x)))

class Own(nn.Module):
    num_classes: int = 2

    @nn.compact
    def __call__(self, images, *, train):
        del train
        x = Block()(images.reshape(len(images), -1))  # flat
        return nn.Dense(self.num_classes)(x), {"embedding": x, "table": len(TABLE)}
'''


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Makes the network of a source file, as if a user had written it at another start."""

    def load(text):
        file = tmp_path / str(len(list(tmp_path.iterdir()))) / "own_network.py"
        file.parent.mkdir()
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("own_network", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own_network", module)
        spec.loader.exec_module(module)
        return module.Own()

    return load


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("len(images), -1)", "len(images), -1, order='F')"),  # the body itself
        ("Block()(", "Block(5)("),
        ("width: int = 4", "width: int = 5"),  # a class that it names
        ("variance_scaling(2.0", "variance_scaling(3.0"),  # what a library's function holds
        ("SCALE = 2.0", "SCALE = 3.0"),  # a value, two functions away
        ("tanh", "sin"),
        ("tangents[0]", "2 * tangents[0]"),  # a derivative rule
        ("x ** power", "x * power"),  # behind jit and checkpoint
        ("power=3", "power=4"),
        ("louder(1.5)", "louder(2.5)"),  # a decorator's argument
        ("by * method", "by + method"),  # a decorator's body, behind functools.wraps
        ('"b", "c"', '"b", "d"'),
    ],
)
def test_a_network_with_another_body_is_another_network(load, before, after):
    assert before in OWN
    assert provenance.code_of(load(OWN.replace(before, after))) != provenance.code_of(load(OWN))


def test_comments_docstrings_and_the_place_of_the_file_are_no_code(load):
    told = OWN.replace("# flat", "# one row an image").replace("A layer.", "Dense, tanh, cube.")
    assert told != OWN
    assert provenance.code_of(load(told)) == provenance.code_of(load(OWN))


def test_a_class_typed_at_a_prompt_has_a_key_too():
    def typed(text):
        space = {"__name__": "__main__"}
        exec(text, space)
        return provenance.code_of(space["Own"]())

    assert typed(OWN) == typed(OWN) != typed(OWN.replace("tanh", "sin"))


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(provenance.UnknownCodeError, match=r"a _thread\.lock tells nothing"):
        provenance.code_of({"guard": threading.Lock()})


def test_networks_of_the_zoo_differ_by_their_options():
    specs = ("convnet", "convnet:depth=2", "convnet:width=8", "convnet_bn", "lenet")
    nets = [zoo.parse(spec, 10, (32, 32, 3)) for spec in specs]
    assert len({provenance.code_of(net) for net in nets}) == len(specs)
    assert provenance.code_of(nets[0]) == provenance.code_of(zoo.parse("convnet", 10, (32, 32, 3)))


def test_sources_follow_code_and_not_comments(tmp_path, monkeypatch):
    def hashed(text):
        (tmp_path / "one.py").write_text(text)
        provenance.sources.cache_clear()
        return provenance.sources("one.py")

    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    first = hashed('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert hashed('"""Other."""\n# A word.\ndef f(x):\n    return x + 1\n') == first
    assert hashed("def f(x):\n    return x + 2\n") != first
    provenance.sources.cache_clear()


def reached(path, found):
    """The package's files that ``path`` imports, and what those import."""
    if path in found:
        return found
    found.add(path)
    for name in imports(path):
        parts = name.split(".")
        places = (
            [PACKAGE.joinpath(*parts[1:end]) for end in range(2, len(parts) + 1)] if parts[0] == "metadd_jax" else []
        )
        for place in places:
            if place.with_suffix(".py").is_file():
                reached(place.with_suffix(".py"), found)
    return found


def test_the_list_holds_every_file_that_training_runs():
    listed = {file for place in provenance.TRAINING for file in [PACKAGE / place, *(PACKAGE / place).rglob("*.py")]}
    starts = [
        *(PACKAGE / "zoo").rglob("*.py"),
        PACKAGE / "training" / "fitting.py",
        PACKAGE / "training" / "relabel.py",
    ]
    found = set()
    for start in starts:
        reached(start, found)
    # They read, write and refuse; no number comes from them.
    assert found - listed <= {PACKAGE / f"{name}.py" for name in ("files", "provenance", "ranges", "registries")}
    assert all((PACKAGE / place).exists() for place in provenance.TRAINING)


def test_the_training_of_generators_runs_no_other_file():
    listed = {
        file
        for place in (*provenance.TRAINING, "generators")
        for file in [PACKAGE / place, *(PACKAGE / place).rglob("*.py")]
    }
    found = reached(PACKAGE / "generators" / "glad.py", reached(PACKAGE / "generators" / "decoder.py", set()))
    assert PACKAGE / "generators" / "autodecoder.py" in found
    # They keep and refuse; no number comes from them.
    quiet = [PACKAGE / f"{name}.py" for name in ("files", "provenance", "ranges", "registries")]
    assert found - listed <= {*quiet, *(PACKAGE / "storage").rglob("*.py"), PACKAGE / "data" / "cache.py"}


def test_what_a_module_reaches_is_what_it_imports(tmp_path, monkeypatch):
    files = {
        "one.py": "from metadd_jax import two\nfrom metadd_jax.room import shown\nimport numpy\n",
        "two.py": "def f():\n    import metadd_jax.room.inner\n",
        "room/__init__.py": "from metadd_jax.room.shown_file import shown\n",
        "room/inner.py": "import metadd_jax\n",
        "room/shown_file.py": "shown = 1\n",
        "room/other.py": "",
        "__init__.py": "from metadd_jax.room import other\n",
    }
    package = tmp_path / "metadd_jax"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    provenance.reached.cache_clear()
    # Within functions too; the package's own face is none of what it is asked for.
    everything = ("one.py", "room/__init__.py", "room/inner.py", "room/shown_file.py", "two.py")
    assert provenance.reached("metadd_jax.one") == everything
    assert provenance.reached("metadd_jax.two", "numpy") == ("room/inner.py", "two.py")
    provenance.reached.cache_clear()


def test_a_method_reaches_its_own_code_and_not_that_of_another():
    found = provenance.reached("metadd_jax.distillers.distribution_matching")
    assert {"parts.py", "distillers/contract.py", "distillers/class_images.py"} <= set(found)
    assert not {"distillers/gradient_matching.py", "distillers/__init__.py", "job/stages.py"} & set(found)
