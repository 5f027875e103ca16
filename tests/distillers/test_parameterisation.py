"""Latents in place of pixels: the packing by its published example, the gradient by the chain rule written out."""

import types

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from metadd_jax import distillers

RAMP = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)


def updated(method, dataset, steps=2, tx=members.TX):
    state = distillers.init_state(jax.random.key(0), method, tx, dataset)
    update = jax.jit(distillers.make_update(method, tx))
    for _ in range(steps):
        state, metrics = update(state, dataset.train, method.frozen)
    return method.synthetic(state), state, metrics


def gradient_of(method, key, synthetic, aux, batch):
    return jax.jit(jax.grad(lambda s: method.loss(key, s, aux, batch, method.frozen)[0]))(synthetic)


def packed(size=2, over=None, **settings):
    return distillers.parameterise(over or members.base(ipc=4), distillers.factor(size), **settings)


def rows_of(side, cell, start):
    """[side, side of the stored image]: what enlarging ``cell`` pixels from ``start`` on reads, place by place."""
    matrix = np.zeros((side, side))
    for out in range(side):
        place = min(max((out + 0.5) * cell / side - 0.5, 0), cell - 1)
        below = int(place)
        above = min(below + 1, cell - 1)
        matrix[out, start + below] += 1 - (place - below)
        matrix[out, start + above] += place - below
    return matrix


def unpacked(stored, size):
    """``decode`` in NumPy for sides that ``size`` divides: rows and columns by a matrix for each cell."""
    side = stored.shape[1]
    cell = side // size
    places = [rows_of(side, cell, start) for start in range(0, side, cell)]
    made = [
        np.einsum("yh,xw,hwc->yxc", rows, columns, image) for image in stored for rows in places for columns in places
    ]
    return np.stack(made)


def test_the_published_example_of_the_packing():
    """newer_methods.md 12.4: a ramp of 4 x 4, factor 2."""
    made = np.asarray(distillers.factor(2).decode(RAMP, ()))[..., 0]
    first = [[0, 0.25, 0.75, 1], [1, 1.25, 1.75, 2], [3, 3.25, 3.75, 4], [4, 4.25, 4.75, 5]]
    np.testing.assert_allclose(made[0], first, atol=1e-6)
    np.testing.assert_allclose(made.mean(axis=(1, 2)), [2.5, 4.5, 10.5, 12.5], atol=1e-6)
    np.testing.assert_allclose(made[3, 0], [10, 10.25, 10.75, 11], atol=1e-6)


def test_idcs_order_is_ours_within_a_class():
    """A.TL B.TL A.TR B.TR ... there, A.TL A.TR A.BL A.BR B.TL ... here."""
    stored = np.arange(2 * 4.0, dtype=np.float32).reshape(2, 2, 2, 1)  # A and B, a pixel a cell
    ours = np.asarray(distillers.factor(2).decode(stored, ()))[:, 0, 0, 0]
    np.testing.assert_array_equal(ours, range(8))
    theirs = ours.reshape(2, 4).T.ravel()
    np.testing.assert_array_equal(theirs, [0, 4, 1, 5, 2, 6, 3, 7])


@pytest.mark.parametrize(("side", "size", "cell"), [(32, 2, 16), (5, 2, 3), (28, 3, 10)])
def test_sides_that_the_factor_does_not_divide_are_padded(side, size, cell):
    """12.4: (size, f) -> pad, crop; what lies beyond the stored image is ``pad``, one a channel."""
    padding = size * cell - side
    made = distillers.factor(size, pad=(0.5, -2.0)).decode(jnp.zeros((1, side, side, 2)), ())
    assert made.shape == (size**2, side, side, 2)
    last = np.asarray(made[-1, -1, -1])
    np.testing.assert_allclose(last, [0.5, -2.0] if padding else [0, 0])
    share = np.asarray(made[-1, :, 0, 0]) != 0  # rows of the last cell that see the padding
    assert share.any() == (padding > 0) and not np.asarray(made[0]).any()


