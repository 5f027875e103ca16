"""The matrix-product convolution against XLA's, and against a loop in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax.zoo import convolution, patches

# side of the kernel, stride, padding, height, width
CASES = [
    (3, 1, 1, 7, 6),
    (3, 1, 1, 2, 3),  # small maps go another way on CPU
    (3, 2, 1, 7, 8),
    (3, 1, 3, 5, 5),
    (5, 1, 2, 6, 9),
    (5, 1, 0, 7, 5),
    (5, 2, 4, 9, 7),
    (2, 2, 0, 7, 5),  # windows side by side, remainder dropped
    (4, 4, 0, 8, 12),
    (2, 2, 1, 5, 6),
    (1, 1, 0, 4, 3),
    (1, 2, 0, 5, 4),
]


# Few channels and many go different ways on CPU.
@pytest.mark.parametrize(("channels", "features"), [(3, 4), (3, 16), (9, 4), (9, 16), (8, 80)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_xla(case, channels, features):
    side, stride, padding, height, width = case
    generator = np.random.default_rng(0)  # JAX would compile a program for each of these shapes
    images = generator.normal(size=(2, height, width, channels)).astype(np.float32)
    kernel = np.float32(generator.normal(size=(side, side, channels, features)) / np.sqrt(channels))
    rows = patches.output_side(height, side, stride=stride, padding=padding)
    columns = patches.output_side(width, side, stride=stride, padding=padding)
    cotangent = generator.normal(size=(2, rows, columns, features)).astype(np.float32)

    @jax.jit
    def results(images, kernel, cotangent):
        def both(function):
            value, pull = jax.vjp(lambda *a: function(*a, stride=stride, padding=padding), images, kernel)
            return value, pull(cotangent)

        return both(convolution.convolve), both(convolution.xla_convolve)

    ours, theirs = results(images, kernel, cotangent)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def looped(images, kernel, stride, padding):
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    side = len(kernel)
    rows, columns = ((n - side) // stride + 1 for n in padded.shape[1:3])
    result = np.zeros((len(images), rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            top, left = stride * row, stride * column
            window = padded[:, top : top + side, left : left + side]
            result[:, row, column] = np.einsum("bijc,ijco->bo", window, kernel)
    return result


def test_values_equal_a_loop_over_windows():
    generator = np.random.default_rng(0)
    images, kernel = generator.normal(size=(2, 5, 6, 2)), generator.normal(size=(3, 3, 2, 3))
    result = convolution.convolve(jnp.float32(images), jnp.float32(kernel), stride=2, padding=1)
    np.testing.assert_allclose(result, looped(images, kernel, 2, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("together", [1, 2, 3, 5])  # of five places in a row: evenly, and with some left over
@pytest.mark.parametrize(("width", "stride", "padding"), [(7, 1, 0), (5, 1, 1), (9, 2, 1)])
def test_places_that_share_a_patch_equal_a_loop_over_windows(width, stride, padding, together):
    generator = np.random.default_rng(0)
    images, kernel = generator.normal(size=(2, 6, width, 2)), generator.normal(size=(3, 3, 2, 3))
    expected = looped(images, kernel, stride, padding)
    assert expected.shape[2] == 5
    sizes = {"stride": stride, "padding": padding, "together": together}
    result = jax.jit(functools.partial(convolution.joint_convolve, **sizes))(np.float32(images), np.float32(kernel))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def backend(request, monkeypatch):
    """The ways of a CPU, and those of accelerators computed on this CPU: a GPU's few images are products."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("stride", "padding", "features"), [(1, 1, 3), (2, 1, 3), (1, 0, 16)])
