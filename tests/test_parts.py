"""Sums taken part by part against closed forms in NumPy and finite differences, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import parallel, parts

RNG = np.random.default_rng(0)
IMAGES, FACTORS, SCALE = RNG.normal(size=(7, 2, 3)), RNG.normal(size=7), 0.7
SIZES = [1, 2, 3, 4, 7, 50]


@pytest.fixture
def float64():
    with jax.enable_x64():
        yield


def look(part, weights, shared):
    """Two sums, of factor * sin(scale x) and of scale x^3; facts are the first squared, and the numbers."""
    images, factors, numbers = part
    each = factors * jnp.sin(shared["scale"] * images).sum((1, 2)), shared["scale"] * (images**3).sum((1, 2))
    return jnp.stack(each) @ weights, {"squares": jnp.stack(each)[:1] ** 2, "numbers": numbers[None]}


def expected():
    """The values [2, n] of each image, and of the sum of both their slopes in images, factors and scale."""
    inside = SCALE * IMAGES
    each = np.stack([FACTORS * np.sin(inside).sum((1, 2)), SCALE * (IMAGES**3).sum((1, 2))])
    of_images = FACTORS[:, None, None] * SCALE * np.cos(inside) + 3 * SCALE * IMAGES**2
    of_scale = (FACTORS[:, None, None] * IMAGES * np.cos(inside)).sum() + (IMAGES**3).sum()
    return each, (of_images, np.sin(inside).sum((1, 2)), of_scale)


def looked(images, factors, scale, **settings):
    return parts.total(look, (images, factors, jnp.arange(7)), {"scale": scale}, **settings)


@pytest.mark.parametrize("size", SIZES)
def test_values_facts_and_every_gradient_are_those_of_the_closed_form(float64, size):
    def loss(*arguments):
        sums, facts = looked(*arguments, size=size)
        return sums.sum() + facts["squares"].sum(), (sums, facts)  # facts are constants

    each, slopes = expected()
    arguments = jnp.asarray(IMAGES), jnp.asarray(FACTORS), jnp.asarray(SCALE)
    gradients, (sums, facts) = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)
    np.testing.assert_allclose(sums, each.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(facts["squares"], each[:1] ** 2, rtol=1e-12)
    np.testing.assert_array_equal(facts["numbers"], np.arange(7)[None])
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-10)
    # Without a gradient, and with the gradient in one argument alone.
    np.testing.assert_allclose(jax.jit(loss)(*arguments)[1][0], each.sum(axis=1), rtol=1e-12)
    for number, slope in enumerate(slopes):
        alone = jax.jit(jax.grad(lambda *a: loss(*a)[0], argnums=number))(*arguments)
        np.testing.assert_allclose(alone, slope, rtol=1e-10)


@pytest.mark.parametrize("size", [7, 3])
def test_other_derivatives_agree_with_finite_differences(float64, size):
    """Forward mode, and derivatives of derivatives in either order, of a function that bends the sums."""

    def bent(arguments):
        sums, _ = looked(*arguments, size=size)
        return sums[0] ** 2 + jnp.sin(sums[1])

    def along(arguments):
        """How fast it grows along the direction, by reverse mode."""
        return sum((g * d).sum() for g, d in zip(jax.grad(bent)(arguments), direction, strict=True))

    arguments = jnp.asarray(IMAGES), jnp.asarray(FACTORS), jnp.asarray(SCALE)
    direction = tuple(jnp.asarray(RNG.normal(size=np.shape(leaf))) for leaf in arguments)
    step = 1e-6

    def differences(function):
        ahead, behind = (
            function(tuple(a + sign * step * d for a, d in zip(arguments, direction, strict=True))) for sign in (1, -1)
        )
        return jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)

    forward = jax.jit(lambda: jax.jvp(bent, (arguments,), (direction,))[1])()
    np.testing.assert_allclose(forward, differences(jax.jit(bent)), rtol=1e-7)
    second = differences(jax.jit(jax.grad(bent)))
    reverse_of_reverse = jax.jit(jax.grad(along))(arguments)
    forward_of_reverse = jax.jit(lambda: jax.jvp(jax.grad(bent), (arguments,), (direction,))[1])()
    for found in (reverse_of_reverse, forward_of_reverse):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, second)


def test_images_and_sums_may_differ_in_their_numbers_width():
    """bfloat16 images and a float32 loss: sum_i mean(x_i)^2 in parts of 2."""

    def some(part, weights, shared):
        return (jnp.float32(part).mean(axis=1) ** 2)[None] @ weights, ()

    x = jnp.bfloat16(RNG.normal(size=(5, 4)))
    value, slope = jax.value_and_grad(lambda x: parts.total(some, x, (), size=2)[0].sum())(x)
    means = np.asarray(x, np.float64).mean(axis=1)
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    assert float(value) == pytest.approx((means**2).sum(), rel=1e-6)
    np.testing.assert_allclose(np.float64(slope), np.repeat(means[:, None] / 2, 4, axis=1), rtol=2**-7)


def test_no_part_is_computed_twice_none_is_too_large_and_nothing_unasked_is_derived():
    seen = []

    def watched(part, weights, power):
        seen.append(len(part))
        return (jnp.sin(part) ** power).sum((1, 2))[None] @ weights, ()

    def loss(images, power):
        return parts.total(watched, images, power, size=3)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(IMAGES, 2.5))
    assert program.count("= sin") == 1 and program.count("= cos") == 1
    assert max(seen) == 3
    # Only the derivative in the power has a logarithm.
    assert "= log" not in program
    assert "= log" in str(jax.make_jaxpr(jax.grad(loss, argnums=1))(IMAGES, 2.5))


def test_devices_share_the_items_and_each_has_the_whole(float64):
    """7 items on 4 devices: two each, and nothing for the last one's second place."""

    def loss(*arguments):
        sums, facts = looked(*arguments, size=1, axis_name=parallel.AXIS)
        return sums.sum(), (sums, facts)

    def run(_):
        arguments = jnp.asarray(IMAGES), jnp.asarray(FACTORS), jnp.asarray(SCALE)
        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arguments)

    each, slopes = expected()
    gradients, (sums, facts) = jax.pmap(run, axis_name=parallel.AXIS, devices=jax.devices())(jnp.arange(4))
    for device in range(4):
        np.testing.assert_allclose(sums[device], each.sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(facts["squares"][device], each[:1] ** 2, rtol=1e-12)
        for gradient, slope in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(gradient[device], slope, rtol=1e-10)


@pytest.mark.parametrize("mode", ["jit", "pmap", "sharded"])
def test_a_sum_over_groups_is_the_same_in_every_mode(mode):
    """6 groups of two numbers on 4 devices: the value, and three steps down its gradient."""

    def some(groups, weights, shared):
        groups = parallel.divide(groups)
        values = parts.alone(lambda group: group[0] * (group[1] ** 3).sum(), groups, at_once=parallel.mesh_size())
        return (values * weights).sum(keepdims=True), ()

    def make(axis_name):
        def loss(x):
            groups = jnp.arange(6.0), x.reshape(6, 2)
            return parts.total(some, groups, (), size=parallel.mesh_size(), axis_name=axis_name)[0].sum()

        def update(x, data, frozen):
            value, gradient = jax.value_and_grad(loss)(x)
            return x - data * gradient, {"value": value}

        return update

    x = np.arange(12.0, dtype=np.float32) / 7
    end, metrics = parallel.compile_steps(make, steps=3, mode=mode)(jnp.asarray(x), jnp.float32(0.01), ())
    for value in metrics["value"]:
        np.testing.assert_allclose(value, (np.arange(6) * (x.reshape(6, 2) ** 3).sum(axis=1)).sum(), rtol=1e-6)
        x = x - 0.01 * 3 * np.repeat(np.arange(6), 2) * x**2
    np.testing.assert_allclose(end, x, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_the_sum_over_classes_and_its_gradients_are_those_of_a_closed_form(float64, at_once):
    """(1 + k) |tanh(mean of the class * s) - factor|^2, three classes k, two at once leaving one over."""
    images, factors, shared = RNG.normal(size=(3, 2, 4)), RNG.normal(size=3), RNG.normal(size=4)

    def distance(item, shared):
        images, factor, number = item
        return (1 + number) * jnp.sum((jnp.tanh(images.mean(axis=0) * shared) - factor) ** 2)

    def loss(images, factors, shared):
        return parts.sum_each(distance, (images, factors, jnp.arange(3)), shared, at_once=at_once)

    seen = np.tanh(images.mean(axis=1) * shared)
    gaps, strength = seen - factors[:, None], (1 + np.arange(3))[:, None]
    inner = 2 * strength * gaps * (1 - seen**2)
    slopes = (
        np.broadcast_to((inner * shared / 2)[:, None], images.shape),
        (-2 * strength * gaps).sum(axis=1),
        (inner * images.mean(axis=1)).sum(axis=0),
    )
    arguments = [jnp.asarray(leaf) for leaf in (images, factors, shared)]
    for wanted in (0, (0, 1, 2)):
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=wanted))(*arguments)
        assert float(value) == pytest.approx((strength * gaps**2).sum(), rel=1e-12)
        for gradient, slope in zip(gradients if wanted else [gradients], slopes, strict=False):
            np.testing.assert_allclose(gradient, slope, rtol=1e-10)


