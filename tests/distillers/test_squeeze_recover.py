"""SRe2L's recovery against hand numbers, and against a PyTorch program of the same facts (run here, or its numbers)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from metadd_jax import distillers, zoo

STILL = {"crop": False, "flip": False, "roll": (0, 0)}


class TwoNorms(nn.Module):
    """Batch norm, times two, batch norm, mean over space: as many channels as classes."""

    @nn.compact
    def __call__(self, x, *, train):
        for index, factor in enumerate((2.0, 1.0)):
            x = factor * nn.BatchNorm(use_running_average=not train, name=f"norm{index}")(x)
        x = x.mean((1, 2))
        return x, {"embedding": x}


@pytest.fixture(scope="module")
def toy():
    """A teacher whose batch norms change nothing, with stored statistics chosen for whole-numbered distances."""
    net = zoo.Architecture("toy", "toy", TwoNorms(), 2, (1, 2, 2))
    means, variances = np.array([[1.0, -2.0], [3.0, -8.0]]), np.array([[2.0, 2.0], [12.0, 9.0]])
    scales = np.sqrt(variances + 1e-5)
    names = ("norm0", "norm1")
    variables = {
        "params": {n: {"scale": s, "bias": m} for n, s, m in zip(names, scales, means, strict=True)},
        "batch_stats": {n: {"mean": m, "var": v} for n, m, v in zip(names, means, variances, strict=True)},
    }
    return net, jax.tree.map(jnp.float32, variables)


def loss_of(method, images, seed=0):
    images = {"images": jnp.asarray(images, jnp.float32)}
    return jax.jit(method.loss)(jax.random.key(seed), images, (), (), method.frozen)


def test_the_loss_of_a_hand_example(toy):
    """Channels (1, 3, 5, 7) and (0, 2, 0, 6): means 4 and 2, biased variances 5 and 6; twice that at the second norm.

    Distances: first norm |(3, 4)| + |(3, 4)| = 10, times 10; second |(5, 12)| + |(8, 15)| = 30. Logits (4, 2) of class
    0 and (12, 6) of class 1.
    """
    images = np.array([[[[1, 0], [3, 2]]], [[[5, 0], [7, 6]]]])
    value, (_, metrics) = loss_of(distillers.sre2l(*toy, ipc=1, **STILL), images)
    entropy = (np.log1p(np.exp(-2)) + np.log1p(np.exp(6))) / 2
    assert float(metrics["statistics"]) == pytest.approx(130, rel=1e-5)
    assert float(metrics["cross_entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(value) == pytest.approx(entropy + 1.3, rel=1e-5)
    other = distillers.sre2l(*toy, ipc=1, r_bn=0.5, first_multiplier=2, **STILL)
    assert float(loss_of(other, images)[0]) == pytest.approx(entropy + 25, rel=1e-5)


def test_variation_and_norm_of_the_images(toy):
    images = np.random.default_rng(0).normal(size=(2, 1, 2, 2))
    plain, tv, l2 = (
        float(loss_of(distillers.sre2l(*toy, ipc=1, **STILL, **settings), images)[0])
        for settings in ({}, {"tv": 0.5}, {"l2": 0.5})
    )
    assert tv - plain == pytest.approx(0.5 * np.linalg.norm(images[:, :, 1] - images[:, :, 0]), rel=1e-4)
    assert l2 - plain == pytest.approx(0.5 * np.linalg.norm(images.reshape(2, -1), axis=1).mean(), rel=1e-4)


def test_statistics_that_agree_exactly_leave_a_finite_gradient(toy):
    net, variables = toy
    stats = {"norm0": {"mean": jnp.zeros(2), "var": jnp.zeros(2)}, "norm1": variables["batch_stats"]["norm1"]}
    method = distillers.sre2l(net, {**variables, "batch_stats": stats}, ipc=1, tv=1.0, l2=1.0, **STILL)
    slope = jax.grad(lambda x: loss_of(method, x)[0])(jnp.zeros((2, 1, 2, 2)))
    assert np.isfinite(slope).all()


def test_the_gradient_in_the_teacher_is_the_true_one(toy):
    """By finite differences in float64, although the images' gradient is taken group by group."""
    net, variables = toy
    rng = np.random.default_rng(3)
    with jax.enable_x64():
        images, variables = jnp.asarray(rng.normal(size=(4, 1, 2, 2))), jax.tree.map(jnp.float64, variables)
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables)
        method = distillers.sre2l(net, variables, ipc=2, **STILL)
        loss = jax.jit(lambda teacher: method.loss(jax.random.key(0), {"images": images}, (), (), teacher)[0])
        moved = lambda h: float(loss(jax.tree.map(lambda leaf, way: leaf + h * way, variables, direction)))  # noqa: E731
        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
        slope = jax.tree.map(lambda leaf, way: float((leaf * way).sum()), jax.jit(jax.grad(loss))(variables), direction)
    assert sum(jax.tree.leaves(slope)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher("convnet_bn:width=4,depth=2", 5)


def make_teacher(spec, classes):
    """Weights and statistics from a frozen NumPy stream, so that numbers can be stored."""
    net = zoo.parse(spec, classes, (8, 8, 3))
    rng = np.random.RandomState(0)
    variables = jax.eval_shape(net.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten_with_path(variables)
    values = [
        (np.exp(rng.randn(*leaf.shape)) if path[-1].key == "var" else rng.randn(*leaf.shape) / 2).astype(np.float32)
        for path, leaf in leaves
    ]
    return net, jax.tree.unflatten(structure, [jnp.asarray(value) for value in values])


@functools.partial(jax.jit, static_argnums=0)
def group_loss(net, variables, images, labels):
    logits, layers = zoo.batch_norm_inputs(net, variables, images)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    distances = [
        jnp.linalg.norm(layer.mean - layer.running_mean) + jnp.linalg.norm(layer.variance - layer.running_variance)
        for layer in layers
    ]
    return entropy + 0.01 * (10 * distances[0] + sum(distances[1:]))


def test_a_pass_leaves_out_classes_that_have_had_all_of_their_images(teacher):
    """Classes of 2, 1, 3, 1 and 1 images in groups of at most 2: five, two and one class have images left."""
    counts, images = (2, 1, 3, 1, 1), np.random.default_rng(1).normal(size=(8, 8, 8, 3)).astype(np.float32)
    groups = [[(0, 0), (1, 2)], [(2, 3), (3, 6)], [(4, 7)], [(0, 1), (2, 4)], [(2, 5)]]  # (class, place in the set)
    expected = sum(
        group_loss(*teacher, images[[place for _, place in group]], np.array([label for label, _ in group]))
        for group in groups
    )
    method = distillers.sre2l(*teacher, ipc=counts, group_size=2, **STILL)
    value, (_, metrics) = loss_of(method, images)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["cross_entropy"] + 0.01 * metrics["statistics"]) == pytest.approx(
        float(expected) / 5, rel=1e-4
    )
    np.testing.assert_array_equal(
        method.decode({"images": images}, (), method.frozen).labels, np.repeat(range(5), counts)
    )


def test_groups_hold_different_classes_of_one_pass_and_add_up(teacher):
    """5 classes in groups of at most 2, class-major: {0, 1}, {2, 3}, {4} of the first and second images."""
    images = np.random.default_rng(1).normal(size=(10, 8, 8, 3)).astype(np.float32)
    parts = [(0, 1), (2, 3), (4,)]
    expected = sum(
        group_loss(*teacher, images[[2 * label + number for label in part]], np.array(part))
        for number in (0, 1)
        for part in parts
    )
    value, _ = loss_of(distillers.sre2l(*teacher, ipc=2, group_size=2, **STILL), images)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    whole, _ = loss_of(distillers.sre2l(*teacher, ipc=2, **STILL), images)
    together = sum(group_loss(*teacher, images[number::2], np.arange(5)) for number in (0, 1))
    assert float(whole) == pytest.approx(float(together), rel=1e-5)
    # Two of a class and four in all: {0, 1}, {2, 3}, {4} with their first and second images.
    both = sum(
        group_loss(*teacher, images[[2 * label + number for number in (0, 1) for label in part]], np.array(part * 2))
        for part in parts
    )
    pairs = distillers.sre2l(*teacher, ipc=2, group_size=4, group_ipc=2, **STILL)
    assert float(loss_of(pairs, images)[0]) == pytest.approx(float(both), rel=1e-5)


@pytest.mark.parametrize("view", [{"crop": True}, {"flip": True}, {"roll": (0, 7)}])
def test_each_group_has_one_view_of_its_own(teacher, view):
    """Two passes of the same images: without views they get the same gradient, with views another at times."""
    images = np.repeat(np.random.default_rng(1).normal(size=(5, 8, 8, 3)), 2, axis=0)

    def differences(settings):
        method = distillers.sre2l(*teacher, ipc=2, **settings)
        slope_of = jax.jit(jax.grad(lambda x, key: method.loss(key, {"images": x}, (), (), method.frozen)[0]))
        slopes = (slope_of(jnp.float32(images), jax.random.key(seed)) for seed in range(4))
        return [np.abs(slope[::2] - slope[1::2]).max() for slope in slopes]

    assert max(differences(STILL)) < 1e-7
    assert max(differences(STILL | view)) > 1e-4


def test_memory_is_that_of_one_group_and_of_the_set():
    net = zoo.parse("convnet_bn:width=32,depth=1", 5, (16, 16, 3))

    def scratch(ipc):
        method = distillers.sre2l(net, net.init(jax.random.key(0)), ipc=ipc, **STILL)
        images = {"images": jnp.zeros((5 * ipc, 16, 16, 3))}
        step = jax.jit(jax.grad(method.loss, argnums=1, has_aux=True))
        compiled = step.lower(jax.random.key(0), images, (), (), method.frozen).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    image = 16 * 16 * 3 * 4
    assert scratch(20) - scratch(4) < 4 * image * 5 * 16  # twice the images; with all activations kept, 13 times


def test_the_optimiser_is_adam_with_a_cosine_to_zero():
    tx = distillers.recover_optimiser(0.25, 6, [0.4], [1e-6])  # pixels so far away that nothing is clipped
    gradients = [1.0, -2.0, 0.5, 3.0, 1.0, 1.0, 5.0]
    x, m, v, state, expected = jnp.zeros((1,)), 0.0, 0.0, None, 0.0
    state = tx.init(x)
    for t, gradient in enumerate(gradients):
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        rate = 0.25 * 0.5 * (1 + np.cos(np.pi * min(t, 6) / 6))  # the rate after the last step is 0, not half
        expected -= rate * (m / (1 - 0.5 ** (t + 1))) / (np.sqrt(v / (1 - 0.9 ** (t + 1))) + 1e-8)
        updates, state = tx.update(jnp.full((1,), gradient), state, x)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(x, [expected], rtol=1e-5)
    np.testing.assert_array_equal(updates, [0.0])


def test_pixels_stay_in_the_range_of_a_picture():
    tx = distillers.recover_optimiser(1.0, 10, [0.4, 0.5], [0.2, 0.25])
    x = jnp.array([[9.0, -9.0], [2.9, -1.9], [0.0, 0.0]])[:, None, None]
    x = {"images": x, "latents": {"style": jnp.full((3, 2), 50.0)}}
    slope = jnp.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])[:, None, None]
    updates, _ = tx.update({"images": slope, "latents": {"style": jnp.ones((3, 2))}}, tx.init(x), x)
    moved = optax.apply_updates(x, updates)
    np.testing.assert_allclose(moved["images"][:, 0, 0], [[3.0, -2.0], [3.0, -2.0], [-1.0, 1.0]], rtol=1e-5)
    np.testing.assert_allclose(moved["latents"]["style"], 49.0, rtol=1e-5)  # no picture, so no range


