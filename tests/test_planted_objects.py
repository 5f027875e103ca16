"""Do the maps lie on what decides? Networks are trained on images whose class is a small patch at a known place.

The figure is the share of a map's mass that lies on the object (mean over images; a dead map counts as one that knows
nothing), beside two that say what it is worth: the same network's with random weights, and the object's share of the
area. docs/cams.md has the table and what it says; ``pytest tests/test_planted_objects.py -m slow`` prints it anew.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from metadd_jax import features, zoo
from metadd_jax.training import Recipe, fit

CLASSES, SIDE, OBJECT = 4, 32, 8  # sides in pixels
RECIPE = Recipe(epochs=4, batch_size=64, optimiser="adamw", learning_rate=2e-3, schedule="cosine")  # 256 steps
# Instance norm (their default) spreads what one place holds over the whole map.
INSTANCE = ("convnet:width=16", "vgg11:width=8", "resnet18:width=8")
OTHERS = (
    "convnet:width=16,norm=batch",
    "lenet",
    "alexnet:width=16",
    "vgg11:width=8,norm=batch",
    "resnet18:width=8,norm=batch",
    "resnet50:width=4,norm=batch",
    "googlenet:width=8,norm=batch",
    "googlenet:width=8",
    "swin_t:width=48,depths=2-2,patch=4",
)
VIT = "vit:width=48,depth=3"


@dataclasses.dataclass(frozen=True)
class Planted:
    """Images [N, SIDE, SIDE, 1], labels [N], and where the object is: [N, SIDE, SIDE] bool."""

    images: np.ndarray
    labels: np.ndarray
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracy on new images, and the share of map mass on the object."""

    method: str
    accuracy: float
    trained: float
    random: float
    area: float

    def __str__(self):
        shares = " | ".join(f"{share:.3f}" for share in (self.trained, self.random, self.area))
        return f"{self.method} | {self.accuracy:.3f} | {shares} |"


def planted(seed: int, count: int) -> Planted:
    """Noise of deviation 0.5 with one patch of stripes of +-2 at a random place; their direction is the class."""
    generator = np.random.default_rng(seed)
    images = generator.normal(scale=0.5, size=(count, SIDE, SIDE, 1)).astype(np.float32)
    labels = generator.integers(CLASSES, size=count)
    row, column = np.indices((OBJECT, OBJECT))
    stripes = [np.where(phase % 4 < 2, 2.0, -2.0) for phase in (row, column, row + column, row - column)]
    places = np.zeros((count, SIDE, SIDE), bool)
    for index, (top, left) in enumerate(generator.integers(SIDE - OBJECT + 1, size=(count, 2))):
        here = (index, slice(top, top + OBJECT), slice(left, left + OBJECT))
        images[(*here, 0)] += stripes[labels[index]]
        places[here] = True
    return Planted(images, labels, places)


def mass_share(maps: np.ndarray, places: np.ndarray) -> float:
    """Mean share of each map's mass within ``places``; the share of the area for a dead map."""
    total, on_object = maps.sum((1, 2)), (maps * places).sum((1, 2))
    return float(np.where(total > 0, on_object / np.maximum(total, 1e-12), places.mean((1, 2))).mean())


def configs(net: zoo.Architecture) -> dict[str, features.CamConfig]:
    """The ways to map this network; the default is among them."""
    if net.has_attention:
        return {method: features.CamConfig(transformer_method=method) for method in features.TRANSFORMER_METHODS}
    return {f"alpha {alpha}": features.CamConfig(alpha=alpha) for alpha in features.ALPHA}


def localisation(spec: str, seed: int = 0) -> list[Row]:
    """Trains one network and measures its maps, by every method that it knows."""
    net = zoo.parse(spec, CLASSES, (SIDE, SIDE, 1))
    train, test = planted(0, 4096), planted(1, 256)
    key = jax.random.key(seed)

    def run(key, images, labels):
        return fit(key, net, images, labels, RECIPE, shared_key=key)

    trained = jax.jit(run)(key, train.images, train.labels)
    untrained = net.init(jax.random.fold_in(key, 7))
    accuracy = float((jax.jit(net.apply)(trained, test.images)[0].argmax(1) == test.labels).mean())
    rows = []
    for method, config in configs(net).items():
        maps = jax.jit(functools.partial(features.activation_maps, net, config=config))
        shares = [
            mass_share(np.asarray(maps(weights, test.images, test.labels)), test.places)
            for weights in (trained, untrained)
        ]
        rows.append(Row(method, accuracy, *shares, float(test.places.mean())))
    return rows


def show(request, spec, rows):
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(f"| {spec} | {row}" for row in rows), flush=True)


@pytest.fixture(autouse=True)
def optimised():
    """Here the steps cost more than their compilation."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)  # as tests/conftest.py has it


def slow_but_the_first(specs: tuple[str, ...]) -> list:
    return [pytest.param(spec, marks=[pytest.mark.slow] * (spec != specs[0])) for spec in specs]


@pytest.mark.parametrize("spec", slow_but_the_first(OTHERS))
def test_the_map_lies_on_the_object_and_not_before_training(request, spec):
    rows = localisation(spec)
    show(request, spec, rows)
    row = next(row for row in rows if row.method == f"alpha {features.CamConfig().alpha}")
    assert row.accuracy > 0.7  # Swin's is 0.76, it learns slowly; all others are above 0.99
    # ResNet50 is the weakest: 1.4 times its random map. The others reach 1.7 to 3.8 times.
    assert row.trained > max(1.25 * row.random, 3 * row.area)


@pytest.mark.slow
def test_the_default_method_for_transformers_is_the_one_that_finds_the_object(request):
    shares = {}
    for seed in range(3):
        rows = localisation(VIT, seed)
        show(request, VIT, rows)
        for row in rows:
            shares.setdefault(row.method, []).append(row.trained)
    usual = features.CamConfig().transformer_method
    assert max(shares, key=lambda method: np.mean(shares[method])) == usual
    assert min(shares[usual]) > 5 * 0.0625  # in every seed, times the area of the object


@pytest.mark.slow
@pytest.mark.parametrize("spec", INSTANCE)
def test_instance_norm_blurs_the_map(request, spec):
    rows = localisation(spec)
    show(request, spec, rows)
    row = next(row for row in rows if row.method == f"alpha {features.CamConfig().alpha}")
    assert row.accuracy > 0.9
    assert row.trained < 0.17  # half of what batch norm reaches