def test_second_order_gradients_equal_xla(key, backend, stride, padding, features):
    """What trajectory and gradient matching need: the gradient of a function of both gradients."""
    images = jax.random.normal(key, (2, 5, 6, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, features))

    def outer(function, images, kernel):
        def inner(images, kernel):
            return jnp.sum(jnp.tanh(function(images, kernel, stride=stride, padding=padding)))

        return sum(jnp.sum(slope**3) for slope in jax.grad(inner, argnums=(0, 1))(images, kernel))

    ours, theirs = jax.jit(
        lambda *arguments: tuple(
            jax.grad(lambda *a, f=function: outer(f, *a), argnums=(0, 1))(*arguments)
            for function in (convolution.convolve, convolution.xla_convolve)
        )
    )(images, kernel)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def work(jaxpr):
    """Multiplications of all convolutions, those with the zeros of a padded image too: a library does not skip them."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "convolution_product":  # what it is made of
            body = functools.partial(convolution._compute, **eqn.params)
            total += work(jax.make_jaxpr(body)(*(jnp.zeros(v.aval.shape) for v in eqn.invars)).jaxpr)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            total += eqn.outvars[0].aval.size * kernel.size // kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            total += work(inner.jaxpr) if hasattr(inner, "jaxpr") else 0
    return total


def test_the_derivative_of_a_kernels_gradient_is_made_of_small_kernels(monkeypatch):
    """JAX's own has a kernel as large as the image, on an image padded to as much again."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    images, kernel = jnp.ones((4, 16, 16, 8)), jnp.ones((3, 3, 8, 8))

    def cost(function):
        def matched(images):
            slope = jax.grad(lambda kernel: jnp.sum(function(images, kernel, padding=1) ** 2))(kernel)
            return jnp.sum(slope**3)

        return work(jax.make_jaxpr(jax.grad(matched))(images).jaxpr)

    forward = 4 * 16 * 16 * 9 * 8 * 8
    # Forward, the kernel's gradient, and the derivatives of both in images and outward gradient: at most 8.
    assert 4 * forward <= cost(convolution.convolve) <= 8 * forward
    assert cost(convolution.xla_convolve) > 30 * forward


@pytest.mark.parametrize("stride", [1, 2])
def test_a_few_images_at_a_time_give_the_same_gradients(key, monkeypatch, stride):
    """Seven images in rounds of two, the last filled up; first and second order, alone and under vmap."""
    monkeypatch.setattr(convolution, "_PATCH_ELEMENTS", 1)
    monkeypatch.setattr(convolution, "_LEAST_ROWS", 2 * (36 // stride**2))
    images = jax.random.normal(key, (2, 7, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))

    def outer(function, images):
        def inner(kernel):
            return jnp.sum(jnp.tanh(function(images, kernel, stride=stride, padding=1)))

        slope = jax.grad(inner)(kernel)
        return jnp.sum(slope**3), slope

    ours, theirs = (
        jax.jit(jax.vmap(jax.grad(lambda x, f=function: outer(f, x), has_aux=True)))(images)
        for function in (convolution.convolve, convolution.xla_convolve)
    )
    assert "while" in jax.jit(lambda x: outer(convolution.convolve, x)[1]).lower(images[0]).as_text()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


def test_vmap_over_kernels_equals_one_by_one(key, backend):
    images = jax.random.normal(key, (3, 2, 6, 6, 2))
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 4))
    together = jax.vmap(lambda x, k: convolution.convolve(x, k, padding=1))(images, kernels)
    for index in range(3):
        alone = convolution.xla_convolve(images[index], kernels[index], padding=1)
        np.testing.assert_allclose(together[index], alone, rtol=1e-5, atol=1e-5)


def test_vmap_over_images_or_kernels_alone_and_its_gradient(key, backend):
    images = jax.random.normal(key, (3, 2, 6, 6, 2))
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 4))

    def total(function, images, kernel):
        return jnp.sum(jnp.sin(function(images, kernel, padding=1)))

    each = ((0, None), (images, kernels[0])), ((None, 0), (images[0], kernels)), ((0, 0), (images, kernels))
    for axes, arguments in each:
        ours, theirs = (
            jax.jit(jax.vmap(jax.grad(lambda x, k, f=function: total(f, x, k), argnums=(0, 1)), in_axes=axes))(
                *arguments
            )
            for function in (convolution.convolve, convolution.xla_convolve)
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_only_the_cpu_goes_its_own_way(monkeypatch):
    images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))

    def program():
        gradient = jax.grad(lambda k: convolution.convolve(images, k).sum())
        return jax.jit(gradient).lower(kernel).as_text()

    assert "convolution(" not in program()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.clear_caches()
    assert "convolution(" in program()