def test_the_start_is_noise_of_the_right_shape(tiny, key):
    teacher = make_tiny_teacher()
    method = distillers.sre2l(*teacher, ipc=100)
    images = np.asarray(method.init(key, tiny)[0]["images"])
    assert images.shape == (300, 8, 8, 1)
    assert abs(images.mean()) < 0.03 and images.std() == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match=r"takes \(8, 8, 3\) images of 5 classes, but tiny has \(8, 8, 1\) and 3"):
        distillers.sre2l(*make_teacher("convnet_bn:width=4,depth=1", 5), ipc=1).init(key, tiny)


def make_tiny_teacher():
    net = zoo.parse("convnet_bn:width=4,depth=1", 3, (8, 8, 1))
    return net, net.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ipc": 0}, "ipc=0"),
        ({"group_size": 0}, "group_size=0"),
        ({"r_bn": -1.0}, "r_bn=-1.0"),
        ({"ipc": 3, "group_ipc": 2}, "group_ipc=2 must divide ipc=3"),
        ({"ipc": 4, "group_ipc": 4, "group_size": 2}, "at most group_size=2"),
        ({"roll": (3, 1)}, r"roll=\(3, 1\) must be two whole numbers"),
    ],
)
def test_bad_settings_are_refused(teacher, settings, message):
    with pytest.raises(ValueError, match=message):
        distillers.sre2l(*teacher, **{"ipc": 1} | settings)


