"""A decoder's styles in place of pixels: the three arms of weights, the start, what is counted, the samples."""

import jax
import numpy as np
import pytest
from test_autodecoder import dataset

from metadd_jax import distillers
from metadd_jax.generators import AutoDecoding, Decoder, Styles, dump, samples

SHAPE, LABELS = (4, 4, 1), np.array([0, 0, 1])
DECODER = Decoder(SHAPE, 2, z_dim=3, w_dim=5, width=1)
SHORT = AutoDecoding(images=20, epochs=2, batch_size=10)


def styles(**settings):
    return Styles(generator=DECODER, **{"training": SHORT, "fit_steps": 100} | settings)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    told = []
    cache = tmp_path_factory.mktemp("cache")
    made = styles(weights="trained").prepare(dataset(), cache, progress=lambda *words: told.append(words))
    return made, told


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_weights_are_random_trained_or_those_of_a_file(tmp_path, prepared):
    made, told = prepared
    random, trained = styles(weights="random"), styles(weights="trained")
    np.testing.assert_array_equal(flat(random.frozen), flat(trained.frozen))  # they stand in
    assert random.prepare(dataset(), tmp_path, progress=print) is random
    assert jax.tree.map(np.shape, made.frozen) == jax.tree.map(np.shape, random.frozen)
    assert np.abs(flat(made.frozen) - flat(random.frozen)).max() > 1e-3 and told[-1] == ("generator decoder1", 40, 40)
    assert (random.name, made.name) == ("decoder1_random", "decoder1_trained")
    assert made.facts["generator_explained"] == made.trained.explained and "generator_explained" not in random.facts
    pytest.importorskip("safetensors")
    dump(made.frozen, tmp_path / "own.safetensors")
    own = styles(weights=str(tmp_path / "own.safetensors"))
    np.testing.assert_array_equal(flat(own.frozen), flat(made.frozen))
    assert own.name == "decoder1_own"
    with pytest.raises(ValueError, match=r"lacks mapping/affine/bias \(4,\) of decoder1|of shape \(5,\), but that of"):
        Styles(generator=Decoder(SHAPE, 2, z_dim=3, w_dim=4, width=1), weights=str(tmp_path / "own.safetensors"))
    with pytest.raises(ValueError, match="is a pickle by its name"):
        styles(weights="stylegan3-r.pkl")


def test_the_start_shows_the_images_as_far_as_the_decoder_can(key):
    made = styles(weights="random", fit_steps=300)
    codes = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    decode = jax.jit(made.decode)
    images = jax.jit(DECODER.generate)(made.frozen, codes, LABELS)  # which it can show
    drawn = np.asarray(styles(weights="random", fit_steps=0).init(key, images, LABELS)["w"])
    shown = decode(made.init(key, images, LABELS), made.frozen)
    off = np.mean((decode({"w": drawn}, made.frozen) - images) ** 2)
    assert np.mean((shown - images) ** 2) < 0.02 * off
    z = jax.random.normal(key, (3, 3))
    np.testing.assert_allclose(drawn, DECODER.styles(made.frozen, z, LABELS), atol=1e-6)  # of each one's own class


def test_what_is_stored_are_styles_and_a_budget_may_be_filled_with_them():
    made = styles()
    facts = distillers.budget(made, {"w": np.zeros((4, 5), np.float32)}, np.array([0, 0, 1, 1]))
    assert (facts["stored_values"], facts["frozen_values"]) == (20, flat(made.frozen).size)
    assert made.images_for(2) == 2 and styles(fill=True).images_for(2) == 2 * 16 // 5


def test_samples_are_images_their_reconstructions_and_new_ones(key, prepared):
    (made, _), toy = prepared, dataset()
    images, labels = samples(key, made.trained, toy, each=2, new=3)
    assert images.shape == (14, *SHAPE)
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1])
    rows = np.asarray(made.trained.rows)
    first = int(np.flatnonzero(np.asarray(toy.train.labels)[rows] == 1)[0])
    pixels = np.asarray(toy.train.images, np.float64)[rows[first]] / 255
    np.testing.assert_allclose(images[2], (pixels - toy.train.mean) / toy.train.std, atol=1e-5)
    shown = jax.jit(DECODER.generate)(made.trained.weights, made.trained.codes[first : first + 1], np.array([1]))
    np.testing.assert_allclose(images[6], shown[0], atol=1e-5)
