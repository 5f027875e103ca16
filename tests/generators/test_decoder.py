"""The small decoder: its formula in NumPy, shapes of any size, an untrained one that has contrast."""

import jax
import numpy as np
import pytest

from metadd_jax.generators import Decoder


def correlate(x, kernel, bias):
    """3 x 3 cross-correlation of one image, zeros around."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
    return sum(windows) + bias


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def test_an_image_equals_the_formula_in_numpy(key):
    decoder = Decoder((8, 6, 2), 3, z_dim=5, w_dim=4, width=2)
    weights = jax.tree.map(np.float64, decoder.init(key))
    z, label = np.random.default_rng(0).normal(size=5), 1
    seen = np.concatenate([z / np.sqrt(np.mean(z**2)), np.eye(3)[label]])
    affine, parts = weights["mapping"]["affine"], weights["synthesis"]
    w = leaky(seen @ affine["kernel"] + affine["bias"])
    h = (w @ parts["start"]["kernel"] + parts["start"]["bias"]).reshape(1, 1, 8)
    for level, (rows, columns) in enumerate([(2, 2), (4, 3), (8, 6)], start=1):
        h = leaky(h).repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
        h = correlate(h, **parts[f"conv{level}"])
    image = correlate(leaky(h), **parts["image"])
    made = jax.jit(decoder.generate)(jax.tree.map(np.float32, weights), z[None].astype(np.float32), np.array([label]))
    np.testing.assert_allclose(made[0], image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 9, 3)])
def test_images_have_their_shape_and_an_untrained_decoder_has_contrast(key, shape):
    decoder = Decoder(shape, 10, width=4)
    z, weights, generate = jax.random.normal(key, (20, 64)), decoder.init(key), jax.jit(decoder.generate)
    images = generate(weights, z, np.arange(20) % 10)
    assert images.shape == (20, *shape)
    # Standardised pixels have variance 1; a tenth of it between codes is not grey.
    assert 0.1 < np.std(images, axis=0).mean() < 10
    np.testing.assert_allclose(images, generate(weights, 3 * z, np.arange(20) % 10), atol=1e-3)
    others = generate(weights, z, np.arange(1, 21) % 10)
    assert np.abs(images - others).mean() > 0.01


def test_what_a_decoder_cannot_be_is_refused():
    with pytest.raises(ValueError, match="width=0 must be a whole number, at least 1"):
        Decoder((8, 8, 1), 2, width=0)
