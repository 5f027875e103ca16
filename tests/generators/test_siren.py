"""One SIREN an image: the stored vectors, the published table, the fit against a step in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import distillers
from metadd_jax.generators import Siren
from metadd_jax.generators.siren import coordinates, sine

# newer_methods.md 9.5: (image shape, L, d, numbers of a net, {ipc: images per class}).
PUBLISHED = [
    ((32, 32, 3), 2, 6, 81, {1: 37, 10: 379}),
    ((32, 32, 3), 2, 20, 543, {50: 282}),
    ((32, 32, 3), 2, 10, 173, {1: 17}),
    ((32, 32, 3), 2, 15, 333, {10: 92}),
    ((32, 32, 3), 2, 30, 1113, {50: 138}),
    ((128, 128, 3), 3, 20, 963, {1: 51, 10: 510}),
    ((128, 128, 3), 3, 40, 3523, {50: 697}),
]


def in_numpy(net, places, w0_first=30.0, w0=10.0):
    """f(x) of one net at places [P, 2], float64, as the formula stands."""
    h = places
    for number in range(1, len(net)):
        layer = net[f"layer{number}"]
        h = np.sin((w0_first if number == 1 else w0) * (h @ layer["kernel"] + layer["bias"]))
    return h @ net[f"layer{len(net)}"]["kernel"] + net[f"layer{len(net)}"]["bias"]


def test_the_stored_vectors():
    """newer_methods.md 12.8: one hidden unit, at the four corners."""
    net = {
        "layer1": {"kernel": jnp.array([[[0.3], [-0.2]]]), "bias": jnp.array([[0.1]])},
        "layer2": {"kernel": jnp.array([[[1.0, 2.0, -0.5]]]), "bias": jnp.array([[0.0, 0.1, 0.2]])},
    }
    image = np.asarray(Siren((2, 2, 3), width=1, depth=1).decode(net, ()))[0]
    corners = [
        [[0, 0.1, 0.2], [0.536573, 1.173146, -0.068286]],
        [[-0.750987, -1.401974, 0.575494], [-0.279415, -0.458831, 0.339708]],
    ]
    np.testing.assert_allclose(image, corners, atol=2e-6)


@pytest.mark.parametrize(("shape", "depth", "width", "numbers", "images"), PUBLISHED)
def test_the_numbers_of_a_net_and_the_images_of_a_budget_are_the_published_ones(shape, depth, width, numbers, images):
    siren = Siren(shape, width=width, depth=depth)
    assert siren.size == numbers == sum(leaf.size for leaf in jax.tree.leaves(siren.draw(jax.random.key(0), 1)))
    assert {ipc: siren.images_for(ipc) for ipc in images} == images
    assert dataclasses.replace(siren, fill=False).images_for(10) == 10


@pytest.mark.parametrize(("width", "w0", "bound"), [(6, 10, 0.1), (20, 10, 0.054772), (20, 40, 0.013693)])
def test_the_weights_start_within_the_published_bounds(key, width, w0, bound):
    net = Siren((8, 8, 3), width=width, w0=w0).draw(key, 400)
    for name, most in (("layer1", 0.5), ("layer2", bound), ("layer3", bound)):
        for values in net[name].values():
            # Uniform to the edge: of 2,400 draws the largest is above 0.98 of it but once in 10^21.
            assert 0.98 * most < np.abs(values).max() <= most + 1e-6
            np.testing.assert_allclose(np.std(values), most / np.sqrt(3), rtol=0.1)


def test_the_corners_are_at_one_on_both_axes_of_an_image_that_is_not_square():
    rows, columns = np.asarray(coordinates(3, 5)).reshape(2, 3, 5)
    np.testing.assert_allclose(rows, np.repeat([[-1], [0], [1]], 5, axis=1))
    np.testing.assert_allclose(columns, np.tile([-1, -0.5, 0, 0.5, 1], (3, 1)))
    np.testing.assert_allclose(coordinates(1, 2), [[0, 0], [-1, 1]])


def test_a_wide_image_equals_the_formula_in_numpy(key):
    siren = Siren((3, 5, 2), width=7, depth=3, w0=4.0, w0_first=11.0)
    nets = jax.tree.map(np.asarray, siren.draw(key, 2))
    places = [(-1 + row, -1 + column / 2) for row in range(3) for column in range(5)]
    expected = [in_numpy(jax.tree.map(lambda x, n=n: x[n], nets), np.array(places), 11.0, 4.0) for n in range(2)]
    made = siren.decode(nets, ())
    np.testing.assert_allclose(made, np.reshape(expected, (2, 3, 5, 2)), atol=1e-5)


def test_the_sine_and_its_derivative_are_numpys():
    x = np.linspace(-500, 500, 20_001).astype(np.float32)
    np.testing.assert_allclose(jax.jit(sine)(x), np.sin(x.astype(np.float64)), atol=3e-7)
    slope = jax.jit(jax.grad(lambda x: sine(x).sum()))(x)
    np.testing.assert_allclose(slope, np.cos(x.astype(np.float64)), atol=2e-6)


def test_one_step_of_the_fit_is_adams_first(key):
    """Adam's first step is lr in each number, against the sign of the derivative, here by finite differences."""
    siren = Siren((4, 6, 1), width=2, depth=1, fit_steps=1, fit_lr=1e-3)
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 1))
    before = jax.tree.map(np.float64, siren.draw(key, 1))
    after = siren.init(key, jnp.asarray(image, jnp.float32))
    places = np.array([(-1 + 2 * row / 3, -1 + 2 * column / 5) for row in range(4) for column in range(6)])

    def error(net):
        return np.mean((in_numpy(jax.tree.map(lambda x: x[0], net), places).reshape(4, 6, 1) - image[0]) ** 2)

    for name, layer in before.items():
        for part, values in layer.items():
            for index in np.ndindex(values.shape):
                sides = []
                for step in (1e-5, -1e-5):
                    moved = jax.tree.map(np.copy, before)
                    moved[name][part][index] += step
                    sides.append(error(moved))
                expected = values[index] - 1e-3 * np.sign(sides[0] - sides[1])
                np.testing.assert_allclose(after[name][part][index], expected, atol=2e-6)


