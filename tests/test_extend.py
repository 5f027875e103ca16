"""docs/extend.md: every example runs, the plugins through the door of the scripts, and none is longer than it says."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import augment, cli, data, distillers, exchange, invariant, keys, storage, zoo
from metadd_jax.data import catalog
from metadd_jax.data import registry as sets
from metadd_jax.distillers import parameterisations
from metadd_jax.distillers import registry as methods
from metadd_jax.invariant import terms
from metadd_jax.job import checks, distill
from metadd_jax.zoo import registry as networks

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extend.md").read_text()
LONGEST = 30


def sections():
    """{heading: (Python blocks, command lines)}; what stands before the first heading under ""."""
    found = {}
    for part in re.split(r"^## ", "\n" + PAGE, flags=re.MULTILINE):
        heading = part.partition("\n")[0] if found else ""
        code, commands = (re.findall(rf"```{kind}\n(.*?)```", part, re.DOTALL) for kind in ("python", "sh"))
        found[heading] = (code, commands)
    return found


SECTIONS = sections()
BLOCKS = {heading: code for heading, (code, _) in SECTIONS.items()}
PLUGINS = {
    block.split("\n")[0].removeprefix("# "): block for code in BLOCKS.values() for block in code if block[0] == "#"
}
COMMANDS = [line for _, texts in SECTIONS.values() for text in texts for line in text.strip().split("\n")]
IN_CODE = {heading: [block for block in code if block[0] != "#"] for heading, code in BLOCKS.items() if heading}


@pytest.fixture(autouse=True)
def registered():
    """What an example registers is gone after it."""
    tables = [augment._OWN, methods._METHODS, networks._OWN, sets._OWN, catalog.OWN, terms._OWN, terms.TERMS]
    tables.append(parameterisations._BUILDS)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The names that the page's first block defines."""
    space = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METADD_CACHE", str(tmp_path_factory.mktemp("cache")))
        exec(compile(BLOCKS[""][0], "extend.md", "exec"), space)
    return space


def run(heading, start):
    """The names after the examples of a section that are no plugins."""
    space = dict(start)
    for block in IN_CODE[heading]:
        exec(compile(block, f"extend.md, {heading}", "exec"), space)
    return space


@pytest.fixture
def plugin():
    """Runs a file of the page as ``--plugin`` does; gives its names."""

    def load(name):
        space = {"__name__": f"metadd_plugin_{pathlib.Path(name).stem}"}
        exec(compile(PLUGINS[name], name, "exec"), space)
        return space

    return load


def test_no_example_is_longer_than_it_says():
    blocks = [block for code in BLOCKS.values() for block in code]
    assert len(blocks) >= 7
    written = [[line for line in block.split("\n") if line.strip() and line[0] != "#"] for block in blocks]
    assert max(map(len, written)) <= LONGEST


def test_a_method(plugin, start):
    """Against NumPy, with classes of different sizes."""
    plugin("my_method.py")
    net, data = start["net"], start["dataset"]
    counts = (2, 1, *[1] * 8)
    method = distillers.get("moments").make(net, counts)
    synthetic, aux = method.init(jax.random.key(0), data)
    batch = method.sample(jax.random.key(1), data.train, jnp.zeros((), jnp.int32))
    loss, _ = jax.jit(method.loss)(jax.random.key(2), synthetic, aux, batch, ())
    theta = net.init(keys.named(jax.random.key(2), "network"))

    apply = jax.jit(net.apply)

    def moments(images):
        return np.square(apply(theta, images)[1]["embedding"]).mean(0)

    fake = np.split(np.asarray(synthetic["images"]), np.cumsum(counts)[:-1])
    pixels = [np.asarray(own)[weights > 0] for own, weights in zip(batch["images"], batch["weights"], strict=True)]
    real = [(own / 255.0 - np.asarray(data.train.mean)) / np.asarray(data.train.std) for own in pixels]
    assert len(real[0]) == 20
    gaps = [moments(t.astype(np.float32)) - moments(s) for t, s in zip(real, fake, strict=True)]
    np.testing.assert_allclose(loss, np.sum(np.square(gaps)), rtol=1e-4)


def test_a_term(plugin, start):
    plugin("my_terms.py")
    logits = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    seen = invariant.Seen(None, None, logits, None, (), None)
    belief = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(invariant.TERMS["doubt"].value(seen), -(belief * np.log(belief)).sum(-1), rtol=1e-4)
    space = run("A term", start)
    metrics = space["metrics"]
    parts = [metrics[f"weight_{name}"] * metrics[f"loss_{name}"] for name in ("ai", "contradiction")]
    np.testing.assert_allclose(metrics["loss"], metrics["loss_base"] + sum(parts), rtol=1e-5)
    assert min(parts) > 0


def test_a_network(plugin):
    plugin("my_networks.py")
    net = zoo.parse("blocks:width=4,norm=instance", 3, (12, 12, 1))
    assert net.map_shape == (3, 3, 8) and not net.has_batch_stats


def test_an_auxiliary_of_another_size(start):
    space = run("An auxiliary of another size", start)
    assert space["to_colour"](space["synthetic"].images).shape == (10, 32, 32, 3)
    assert space["auxiliary"].preprocess is space["to_colour"]
    assert np.isfinite(space["synthetic"].images).all() and np.isfinite(space["metrics"]["loss"])


