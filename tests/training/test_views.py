"""The words of a recipe choose DSA's scheme or DC's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import augment, dc_augment
from metadd_jax.training import recipes, views

DIGITS = "color_crop_cutout_scale_rotate"


def test_the_words_of_a_recipe_choose_the_scheme():
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    key, op_key = jax.random.key(3), jax.random.key(4)
    as_dsa = augment.transform(key, images, augment.strategy(DIGITS), siamese=False, op_key=op_key)
    np.testing.assert_array_equal(views.augmentation(DIGITS)(key, op_key, images, None), as_dsa)
    as_dc = jax.jit(lambda x: dc_augment.augment_each(key, x, ("crop", "noise")))(images)
    by_words = jax.jit(lambda x: views.augmentation("dc_crop_noise")(key, op_key, x, None))(images)
    np.testing.assert_array_equal(by_words, as_dc)
    with pytest.raises(ValueError, match=r"'flip' in 'dc_flip'; after 'dc_' use crop, scale, rotate, noise"):
        views.augmentation("dc_flip")
    with pytest.raises(ValueError, match="unknown augmentation 'dc'"):  # no scheme for Siamese matching
        augment.strategy("dc_crop")


def test_a_strategy_serves_as_words_do(key):
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    strategy = dataclasses.replace(augment.strategy("flip"), flip_probability=1.0)
    np.testing.assert_array_equal(views.augmentation(strategy)(key, key, images, None), images[:, :, ::-1])
    assert recipes.Recipe(epochs=1, augmentation=strategy).augmentation == strategy
    facts = json.loads(json.dumps(views.facts(strategy)))
    assert facts == json.loads(json.dumps(dataclasses.asdict(strategy) | {"own": {}}))
    assert views.facts(strategy) != views.facts(augment.strategy("flip"))
    for wrong in (recipes.Recipe(epochs=1), 3):
        with pytest.raises(ValueError, match="augmentation"):
            recipes.Recipe(epochs=1, augmentation=wrong)


def test_recipes_of_one_word_are_equal_only_while_its_op_is_the_same(monkeypatch):
    monkeypatch.setattr(augment, "_OWN", {})

    def recipe(text, word="flip_mine"):
        space = {"__name__": "my_ops"}
        exec(f"SIZE = 2\ndef op(key, images, siamese):\n    return {text}", space)
        augment.register("mine", space["op"])
        return recipes.Recipe(epochs=1, augmentation=word)

    first, again, other = recipe("SIZE * images"), recipe("SIZE * images"), recipe("SIZE + images")
    assert len({first, again, other}) == 3  # functions are equal to themselves alone
    assert recipes.facts(first) == recipes.facts(again) != recipes.facts(other)
    assert recipe("images", "dc_crop").augmentation == "dc_crop"
    assert recipe("images", "flip").augmentation == "flip"


def test_idcs_scheme_always_mirrors_and_gives_each_image_one_of_the_others(key):
    """Images of one bright pixel: the crop moves it by whole pixels, the scale spreads it, the mirror turns sides."""
    images = np.zeros((200, 9, 9, 1), np.float32)
    images[:, 4, 2] = 1.0  # left of the centre
    seen = np.asarray(views.augmentation("idc_flip_crop_scale")(key, key, jnp.asarray(images), None))[..., 0]
    whole = (seen == 0).sum((1, 2)) == 80  # one pixel is left: a crop, or a scale that moved nothing
    assert 70 < whole.sum() < 130  # 100 expected; outside by chance in one of 30,000 draws
    sides = np.einsum("nyx,x->n", seen, np.arange(9) - 4.0)
    assert 60 < (sides > 0).sum() < 140 and 60 < (sides < 0).sum() < 140
    with pytest.raises(ValueError, match=r"unknown augmentation 'sparkle'"):
        recipes.Recipe(epochs=1, augmentation="idc_sparkle")