def test_networks_at_once_have_products_and_one_has_convolutions(monkeypatch):
    """What an accelerator would run: of one network, of its images mapped, and of several kernels, with gradients."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    images, kernels = jnp.ones((3, 2, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2))

    def total(images, kernel):
        return convolution.convolve(images, kernel, padding=1).sum()

    def program(axes, *arguments):
        slopes = jax.vmap(jax.grad(total, argnums=(0, 1)), in_axes=axes) if axes else jax.grad(total, argnums=(0, 1))
        return jax.jit(slopes).lower(*arguments).as_text()

    assert "dot_general" not in program(None, images[0], kernels[0])
    assert "convolution(" not in program((0, 0), images, kernels)
    of_images = jax.jit(jax.vmap(total, in_axes=(0, None))).lower(images, kernels[0]).as_text()
    assert "dot_general" not in of_images and "feature_group_count = 1" in of_images


@pytest.mark.parametrize(
    ("backend_of", "images", "side", "products"),
    [
        ("gpu", (1, 40, 40, 128), 3, True),  # patches of 40 * 40 * 9 * 128 * 4 = 7.4 million bytes
        ("gpu", (2, 40, 40, 128), 3, False),
        ("tpu", (1, 4, 4, 2), 3, False),
        ("gpu", (50, 40, 40, 128), 1, True),
        ("tpu", (50, 40, 40, 128), 1, True),
    ],
)
def test_few_images_on_a_gpu_and_single_pixels_are_products(monkeypatch, backend_of, images, side, products):
    monkeypatch.setattr(jax, "default_backend", lambda: backend_of)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (images, (side, side, images[-1], 2))]

    def program(function, *arguments):
        return jax.jit(function).lower(*arguments).as_text()

    convolve = functools.partial(convolution.convolve, padding=side // 2)
    assert ("dot_general" in program(convolve, *shapes)) == products
    # Images of several classes are one batch, mapped or not.
    mapped = jax.ShapeDtypeStruct((2, *images), jnp.float32)
    assert ("dot_general" in program(jax.vmap(convolve, in_axes=(0, None)), mapped, shapes[1])) == (side == 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_forward_mode_and_mixed_second_derivatives_agree_with_finite_differences(key, backend, stride):
    """In float64: jvp, jvp of the gradient (a Hessian times a vector), and under vmap over kernels or images."""
    with jax.enable_x64():
        images, kernel, *directions = (
            jax.random.normal(k, shape, jnp.float64)
            for k, shape in zip(jax.random.split(key, 4), [(2, 5, 6, 2), (3, 3, 2, 3)] * 2, strict=True)
        )

        def bent(images, kernel):
            return jnp.sum(jnp.tanh(convolution.convolve(images, kernel, stride=stride, padding=1)))

        def differences(function):
            ahead, behind = (function(images + s * directions[0], kernel + s * directions[1]) for s in (1e-6, -1e-6))
            return jax.tree.map(lambda a, b: (a - b) / 2e-6, ahead, behind)

        for function in (jax.jit(bent), jax.jit(jax.grad(bent, argnums=(0, 1)))):
            slope = jax.jvp(function, (images, kernel), tuple(directions))[1]
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), slope, differences(function)
            )
        # Two kernels and one batch: a derivative in the batch is the sum of both.
        kernels = jnp.stack([kernel, 2 * kernel])
        together = jax.jit(jax.grad(lambda x: jax.vmap(bent, in_axes=(None, 0))(x, kernels).sum()))(images)
        alone = sum(jax.jit(jax.grad(bent))(images, own) for own in kernels)
        np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)