def test_one_at_a_time_runs_only_the_branch_that_was_drawn():
    def primitives(at_once):
        def choose(item):
            return jax.lax.cond(item > 1, jnp.sin, jnp.cos, item)

        return str(jax.make_jaxpr(functools.partial(parts.alone, choose, at_once=at_once))(jnp.ones(at_once)))

    assert "cond" in primitives(1) and "cond" not in primitives(2)


@pytest.mark.parametrize("size", [7, 3])
def test_means_are_those_of_numpy_and_items_and_frozen_are_constants(float64, size):
    def function(images, items, weights, shared, frozen):
        each = jnp.sin(images * shared).sum((1, 2)) * items + frozen * images.sum((1, 2))
        return each[None] @ weights, each[None]

    def loss(*arguments):
        sums, facts = parts.means(function, *arguments, size=size)
        return sums.sum() + facts.sum(), (sums, facts)

    arguments = [jnp.asarray(leaf) for leaf in (IMAGES, FACTORS, SCALE, 2.0)]
    gradients, (sums, facts) = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)
    each = FACTORS * np.sin(IMAGES * SCALE).sum((1, 2)) + 2 * IMAGES.sum((1, 2))
    np.testing.assert_allclose(sums, [each.mean()], rtol=1e-12)
    np.testing.assert_allclose(facts, each[None], rtol=1e-12)
    cosines = FACTORS[:, None, None] * np.cos(IMAGES * SCALE)
    np.testing.assert_allclose(gradients[0], (SCALE * cosines + 2) / 7, rtol=1e-10)
    np.testing.assert_allclose(gradients[2], (IMAGES * cosines).sum() / 7, rtol=1e-10)
    assert not np.asarray(gradients[1]).any() and float(gradients[3]) == 0


@pytest.mark.parametrize("size", [None, 1, 3, 7, 10, 50])
def test_sums_of_any_shape_add_up_to_the_whole_and_each_part_is_small(size):
    values, weights = RNG.normal(size=(10, 2)), np.arange(10.0)
    sizes = []

    def function(part):
        x, w = part
        sizes.append(len(x))
        return {"sum": w @ x, "count": w.sum()}

    total = parts.add_up(function, (jnp.asarray(values), jnp.asarray(weights)), size=size)
    np.testing.assert_allclose(total["sum"], weights @ values, rtol=1e-5)
    assert total["count"] == 45 and max(sizes) <= (size or 10)


def test_sums_of_any_shape_can_be_differentiated_and_mapped():
    x = jnp.arange(12.0).reshape(2, 6)
    slope = jax.vmap(jax.grad(lambda x: parts.add_up(lambda part: (part**3).sum(), x, size=4)))(x)
    np.testing.assert_allclose(slope, 3 * np.asarray(x) ** 2, rtol=1e-6)


def test_only_a_cpu_divides_unasked(monkeypatch):
    def divided():
        return "scan" in str(jax.make_jaxpr(lambda x: parts.add_up(jnp.sum, x))(jnp.ones(70)))

    assert divided()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not divided()
