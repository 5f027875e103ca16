"""Every argument that takes a word refuses an unknown one and names those it knows: no last ``else`` takes it in."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from metadd_jax import augment, dc_augment, distillers, exchange, features, invariant, parallel, training, zoo
from metadd_jax.data import decoding, sampling, splits
from metadd_jax.distillers import class_images, conflict, distances, starts
from metadd_jax.evaluation import report
from metadd_jax.structs import SyntheticSet
from metadd_jax.training import recipes
from metadd_jax.zoo import layers, norms

IMAGES = jnp.ones((2, 4, 4, 4))
NET = zoo.parse("convnet:width=4,depth=1", 3, (8, 8, 1))
ROWS = [{"set": "dm", "distill_seed": 0, "network": "lenet", "role": "same", "accuracies": [0.5]}]
UNREAD = types.SimpleNamespace(start=None, image_shape=(8, 8, 1), num_classes=3)
METADATA = {"mean": [0.5], "std": [0.2], "class_names": ["a"]}


def positivity(kind):
    return invariant.positivity(jnp.ones((2, 2, 4, 4)), jnp.ones((2, 2, 3)), jnp.zeros(2, int), kind=kind)


def value_space(word, file):
    synthetic = SyntheticSet(np.zeros((1, 8, 8, 1), np.float32), np.zeros(1, np.int32))
    exchange.export_npz(file, synthetic, METADATA | {"value_space": word})


TAKERS = {
    "positivity": (positivity, invariant.POSITIVITY),
    "InvariantConfig.positivity": (lambda w: invariant.InvariantConfig(positivity=w), invariant.POSITIVITY),
    "InvariantConfig.weighting": (lambda w: invariant.InvariantConfig(weighting=w), invariant.WEIGHTING),
    "InvariantConfig.project": (lambda w: invariant.InvariantConfig(project=w), invariant.PROJECT),
    "InvariantConfig.focus_mask": (lambda w: invariant.InvariantConfig(focus_mask=w), invariant.FOCUS_MASKS),
    "focus_weights": (lambda w: invariant.focus_weights(jnp.ones((2, 2, 4, 4)), focus=1.0, mask=w), ("hard", "soft")),
    "without_conflict": (lambda w: conflict.without_conflict(IMAGES, IMAGES, by=w), ("set", "image")),
    "CamConfig.alpha": (lambda w: features.CamConfig(alpha=w), features.ALPHA),
    "CamConfig.transformer_method": (
        lambda w: features.CamConfig(transformer_method=w),
        features.TRANSFORMER_METHODS,
    ),
    "CamConfig.low_confidence": (lambda w: features.CamConfig(low_confidence=w), features.LOW_CONFIDENCE),
    "pooling": (lambda w: layers.pool(IMAGES, w), layers.POOLINGS),
    "norm": (lambda w: norms.norm(IMAGES, w, train=False, name="norm"), norms.NORMS),
    "FeatureNorm": (norms.FeatureNorm, ("instance", "layer", "group")),
    **{
        f"zoo {option}": (lambda w, option=option: zoo.create("convnet", 3, (8, 8, 1), **{option: w}), words)
        for option, words in (
            ("norm", norms.NORMS),
            ("pooling", layers.POOLINGS),
            ("activation", tuple(layers.ACTIVATIONS)),
            ("compute", ("float32", "bfloat16")),
        )
    },
    "zoo geometry": (lambda w: zoo.create("resnet18", 3, (8, 8, 3), geometry=w), ("small", "imagenet")),
    "Architecture.geometry": (lambda w: dataclasses.replace(NET, geometry=w), ("small", "imagenet")),
    "Architecture.compute": (lambda w: dataclasses.replace(NET, compute=w), ("float32", "bfloat16")),
    "dm init": (lambda w: distillers.dm(NET, ipc=1, init=w), starts.INITS),
    "initial": (
        lambda w: class_images.initial(jax.random.key(0), UNREAD, NET, counts=(1, 1, 1), init=w),
        starts.DRAWN,
    ),
    "short_class": (lambda w: sampling.images_per_class(None, 1, short_class=w), sampling.SHORT_CLASS),
    "dc distance": (lambda w: distillers.dc(NET, ipc=1, distance=w), distances.DISTANCES),
    "dsa batch_norm": (lambda w: distillers.dsa(NET, ipc=1, batch_norm=w), ("improved", "published")),
    "distance": (lambda w: distances.gradient_distance({}, {}, kind=w), distances.DISTANCES),
    "tesla variant": (
        lambda w: distillers.tesla(
            NET, np.zeros((1, 2, 3)), ipc=1, syn_steps=1, expert_epochs=1, max_start_epoch=1, variant=w
        ),
        ("paper", "code"),
    ),
    **{
        f"Recipe.{field}": (lambda w, field=field: training.Recipe(epochs=1, **{field: w}), words)
        for field, words in (
            ("optimiser", recipes.OPTIMISERS),
            ("schedule", recipes.SCHEDULES),
            ("crop", recipes.CROPS),
            ("mix", recipes.MIXES),
            ("augmentation", tuple(augment.TOKENS)),
        )
    },
    "sre2l squeeze": (recipes.sre2l_squeeze, ("cifar", "tiny")),
    "sre2l evaluation": (recipes.sre2l_evaluation, ("cifar", "tiny", "imagenet")),
    "augmentation": (augment.strategy, tuple(augment.TOKENS)),
    "augmentation mode": (lambda w: augment.strategy("flip", mode=w), ("S", "M")),
    "views": (lambda w: recipes.Recipe(epochs=1, augmentation=f"dc_{w}"), tuple(dc_augment.TOKENS)),
    "device mode": (parallel.choose_mode, parallel.MODES),
    "split": (lambda w: splits.split_of(None, w), splits.SPLITS),
    "picture mode": (lambda w: decoding.to_array(PIL.Image.new("RGB", (4, 4)), w, 0), decoding.MODES),
    "role": (lambda w: report.accuracies(ROWS, "dm", roles=(w,)), report.ROLES),
    "set": (lambda w: report.accuracies(ROWS, w), ("dm",)),
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("word", ["jacard", ""])
def test_an_unknown_word_is_refused_by_name(name, word):
    take, known = TAKERS[name]
    if word == "" and "ugmentation" in name:
        return  # no tokens: no augmentation
    with pytest.raises(ValueError, match=word or None) as caught:
        take(word)
    for good in known:
        assert good in str(caught.value), (name, good)
    assert "\n" not in str(caught.value)


def test_an_unknown_value_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is 'standardized'; it must be standardised or zca"):
        value_space("standardized", tmp_path / "set.npz")
    assert not list(tmp_path.iterdir())


def test_weights_of_other_terms_are_refused():
    config = invariant.InvariantConfig(pos=0.1)
    for weights in ({"ai": 1.0}, {"ai": 1.0, "pos": 1.0, "var": 1.0}, {"ai": 1.0, "positivity": 1.0}):
        with pytest.raises(ValueError, match="the terms in use are ai, pos"):
            invariant.invariant_loss(
                jax.random.key(0),
                jnp.ones((2, 8, 8, 1)),
                jnp.zeros(2, int),
                [None, None],
                config=config,
                weights=weights,
            )