def test_a_teacher_without_batch_norm_is_refused():
    net = zoo.parse("convnet:width=4,depth=1", 3, (8, 8, 1))
    with pytest.raises(ValueError, match=r"convnet:width=4,depth=1 has no batch-norm statistics.*resnet18_bn"):
        distillers.sre2l(net, net.init(jax.random.key(0)), ipc=1)


# One pass is one group of all 5 classes; a roll of exactly one pixel down and right.
MEAN, STD, STEPS = (0.5, 0.4, 0.45), (0.25, 0.2, 0.22), 3
START = np.random.RandomState(1).randn(10, 8, 8, 3).astype(np.float32)
STORED = {  # what torch_recovered gave with torch 2.13
    "losses": [6.272735, 5.275244, 4.861240],
    "slope": {(0, 2, 3): [0.00492443, 0.00236044, 0.00575289], (9, 7, 0): [-0.00219905, -0.00176471, -0.00147339]},
    "slope_sum": 5.2443466,
    "images": {(4, 5, 5): [1.2166934, -0.6282658, -0.3025332]},
    "range": ([-2.0, -1.9347177, -1.899454], [2.0, 2.7908607, 2.3937025]),
}


def recovered(teacher):
    """Losses [STEPS], the first gradient and the images after STEPS updates."""
    method = distillers.sre2l(*teacher, ipc=2, **STILL | {"roll": (1, 1)})
    tx = distillers.recover_optimiser(0.25, 4, MEAN, STD)
    images = {"images": jnp.asarray(START)}
    state, losses, slopes = tx.init(images), [], []
    step = jax.jit(
        lambda x, key: jax.value_and_grad(method.loss, argnums=1, has_aux=True)(key, x, (), (), method.frozen)
    )
    for number in range(STEPS):
        (value, _), slope = step(images, jax.random.key(number))
        losses.append(float(value))
        slopes.append(np.asarray(slope["images"]))
        updates, state = tx.update(slope, state, images)
        images = optax.apply_updates(images, updates)
    return losses, slopes[0], np.asarray(images["images"])


