"""A user's own file: what it registers has a name on the command line, and what is wrong with it is one line."""

import json
import sys

import pytest

from metadd_jax import data, files, zoo
from metadd_jax.job import errors, plugins, pretrain, runfolder
from metadd_jax.job.options import DistillConfig

NETWORK = """
import metadd_jax as mdd
from flax import linen as nn

class Line(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes)(x), {"embedding": x}

mdd.zoo.register("line_of_a_plugin", Line)
"""


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="own.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    yield write
    sys.modules.pop("metadd_plugin_own", None)


def test_a_network_of_a_plugin_has_a_name_on_the_command_line(plugin):
    for _ in range(2):  # a second start in the same process finds its own registered
        plugins.load(["--plugin", str(plugin(NETWORK))])
    net = zoo.parse("line_of_a_plugin:width=3", 10, (28, 28, 1))
    assert net.num_params() == 28 * 28 * 3 + 3 + 3 * 10 + 10


try:
    compile("\0", "own.py", "exec")
except (SyntaxError, ValueError) as error:  # the second in the first patches of Python 3.11, such as Debian's
    OF_NULL_BYTES = type(error).__name__


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nprint(y)\n", "own.py line 2: NameError: name 'y' is not defined"),
        ("x = 1\nif x\n", "own.py line 2: SyntaxError: expected ':'"),
        ("raise ValueError('so\\nnot')", "own.py line 1: ValueError: so not"),
        ("import sys\nsys.exit(3)\n", "own.py line 2: SystemExit: 3"),
        ("\0", f"own.py: {OF_NULL_BYTES}: source code string cannot contain null bytes"),
    ],
)
def test_a_plugin_that_fails_is_told_in_one_line_by_every_command(plugin, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    plugin(text)
    with pytest.raises(ValueError) as found:
        pretrain.run(["--plugin", "own.py"])
    assert str(found.value).endswith(said)
    assert "metadd_plugin_own" not in sys.modules


def test_what_fails_later_in_a_plugin_is_told_with_its_line(plugin):
    file = plugin('import metadd_jax as mdd\nmdd.data.register("broken_of_a_plugin",\n    lambda: {}["images"])\n')
    plugins.load(["--plugin", str(file)])
    with pytest.raises(KeyError) as found:
        data.load("broken_of_a_plugin")
    assert errors.in_one_line(found.value) == (
        f"KeyError: 'images' (at {file.parent.name}/own.py:3; METADD_TRACEBACK=1 shows the rest)"
    )


def test_a_plugin_that_is_not_there_and_two_of_one_name_are_refused(plugin, tmp_path):
    for name in ("none.py", "own.txt", ""):
        with pytest.raises(ValueError, match="there is no such Python file"):
            plugins.load([f"--plugin={tmp_path / name}"])
    one, two = plugin(NETWORK), plugin(NETWORK, "other/own.py")
    with pytest.raises(ValueError, match=r"two plugins are called own\.py"):
        plugins.load(["--plugin", str(one), "--plugin", str(two)])
    plugins.load(["--plugin", str(one), "--plugin", str(one)])
    with pytest.raises(ValueError, match=r"^Missing value for argument .--plugin"):
        pretrain.run(["--plugin", "--seed", "1"])


def test_a_run_goes_on_with_the_plugins_that_it_began_with(plugin, tmp_path):
    def inspect(file):
        runfolder.inspect(files.require_writable(tmp_path / "run"), DistillConfig(plugin=(str(file),)))

    first = plugin(NETWORK)
    folder = files.require_writable(tmp_path / "run")
    held = {"format": runfolder.FORMAT, "config": runfolder.plain(DistillConfig(plugin=(str(first),)))}
    (folder / "config.json").write_text(json.dumps(held))
    inspect(first)
    inspect(plugin(NETWORK, "moved/own.py"))  # the same text elsewhere
    with pytest.raises(ValueError, match=r"holds another run \(the plugin own\.py had another text\)"):
        inspect(plugin(NETWORK + "# more"))
    with pytest.raises(ValueError, match=r"\(its plugins were own\.py, now other\.py\)"):
        inspect(plugin(NETWORK + "# more", "other.py"))