def test_the_nets_show_the_start_and_each_is_fitted_alone(key):
    """Smooth images: with an offset, so that a net that learned nothing is far off."""
    draw = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8), indexing="ij")
    waves = [1 + a * np.cos(3 * rows + b) * np.sin(2 * columns + c) for a, b, c in draw.normal(size=(2, 3))]
    images, told = np.stack(waves)[..., None].astype(np.float32), []
    siren = Siren((8, 8, 1), width=8, fit_steps=400, fit_lr=5e-3, on_fit=lambda done, total: told.append((done, total)))
    nets = siren.init(key, images)
    errors = np.mean((np.asarray(siren.decode(nets, ())) - images) ** 2, axis=(1, 2, 3))
    assert (errors < 0.01 * np.mean(images**2, axis=(1, 2, 3))).all(), errors
    assert told[0] == (20, 400) and told[-1] == (400, 400)
    jax.tree.map(np.testing.assert_array_equal, nets, siren.init(key, images))
    # The same nets beside other images: the first is fitted as it was.
    other = siren.init(key, np.concatenate([images[:1], np.zeros((1, 8, 8, 1), np.float32)]))
    np.testing.assert_allclose(siren.decode(other, ())[0], siren.decode(nets, ())[0], atol=1e-3)


def test_who_asks_for_shapes_alone_fits_nothing(key):
    told = []
    siren = Siren((8, 8, 1), on_fit=lambda done, total: told.append(done))
    shapes = jax.eval_shape(siren.init, key, jax.ShapeDtypeStruct((6, 8, 8, 1), np.float32))
    assert shapes["layer1"]["kernel"].shape == (6, 2, 6) and not told


def test_what_a_set_of_nets_stores_is_counted():
    siren = Siren((8, 8, 1), width=3, depth=1)
    facts = distillers.budget(siren, siren.draw(jax.random.key(0), 6), np.repeat([0, 1, 2], 2))
    assert facts["stored_values"] == 6 * (9 + 4) and facts["stored_values_per_class"] == 26
    assert facts["parameterisation"] == "siren3x1" and facts["frozen_values"] == 0 and facts["w0_first"] == 30.0


def test_what_a_net_cannot_be_is_refused():
    with pytest.raises(ValueError, match="width=0 must be a whole number, at least 1"):
        Siren((8, 8, 1), width=0)
    with pytest.raises(ValueError, match="fit_steps=-1 must be"):
        Siren((8, 8, 1), fit_steps=-1)
    with pytest.raises(ValueError, match=r"nets are for images \(8, 8, 3\), but these are \(8, 8, 1\)"):
        Siren((8, 8, 3)).init(jax.random.key(0), np.zeros((2, 8, 8, 1)))