def torch_recovered(teacher):
    """The same, pass by pass, with forward hooks on PyTorch's own batch norm and Adam."""
    torch = pytest.importorskip("torch")
    params, stats = (jax.tree.map(np.asarray, teacher[1][name]) for name in ("params", "batch_stats"))
    layers = []
    for index, channels in ((1, 3), (2, 4)):
        conv, norm = torch.nn.Conv2d(channels, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        conv.weight.data = torch.tensor(params[f"conv{index}"]["kernel"].transpose(3, 2, 0, 1).copy())
        conv.bias.data = torch.tensor(params[f"conv{index}"]["bias"])
        norm.weight.data, norm.bias.data = (torch.tensor(params[f"norm{index}"][name]) for name in ("scale", "bias"))
        norm.running_mean, norm.running_var = (torch.tensor(stats[f"norm{index}"][name]) for name in ("mean", "var"))
        layers += [conv, norm, torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    trunk = torch.nn.Sequential(*layers).eval().requires_grad_(False)
    distances = []

    def measure(norm, inputs, _):
        rows = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = rows.mean(1), rows.var(1, unbiased=False)
        distances.append((variance - norm.running_var).norm() + (mean - norm.running_mean).norm())

    for layer in trunk:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(measure)
    kernel, bias = torch.tensor(params["head"]["kernel"]), torch.tensor(params["head"]["bias"])
    low = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1)
    high = torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1)
    losses, first, last = np.zeros(STEPS), np.zeros_like(START), np.zeros_like(START)
    for number in (0, 1):
        x = torch.tensor(START[number::2].transpose(0, 3, 1, 2).copy(), requires_grad=True)
        adam = torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = 0.25 * 0.5 * (1 + np.cos(np.pi * step / 4))
            distances.clear()
            features = trunk(torch.roll(x, (1, 1), (2, 3))).permute(0, 2, 3, 1).flatten(1)
            entropy = torch.nn.functional.cross_entropy(features @ kernel + bias, torch.arange(5))
            loss = entropy + 0.01 * (10 * distances[0] + distances[1])
            adam.zero_grad()
            loss.backward()
            losses[step] += loss.item()
            if step == 0:
                first[number::2] = x.grad.numpy().transpose(0, 2, 3, 1)
            adam.step()
            with torch.no_grad():
                x.copy_(torch.minimum(torch.maximum(x, low), high))
        last[number::2] = x.detach().numpy().transpose(0, 2, 3, 1)
    return losses, first, last


def test_recovery_is_that_of_pytorch(teacher):
    for own, other in zip(recovered(teacher), torch_recovered(teacher), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_recovery_gives_the_stored_numbers_of_pytorch(teacher):
    losses, slope, images = recovered(teacher)
    np.testing.assert_allclose(losses, STORED["losses"], rtol=1e-5)
    for place, expected in STORED["slope"].items():
        np.testing.assert_allclose(slope[place], expected, rtol=1e-3)
    assert np.abs(slope).sum() == pytest.approx(STORED["slope_sum"], rel=1e-4)
    for place, expected in STORED["images"].items():
        np.testing.assert_allclose(images[place], expected, rtol=1e-3)
    np.testing.assert_allclose((images.min((0, 1, 2)), images.max((0, 1, 2))), STORED["range"], rtol=1e-3)