def test_the_start_puts_each_image_in_its_cell(key):
    grey = np.arange(8, dtype=np.float32)[:, None, None, None] * np.ones((8, 6, 6, 1), np.float32)
    stored = np.asarray(distillers.factor(2).init(key, grey))
    assert stored.shape == (2, 6, 6, 1)
    np.testing.assert_allclose(stored[0, ::3, ::3, 0].ravel(), [0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(distillers.factor(2).decode(stored, ()), grey, atol=1e-5)
    np.testing.assert_allclose(distillers.factor(1).decode(distillers.factor(1).init(key, grey), ()), grey, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_gradient_is_that_of_the_pixels_pulled_back(key, tiny, micro_batch):
    """Against the base's own gradient at the decoded images, and the transpose of the decoder in NumPy."""
    base, method = members.base(ipc=4), packed(micro_batch=micro_batch)
    synthetic, aux = method.init(key, tiny)
    latents = synthetic["latents"]
    assert latents.shape == (3, *members.SHAPE)
    batch = method.sample(key, tiny.train, 0)
    images = unpacked(np.asarray(latents), 2)
    np.testing.assert_allclose(method.decode(synthetic, aux, method.frozen).images, images, atol=1e-5)
    slope = gradient_of(base, key, {"images": jnp.asarray(images, jnp.float32)}, aux, batch)["images"]
    gradient = gradient_of(method, key, synthetic, aux, batch)["latents"]
    pulled = np.zeros(latents.shape)
    places = [rows_of(8, 4, start) for start in (0, 4)]
    cells = [(rows, columns) for rows in places for columns in places]
    for index, image in enumerate(np.asarray(slope, np.float64)):
        rows, columns = cells[index % 4]
        pulled[index // 4] += np.einsum("yh,xw,yxc->hwc", rows, columns, image)
    np.testing.assert_allclose(gradient, pulled, rtol=1e-4, atol=1e-5 * np.abs(pulled).max())


@pytest.mark.parametrize("name", ["dm", pytest.param("dc", marks=pytest.mark.slow), "mtt"])
def test_pixels_change_no_bit(name, tiny):
    made = members.make(name, None, tiny)
    bare, *_ = updated(made[0], tiny, tx=made[1])
    method = distillers.parameterise(made[0], distillers.pixels())
    other, state, _ = updated(method, tiny, tx=made[1])
    assert method.name == made[0].name
    assert set(state.synthetic) == {"latents"} | ({"log_lr"} if name == "mtt" else set())
    jax.tree.map(np.testing.assert_array_equal, bare, other)  # with the learned step size of mtt


@pytest.mark.slow
def test_pixels_around_metadd_or_inside_change_no_bit(tiny, auxiliaries):
    bare, *_ = updated(members.wrapped(auxiliaries), tiny)
    plain = distillers.parameterise(members.base(), distillers.pixels())
    inside, *_ = updated(members.wrapped(auxiliaries, over=plain), tiny)
    around, *_ = updated(distillers.parameterise(members.wrapped(auxiliaries), distillers.pixels()), tiny)
    np.testing.assert_array_equal(inside.images, bare.images)
    np.testing.assert_array_equal(around.images, bare.images)


def generator(hidden=7):
    """Own latents: a small nonlinear decoder with frozen weights; two arrays an image."""
    draw = np.random.default_rng(1)
    frozen = (
        jnp.asarray(draw.normal(size=(3, hidden)), jnp.float32),
        jnp.asarray(draw.normal(size=(hidden, 64)), jnp.float32),
    )

    def init(key, images):
        return {"style": jax.random.normal(key, (len(images), 3)), "size": jnp.ones(len(images))}

    def decode(latents, frozen):
        seen = jnp.tanh(latents["style"] @ frozen[0]) @ frozen[1]
        return (latents["size"][:, None] * seen).reshape(-1, *members.SHAPE)

    return types.SimpleNamespace(init=init, decode=decode, frozen=frozen, name="toy")


def test_any_object_serves_and_parts_change_nothing(tiny):
    whole, state, _ = updated(distillers.parameterise(members.base(), generator()), tiny)
    parts, *_ = updated(distillers.parameterise(members.base(), generator(), micro_batch=4), tiny)
    assert set(state.synthetic["latents"]) == {"style", "size"}
    np.testing.assert_allclose(parts.images, whole.images, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(state.synthetic["latents"]["size"]) - 1).min() > 0


def test_in_parts_the_memory_is_that_of_a_few_images(tiny):
    """A hidden layer of 50,000 numbers an image, 6 images: 1.2 MB at once, two of them 0.4."""

    def scratch(**settings):
        method = distillers.parameterise(members.base(), generator(hidden=50_000), **settings)
        state = distillers.init_state(jax.random.key(0), method, members.TX, tiny)
        step = jax.jit(distillers.make_update(method, members.TX)).lower(state, tiny.train, method.frozen)
        return step.compile().memory_analysis().temp_size_in_bytes

    assert scratch(micro_batch=1) < scratch() - 500_000


@pytest.mark.parametrize("micro_batch", [None, 4])  # 4 does not divide the 6 images
def test_the_chain_rule_holds_through_a_decoder(key, tiny, micro_batch):
    base, made = members.base(), generator()
    method = distillers.parameterise(base, made, micro_batch=micro_batch)
    synthetic, aux = method.init(key, tiny)
    batch, latents = method.sample(key, tiny.train, 0), jax.tree.map(np.asarray, synthetic["latents"])
    hidden = np.tanh(latents["style"] @ made.frozen[0])
    seen = hidden @ made.frozen[1]
    shown = {"images": jnp.asarray(latents["size"][:, None] * seen).reshape(-1, *members.SHAPE)}
    slope = gradient_of(base, key, shown, aux, batch)["images"].reshape(6, 64)
    found = gradient_of(method, key, synthetic, aux, batch)["latents"]
    back = ((latents["size"][:, None] * slope) @ made.frozen[1].T * (1 - hidden**2)) @ made.frozen[0].T
    np.testing.assert_allclose(found["size"], (slope * seen).sum(axis=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["style"], back, rtol=1e-3, atol=1e-4)


def test_the_budget_counts_what_is_trained(key, tiny):
    method = packed(over=members.base(ipc=(4, 8, 4), init="noise"))
    synthetic, aux = method.init(key, tiny)
    labels = method.decode(synthetic, aux, method.frozen).labels
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], [4, 8, 4]))
    assert distillers.budget(distillers.factor(2), synthetic["latents"], labels) == {
        "parameterisation": "factor2", "factor": 2, "stored_values": 4 * 64, "stored_values_per_class": [64, 128, 64],
        "frozen_values": 0,
    }  # fmt: skip
    made = generator()
    facts = distillers.budget(made, made.init(key, np.zeros((6, 8, 8, 1))), np.repeat([0, 1, 2], 2))
    assert facts == {"parameterisation": "toy", "stored_values": 24, "stored_values_per_class": 8, "frozen_values": 469}
    assert (
        distillers.budget(distillers.pixels(), np.zeros((6, 8, 8, 1)), np.arange(6) % 3)["stored_values_per_class"]
        == 128
    )


@pytest.mark.parametrize("name", ["dm", "mtt"])
def test_a_state_of_shapes_alone_is_refused_and_made_like_a_real_one(tiny, name):
    """A job checks itself so before any long work."""
    made, tx = members.make(name, None, tiny)  # 2 images a class
    with pytest.raises(ValueError, match="a stored item holds 4 of one class"):
        jax.eval_shape(lambda: distillers.init_state(jax.random.key(0), packed(over=made), tx, tiny))
    method = distillers.parameterise(made, distillers.factor(1))
    shapes = jax.eval_shape(lambda: distillers.init_state(jax.random.key(0), method, tx, tiny))
    assert shapes.synthetic["latents"].shape == (6, *members.SHAPE)


def test_what_cannot_be_packed_is_refused_with_the_numbers(key, tiny):
    with pytest.raises(
        ValueError, match="dm has 2 images in class 0, but a stored item holds 4 of one class; give it 4 t"
    ):
        packed(over=members.base(ipc=2)).init(key, tiny)
    with pytest.raises(
        ValueError, match="factor 9 needs a multiple of 81 images of at least 9 pixels a side; got 81 of 8"
    ):
        distillers.factor(9).init(key, np.zeros((81, 8, 8, 1)))
    with pytest.raises(ValueError, match=r"pad=\(0\.5, 0\.5\) has 2 numbers for 1 channels"):
        distillers.factor(2, pad=(0.5, 0.5)).init(key, np.zeros((4, 8, 8, 1)))
    with pytest.raises(ValueError, match="pad='grey' must be a number"):
        distillers.factor(2, pad="grey")
    with pytest.raises(ValueError, match="size=0 must be a whole number, at least 1"):
        distillers.factor(0)
    with pytest.raises(ValueError, match="micro_batch=0 must be"):
        packed(micro_batch=0)
    with pytest.raises(ValueError, match="has init, decode and frozen, and <function factor"):
        distillers.parameterise(members.base(), distillers.factor)
    with pytest.raises(ValueError, match="base is a Factor; give a method"):
        distillers.parameterise(distillers.factor(2), members.base())
    made = generator()
    made.decode = lambda latents, frozen: latents["style"]
    with pytest.raises(ValueError, match=r"gives float32\(6, 3\), but the set is float32\(6, 8, 8, 1\); mend decode"):
        distillers.parameterise(members.base(), made).init(key, tiny)
    made = generator()
    made.init = lambda key, images: {"style": jnp.ones((1, 3))}
    with pytest.raises(ValueError, match=r"micro_batch=2 divides latents \[6, ...\], but one has shape \(1, 3\)"):
        distillers.parameterise(members.base(), made, micro_batch=2).init(key, tiny)
    made.init = lambda key, images: {"style": jnp.arange(6)}
    with pytest.raises(ValueError, match="latents must be float arrays"):
        distillers.parameterise(members.base(), made).init(key, tiny)
    other = members.base()._replace(init=lambda key, dataset: ((), ()))
    with pytest.raises(ValueError, match="dm trains no dict with images, so there is nothing to parameterise"):
        distillers.parameterise(other, distillers.pixels()).init(key, tiny)
