"""The words of a recipe choose DSA's scheme or DC's."""

import jax
import numpy as np
import pytest

from metadd_jax import augment, dc_augment
from metadd_jax.training import views

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