def test_a_data_set(plugin):
    plugin("my_data.py")
    dataset = data.load("stripes", on_device=False)
    assert (dataset.image_shape, dataset.class_names) == ((16, 16, 1), ("upright", "level"))
    assert data.load("stripes", image_size=8).image_shape == (8, 8, 1)
    # Columns of an upright one differ, its rows do not, but for the noise.
    upright = dataset.train.images[dataset.train.labels == 0][..., 0].astype(float)
    assert upright.mean(1).std() > 3 * upright.mean(2).std()


def test_an_augmentation(plugin, start):
    plugin("my_augmentation.py")
    assert augment.strategy("crop_noise").own[0][0] == "noise"
    space = run("An augmentation", start)
    assert space["synthetic"].images.shape == (10, 28, 28, 1)
    assert space["recipe"].augmentation == space["config"].views == space["strategy"]


def test_an_optimiser(start):
    space = run("An optimiser", start)
    assert 0 <= space["trained"].accuracy <= 1
    assert np.isfinite(space["synthetic"].images).all()


def test_latents(plugin, start):
    space, side = plugin("my_latents.py"), 28
    made = parameterisations.parse("frequencies", start["dataset"])
    images = start["distil"](distillers.parameterise(start["base"], made), optax.sgd(1.0))[0].images
    waves = np.cos(np.pi * (np.arange(side) + 0.5) * np.arange(side)[:, None] / side)
    spectrum = np.abs(np.einsum("uh,vw,nhwc->nuvc", waves, waves, images))
    assert spectrum[:, :10, :10].max() > 1 and max(spectrum[:, 10:].max(), spectrum[:, :, 10:].max()) < 1e-3
    start_images = space["Frequencies"](side, side).init(None, images)
    np.testing.assert_allclose(jnp.linalg.norm(start_images), jnp.linalg.norm(images), rtol=1e-5)  # orthonormal


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder in which the page's files lie."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, text in PLUGINS.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[4])
def test_the_command_lines_are_understood(command, files, monkeypatch):
    monkeypatch.chdir(files)
    assert command.startswith("python experiments/distill.py smoke --plugin my_")
    config = distill._parsed(command.split()[2:], "distill.py")
    checks.check_options(config)


def test_plugins_through_the_door(files, tmp_path, monkeypatch, capsys):
    """A network, a data set, an augmentation, a term and a method at once."""
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)  # JAX's own is this process's
    folder = tmp_path / "run"
    command = [
        "distill", "smoke", *(word for name in PLUGINS for word in ("--plugin", str(files / name))),
        "--method", "moments", "--batch-size", "8", "--dataset", "stripes", "--augmentation", "crop_noise",
        "--backbone", "blocks:width=2,norm=instance", "--seen", "blocks:width=3", "--unseen",
        "--parameterisation", "frequencies:kept=6",
        "--metadd.views", "noise", "--metadd.pos", "0", "--metadd.var", "0", "--metadd.extra", "doubt", "0.1",
        "--steps", "2", "--chunk", "2", "--distill-seeds", "1", "--train-seeds", "1", "--eval-epochs", "1",
        "--pretrain-augmentation", "none", "--eval-augmentation", "none",
        "--cache-dir", str(tmp_path / "cache"), "--run-dir", str(folder),
    ]  # fmt: skip
    cli.run(command)
    results = json.loads((folder / "results.json").read_text())
    assert {(row["set"], row["network"]) for row in results["rows"]} >= {
        ("moments+frequencies", "blocks:width=3"),
        ("moments+frequencies+metadd", "blocks:width=2,norm=instance"),
    }
    synthetic, metadata = exchange.load_npz(folder / "moments+frequencies" / "seed0" / "synthetic.npz")
    assert synthetic.images.shape == (2, 16, 16, 1) and metadata["class_names"] == ["upright", "level"]
    assert exchange.load_latents(folder / "moments+frequencies" / "seed0" / "latents.npz")[0].shape == (2, 6, 6, 1)
    logged = [json.loads(line) for line in (folder / "moments+frequencies+metadd" / "seed0" / "metrics.jsonl").open()]
    assert logged[-1]["distill/weight_doubt"] > 0
    assert "| moments+frequencies+metadd |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        (
            "mdd.augment.register('half', lambda key, x, siamese: x[:, ::2])",
            "--augmentation half",
            ValueError,
            "'half'",
        ),
        ("mdd.invariant.register('flat', lambda seen: seen.logits)", "--metadd.extra flat 1", ValueError, "'flat'"),
        ("mdd.invariant.register('typo', lambda seen: seen.logit)", "--metadd.extra typo 1", AttributeError, "logit"),
    ],
)
def test_own_code_is_tried_before_anything_is_trained(text, options, error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)
    plugin = tmp_path / "own.py"
    plugin.write_text(f"import metadd_jax as mdd\n{text}\n")
    command = (
        f"smoke --plugin {plugin} {options} --backbone mlp:width=4 --seen convnet:width=2,depth=1 --unseen mlp:width=3 "
        f"--metadd.pos 0 --metadd.var 0 --train-per-class 9 --cache-dir {tmp_path} --run-dir {tmp_path / 'run'}"
    )
    with pytest.raises(error, match=words):
        distill.run(command.split())
    assert not (tmp_path / "networks").exists() or not list((tmp_path / "networks").iterdir())
    assert not (tmp_path / "run" / "config.json").exists()
