"""GLaD-style latents: their start, their decoder in NumPy's words, their gradient, what is stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, distillers, generators
from metadd_jax.generators import Generator, glad

TINY = Generator(resolution=8, layers=3, channel_base=16, channel_max=2, w_dim=3, z_dim=3, channels=1)
VARIABLES = TINY.init(jax.random.key(0))
apply = jax.jit(TINY.synthesis.apply, static_argnames=("n", "method"))


@pytest.fixture(scope="module")
def tiny():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 8, 6, 1)).astype(np.uint8), np.repeat([0, 1, 2], 8)
    return data.from_arrays("tiny", images, labels, images[:6], labels[:6])


def start(prior, labels, key=0):
    return prior.init(jax.random.key(key), np.zeros((len(labels), 8, 6, 1)), np.array(labels))


def decoded(prior, latents):
    return jax.jit(prior.decode)(latents, prior.frozen)


def images_of(prior, latents):
    """Both halves by hand: [-1, 1] to [0, 1], the middle 6 of 8 columns, then the data's constants."""
    w = np.concatenate([np.full((len(latents["w"]), prior.layer + 1, 3), 7.0, np.float32), latents["w"]], axis=1)
    made = apply(VARIABLES["synthesis"], latents["f"], w, n=prior.layer, method="from_layer")
    return (np.asarray(made)[:, :, 1:7] + 1) / 2


@pytest.mark.parametrize("layer", [0, 3])
def test_images_are_the_upper_half_of_the_generator(layer, tiny):
    prior = generators.stylegan(TINY, VARIABLES, tiny, layer=layer)
    latents = start(prior, [0, 0, 1, 1])
    level = [28, 28, 28, 8][layer]  # behind the input, and behind each layer
    assert (latents["w"].shape, latents["f"].shape[:3]) == ((4, 4 - layer, 3), (4, level, level))
    pixels = images_of(prior, latents)
    mean, std = np.asarray(tiny.train.mean), np.asarray(tiny.train.std)
    np.testing.assert_allclose(decoded(prior, latents), (pixels - mean) / std, rtol=1e-4, atol=1e-5)


def test_the_start_is_the_whole_generator_at_the_styles_of_random_z(tiny):
    prior = generators.stylegan(TINY, VARIABLES, tiny, layer=2)
    latents = start(prior, [0, 0, 1, 1])
    assert np.ptp(latents["w"], axis=1).max() == 0  # one style for all layers
    made = apply(VARIABLES["synthesis"], jnp.repeat(latents["w"][:, :1], 5, axis=1))
    mean, std = np.asarray(tiny.train.mean), np.asarray(tiny.train.std)
    whole = ((np.asarray(made)[:, :, 1:7] + 1) / 2 - mean) / std
    np.testing.assert_allclose(decoded(prior, latents), whole, rtol=1e-4, atol=1e-5)
    assert np.ptp(latents["w"][:, 0], axis=0).min() > 0  # each image its own
    np.testing.assert_array_equal(start(prior, [0, 0, 1, 1])["f"], latents["f"])
    assert not np.array_equal(start(prior, [0, 0, 1, 1], key=1)["f"], latents["f"])


def test_an_image_alone_in_its_class_starts_at_the_mean_style(tiny):
    """Of 1000 draws: within five standard errors of the mean of 20,000 others."""
    prior = generators.stylegan(TINY, VARIABLES, tiny, layer=2)
    w = np.asarray(start(prior, [0, 1, 1, 2])["w"][:, 0])
    np.testing.assert_array_equal(w[0], w[3])  # no classes are known to this generator
    others = np.asarray(TINY.mapping.apply(VARIABLES["mapping"], jax.random.normal(jax.random.key(9), (20_000, 3))))
    assert (np.abs(w[0] - others.mean(axis=0)) < 5 * others.std(axis=0) / np.sqrt(1000)).all()
    assert np.abs(w[1] - w[2]).max() > 0.1
    for choice, same in ((True, True), (False, False)):
        chosen = generators.stylegan(TINY, VARIABLES, tiny, mean_w=choice)
        w = np.asarray(start(chosen, [0, 0, 1])["w"][:, 0])
        assert np.array_equal(w[0], w[1]) == same


def test_a_generator_that_knows_the_classes_has_a_mean_of_each(tiny):
    settings = dataclasses.replace(TINY, num_classes=3)
    variables = settings.init(jax.random.key(3))
    prior = generators.stylegan(settings, variables, tiny)
    w = np.asarray(start(prior, [0, 1, 2])["w"][:, 0])
    z = jax.random.normal(jax.random.key(9), (5_000, 3))
    for label in range(3):
        others = np.asarray(settings.mapping.apply(variables["mapping"], z, np.full(5_000, label)))
        assert (np.abs(w[label] - others.mean(axis=0)) < 5 * others.std(axis=0) / np.sqrt(800)).all()
    assert np.abs(np.diff(w, axis=0)).max(axis=1).min() > 0.01


