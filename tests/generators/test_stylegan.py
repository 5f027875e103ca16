"""The StyleGAN3-type generator: the numbers of newer_methods.md 9.4 and 12.9, and what its two halves promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metadd_jax.generators import Generator, synthesis

TINY = Generator(resolution=8, layers=3, channel_base=32768, channel_max=4, w_dim=2, z_dim=3)


apply = jax.jit(TINY.synthesis.apply, static_argnames=("n", "method", "train", "mutable"))


def sines(shape, slope, shift=0.0):
    """Entry k, row-major, is sin(slope k + shift)."""
    return np.sin(slope * np.arange(np.prod(shape)) + shift).reshape(shape).astype(np.float32)


def example():
    """The deterministic network of 12.9, whose weights are stored [O, I, k, k] and [I, 2] there."""
    params = {
        "input": {
            "weight": sines((4, 4), 0.7, 0.1),
            "affine": {"kernel": np.zeros((2, 4), np.float32), "bias": np.float32([1, 0, 0, 0])},
        }
    }
    for i, (name, outputs, side) in enumerate(
        [("convolutions_0", 4, 3), ("convolutions_1", 4, 3), ("convolutions_2", 4, 3), ("colours", 3, 1)]
    ):
        params[name] = {
            "weight": sines((outputs, 4, side, side), 0.7, 0.1 * (i + 2)).transpose(2, 3, 1, 0),
            "bias": 0.05 * np.arange(1, outputs + 1, dtype=np.float32),
            "affine": {"kernel": sines((4, 2), 0.3, 0.2 * i).T, "bias": np.ones(4, np.float32)},
        }
    frequencies, phases = [[1, 0], [0, 1], [1, 1], [-0.5, 1.5]], [0, 0.25, -0.125, 0.1]
    waves = {"frequencies": np.float32(frequencies), "phases": np.float32(phases)}
    variables = TINY.init(jax.random.key(0))["synthesis"]
    made = {"params": params, "buffers": {"input": waves}, "magnitudes": variables["magnitudes"]}
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, dict(variables))
    return made


W_PLUS = np.broadcast_to(np.float32([0.5, -1]), (1, 5, 2))


def test_the_schedule_of_the_example():
    levels = TINY.schedule()
    np.testing.assert_allclose([level.cutoff for level in levels], [2, 4, 4, 4])
    np.testing.assert_allclose([level.half_width for level in levels], [2.287094] + 3 * [0.924578], atol=1e-6)
    shapes = [(level.rate, level.size, level.channels) for level in levels]
    assert shapes == [(8, 28, 4), (8, 28, 4), (8, 8, 4), (8, 8, 3)]


@pytest.mark.parametrize(
    ("layers", "cutoffs", "sizes"),
    [
        (8, [2, 2.8284, 4, 5.6569, 8, 11.3137, 16, 16, 16], [36, 36, 36, 52, 52, 52, 52, 32, 32]),
        (6, [2, 3.3636, 5.6569, 9.5137, 16, 16, 16], [36, 36, 52, 52, 52, 32, 32]),
    ],
)
def test_the_schedules_for_32_pixels(layers, cutoffs, sizes):
    levels = Generator(layers=layers).schedule()
    np.testing.assert_allclose([level.cutoff for level in levels], cutoffs, atol=1e-4)
    assert [level.size for level in levels] == sizes
    if layers == 8:
        widths = [6, 5.1716, 4, 10.3431, 8, 4.6863] + 3 * [3.6983]
        np.testing.assert_allclose([level.half_width for level in levels], widths, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "of_synthesis", "of_mapping"),
    [
        ((32, 14, 32768, 512, 512), 37_242_887, 295_936),
        ((32, 8, 2048, 64, 512), 597_255, 295_936),
        ((32, 8, 2048, 64, 128), 374_535, 24_832),
        ((32, 6, 1024, 32, 64), 71_431, 8_320),
        ((256, 17, 32768, 512, 512), 34_143_900, 295_936),
    ],
)
def test_the_numbers_of_parameters(sizes, of_synthesis, of_mapping):
    names = ("resolution", "layers", "channel_base", "channel_max", "w_dim")
    shapes = jax.eval_shape(Generator(**dict(zip(names, sizes, strict=True))).init, jax.random.key(0))
    count = [sum(leaf.size for leaf in jax.tree.leaves(shapes[net]["params"])) for net in ("synthesis", "mapping")]
    assert count == [of_synthesis, of_mapping]


def test_the_example_layer_by_layer():
    variables = example()

    def feature(n):
        return np.moveaxis(np.asarray(apply(variables, W_PLUS, n=n, method="to_layer"), np.float64), 3, 1)[0]

    x = feature(0)
    np.testing.assert_allclose([x.mean(), (x**2).mean()], [-0.007470, 0.252970], atol=2e-6)
    np.testing.assert_allclose(x[:, 0, 0], [0.120076, -0.055327, -0.015816, 0.085130], atol=2e-6)
    for n, mean, rms, corner, inside in (
        (1, 0.206178, 0.274902, 0.163722, -0.000786),
        (2, 0.327555, 0.506685, -0.051776, -0.053710),
        (3, 0.644056, 1.160470, 1.912773, 0.073919),
    ):
        x = feature(n)
        found = [x.mean(), np.sqrt((x**2).mean()), x[0, 0, 0], x[0, 4, 4]]
        np.testing.assert_allclose(found, [mean, rms, corner, inside], atol=5e-6)
    made = np.asarray(apply(variables, W_PLUS))[0]
    np.testing.assert_allclose(4 * made[[0, 4], [0, 4], 0], [2.064945, 0.226743], atol=5e-6)
    np.testing.assert_allclose(made.mean(axis=(0, 1)), [0.180710, -0.144107, 0.187963], atol=2e-6)
    np.testing.assert_allclose(np.sqrt((made.astype(np.float64) ** 2).mean()), 0.293053, atol=2e-6)
    top = [0.516236, 0.474540, 0.361552, 0.252769, 0.204415, 0.245359, 0.348817, 0.441763]
    low = [0.031378, 0.051081, 0.020261, -0.007355, -0.029727, -0.037316, -0.024454, 0.006907]
    np.testing.assert_allclose(made[0, :, 0], top, atol=5e-6)
    np.testing.assert_allclose(made[7, :, 2], low, atol=5e-6)


class Gained(nn.Module):
    """What a layer does to its input and weight, with a running magnitude."""

    demodulate: bool = True

    @nn.compact
    def __call__(self, x, weight, style):
        gain = synthesis.magnitude_gain(self, x, False)
        return synthesis.modulated_convolution(gain * x, weight, style, demodulate=self.demodulate)


@pytest.mark.parametrize(("square", "share"), [(1.0, 1.0), (4.0, 0.5)])
def test_modulation_by_its_published_example(square, share):
    """One output channel of two inputs: the modulated kernel is what unit inputs give."""
    weight, style = np.float32([1, 2]).reshape(1, 1, 2, 1), np.float32([[0.5, 1.5], [2, 1]])
    variables = {"magnitudes": {"square": np.float32(square)}}

    def kernel(module, style):
        units = np.broadcast_to(np.eye(2, dtype=np.float32)[None, None], (len(style), 1, 2, 2))
        return np.asarray(module.apply(variables, units, weight, style))[:, 0, :, 0]

    wanted = np.array([[0.164399, 0.986394], [0.707107, 0.707107]])
    np.testing.assert_allclose(kernel(Gained(), style), share * wanted, atol=2e-6)
    plain = np.array([[0.353553, 2.121320], [1.414214, 1.414214]])
    np.testing.assert_allclose(kernel(Gained(demodulate=False), style / np.sqrt(2)), share * plain, atol=2e-6)


def test_a_batch_of_modulated_convolutions_is_a_kernel_for_each_image():
    """Against a loop over images, places and channels in NumPy."""
    rng = np.random.default_rng(0)
    x, weight, style = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 4, 3), (3, 3, 3, 5), (2, 3)))
    made = synthesis.modulated_convolution(x, weight, style, padding=2)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for b in range(2):
        own = weight * style[b][:, None]
        own = own / np.sqrt((own**2).sum(axis=(0, 1, 2)))
        for row, column in ((0, 0), (2, 3), (5, 5)):
            window = padded[b, row : row + 3, column : column + 3]
            wanted = np.einsum("yxi,yxio->o", window, own)
            np.testing.assert_allclose(made[b, row, column], wanted, rtol=1e-4, atol=1e-5)


def waves(t, row, column):
    level = synthesis.Level(cutoff=2.0, half_width=6.0, rate=16, size=36, channels=2)
    net = synthesis.FourierInput(level)
    variables = {
        # Mixing by 1: W / sqrt(2) is the unit matrix.
        "params": {"weight": np.sqrt(2) * np.eye(2, dtype=np.float32), "affine": {
            "kernel": np.zeros((1, 4), np.float32), "bias": np.float32(t)}},
        "buffers": {"frequencies": np.float32([[1, 0], [0, 2]]), "phases": np.float32([0, 0.25])},
    }  # fmt: skip
    return np.asarray(net.apply(variables, np.zeros((1, 1), np.float32)))[0, row, column]


def test_the_input_by_its_published_example():
    np.testing.assert_allclose(waves((1, 0, 0, 0), 18, 18), [0.195090, 0.923880], atol=2e-6)
    np.testing.assert_allclose(waves((1, 0, 0, 0), 0, 20), [0.831470, 0.382683], atol=1e-5)
    np.testing.assert_allclose(waves((0.6, 0.8, 0.125, 0), 18, 20), [-0.039260, 0.852640], atol=1e-5)
    np.testing.assert_allclose(waves((3, 4, 0.625, 0), 18, 20), waves((0.6, 0.8, 0.125, 0), 18, 20), atol=1e-5)


def test_frequencies_beyond_the_band_fade_out():
    """Turned only, they keep their size: below the cut-off amplitude 1, at half the rate 0, linear in between."""
    level = synthesis.Level(cutoff=2.0, half_width=6.0, rate=16, size=36, channels=3)
    net = synthesis.FourierInput(level)
    variables = net.init(jax.random.key(0), np.zeros((1, 1)))
    variables = {
        "params": {**variables["params"], "weight": np.sqrt(3) * np.eye(3, dtype=np.float32)},
        "buffers": {"frequencies": np.float32([[0, 1.5], [0, 5], [0, 9]]), "phases": np.zeros(3, np.float32)},
    }
    most = np.abs(np.asarray(net.apply(variables, np.zeros((1, 1))))).max(axis=(0, 1, 2))
    np.testing.assert_allclose(most, [1, 0.5, 0], atol=0.03)


def test_the_mapping_network_in_numpy():
    settings = Generator(w_dim=5, z_dim=4, num_classes=3, resolution=8, layers=3)
    variables = settings.init(jax.random.key(0))["mapping"]
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 2, 1, 0])

    def unit(x):
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-8)

    def act(x):
        return np.sqrt(2) * np.maximum(x, 0.2 * x)

    params = jax.tree.map(np.asarray, variables["params"])
    known = act(params["embedding"]["kernel"][labels] / np.sqrt(3) + params["embedding"]["bias"])
    x = np.concatenate([unit(z), unit(known)], axis=1)
    for name in ("layer0", "layer1"):
        layer = params[name]
        assert 50 < layer["kernel"].std() < 200  # N(0, 1 / 0.01^2)
        x = act(x @ (layer["kernel"] * 0.01) / np.sqrt(x.shape[1]) + layer["bias"] * 0.01)
    np.testing.assert_allclose(settings.mapping.apply(variables, z, labels), x, rtol=1e-4, atol=1e-5)


def test_the_two_halves_are_the_whole_and_each_reads_its_own_styles():
    """Behind layer n: rows 0 to n of w+ have no part in the upper half, those above none in the lower one."""
    variables, n = TINY.init(jax.random.key(1))["synthesis"], 1
    w_plus = jax.random.normal(jax.random.key(2), (2, 5, 2))

    def energy(w_plus, f):
        if f is None:
            return jnp.sum(apply(variables, w_plus, n=n, method="to_layer") ** 2)
        return jnp.sum(apply(variables, f, w_plus, n=n, method="from_layer") ** 2)

    f = apply(variables, w_plus, n=n, method="to_layer")
    whole = np.asarray(apply(variables, w_plus))
    np.testing.assert_allclose(apply(variables, f, w_plus, n=n, method="from_layer"), whole, rtol=1e-5, atol=1e-6)
    alone = apply(variables, f[1:], w_plus[1:], n=n, method="from_layer")
    np.testing.assert_allclose(alone, whole[1:], rtol=1e-5, atol=1e-6)  # images do not depend on their batch
    slope = jax.grad(energy)
    below, above = np.abs(slope(w_plus, None)), np.abs(slope(w_plus, f))
    # At first the input does not depend on its style.
    assert not below[:, 2:].any() and not below[:, 0].any() and below[:, 1].max(axis=1).min() > 0
    assert not above[:, :2].any() and above[:, 2:].max(axis=(0, 2)).min() > 0


def test_running_magnitudes_move_in_training_alone():
    variables = TINY.init(jax.random.key(1))["synthesis"]
    assert [float(leaf) for leaf in jax.tree.leaves(variables["magnitudes"])] == [1] * 4
    images, moved = apply(variables, W_PLUS, train=True, mutable=("magnitudes",))
    f = apply(variables, W_PLUS, n=0, method="to_layer")
    first = moved["magnitudes"]["convolutions_0"]["square"]
    np.testing.assert_allclose(first, 0.999 + 0.001 * np.mean(f**2), rtol=1e-6)
    # The moved ones were in use already, and without training they stay.
    np.testing.assert_allclose(apply({**variables, **moved}, W_PLUS), images, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 28}, "resolution=28 must be a power of two"),
        ({"layers": 2}, "layers=2 must be a whole number, at least 3"),
        ({"num_classes": -1}, "num_classes=-1 must be"),
    ],
)
def test_sizes_that_make_no_generator_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Generator(**changes)