def test_a_feature_that_ran_over_is_clipped_once(tiny):
    broken = jax.tree.map(np.array, VARIABLES)
    broken["synthesis"]["params"]["input"]["weight"][:] = [[np.nan, 0], [1e30, 1e30]]
    # The first layer would spread NaN over all channels; behind the input each has its own.
    prior = generators.stylegan(TINY, broken, tiny, layer=0)
    f = np.asarray(start(prior, [0, 0])["f"])
    assert (f[..., 0] == 0).all() and np.abs(f[..., 1]).max() == 10
    broken["synthesis"]["params"]["input"]["weight"][:] = [[np.inf, np.inf], [1, 1]]
    f = np.asarray(start(generators.stylegan(TINY, broken, tiny, layer=0), [0, 0])["f"])
    assert set(np.unique(f[..., 0])) <= {-5.0, 0.0, 5.0}  # inf - inf is NaN, so 0


def gradient(prior, tiny, **settings):
    net = distillers.parameterise(base(), prior, **settings)
    synthetic, aux = net.init(jax.random.key(0), tiny)
    batch = net.sample(jax.random.key(1), tiny.train, 0)
    slope = jax.jit(jax.grad(lambda s: net.loss(jax.random.key(2), s, aux, batch, net.frozen)[0]))(synthetic)
    return synthetic["latents"], slope["latents"]


def base():
    from metadd_jax import zoo

    net = zoo.parse("convnet:width=4,depth=1", num_classes=3, image_shape=(8, 6, 1))
    return distillers.dm(net, ipc=2, batch_size=4, augmentation="none")


def test_pulled_back_one_by_one_is_all_at_once(tiny):
    prior = generators.stylegan(TINY, VARIABLES, tiny, layer=1, micro_batch=None)
    _, whole = gradient(prior, tiny)
    _, parts = gradient(dataclasses.replace(prior, micro_batch=1), tiny)
    for name in ("w", "f"):
        scale = np.abs(whole[name]).max()
        assert scale > 0
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6 * scale)


def test_the_gradient_is_that_of_finite_differences_in_float64(tiny):
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), VARIABLES)
        prior = generators.stylegan(TINY, variables, tiny, layer=2)
        latents = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), start(prior, [0, 1]))
        pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 1)))

        def value(latents):
            return jnp.sum(pixels * prior.decode(latents, prior.frozen))

        value = jax.jit(value)
        slope = jax.jit(jax.grad(value))(latents)
        rng = np.random.default_rng(1)
        for name in ("w", "f"):
            along = jnp.asarray(rng.normal(size=latents[name].shape))
            ends = [value(latents | {name: latents[name] + step * along}) for step in (1e-6, -1e-6)]
            np.testing.assert_allclose(jnp.vdot(slope[name], along), (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


def test_what_is_stored_is_what_is_trained(tiny):
    prior = generators.stylegan(TINY, VARIABLES, tiny, layer=2)
    latents = start(prior, [0, 0, 1, 1, 2, 2])
    facts = distillers.budget(prior, latents, np.repeat([0, 1, 2], 2))
    assert facts["stored_values"] == 6 * (2 * 3 + 28 * 28 * 2) and facts["stored_values_per_class"] == 2 * (6 + 1568)
    synthesis = sum(np.size(leaf) for leaf in jax.tree.leaves(VARIABLES["synthesis"]))
    assert facts["frozen_values"] == synthesis + 2  # and the data's mean and std
    assert facts["layer"] == 2 and facts["generator_sizes"]["layers"] == 3
    assert facts["generator"] == "StyleGAN3-type, untrained (GLaD-style)"


def test_whitened_images_are_whitened_by_the_datas_own_matrix(tiny):
    white = data.whitening.whiten(tiny)
    prior = generators.stylegan(TINY, VARIABLES, white)
    latents = start(prior, [0, 0])
    pixels = np.clip(np.round(images_of(prior, latents) * 255), 0, 255).astype(np.uint8)  # to a half of 1 / 255
    wanted = data.whitening.whiten_images(pixels, white.whitening)
    np.testing.assert_allclose(decoded(prior, latents), wanted, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"resolution": 4}, {}, "makes 4x4x1 images, and those of tiny are 8x6x1; give it another resolution"),
        ({"channels": 3}, {}, "makes 8x8x3 images"),
        ({"num_classes": 5}, {}, "the generator knows 5 classes, and tiny has 3"),
        ({}, {"layer": 4}, "layer=4 is behind the last of the generator's 3 layers; give 0 to 3"),
        ({}, {"layer": -1}, "layer=-1 must be a whole number, at least 0"),
        ({}, {"w_rate": 0}, "w_rate=0 must be"),
        ({}, {"micro_batch": 0}, "micro_batch=0 must be"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, settings, words, tiny):
    with pytest.raises(ValueError, match=words):
        generators.stylegan(dataclasses.replace(TINY, **changes), VARIABLES, tiny, **settings)


def test_images_of_another_shape_are_refused(tiny):
    prior = generators.stylegan(TINY, VARIABLES, tiny)
    with pytest.raises(ValueError, match=r"makes images \(8, 6, 1\), but these are \(8, 8, 1\)"):
        prior.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), np.zeros(1, int))


@pytest.mark.parametrize(("shape", "side"), [((28, 28, 1), 32), ((32, 32, 3), 32), ((2, 3, 1), 4), ((64, 40, 3), 64)])
def test_the_resolution_is_the_next_power_of_two(shape, side):
    assert glad.resolution_for(shape) == side
