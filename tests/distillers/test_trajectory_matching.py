"""MTT and TESLA: exact gradients in float64, TESLA's approximation measured, the student's and the experts' order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import augment, distillers, invariant, zoo
from metadd_jax.distillers.student import chunk_indices, step_gradient
from metadd_jax.training.trajectories import flatten, unflatten

SHAPE = (8, 8, 1)
NET = zoo.parse("mlp:width=8", 3, SHAPE)  # compiles fast; a ConvNet takes its place where convolutions matter
CONV = zoo.parse("convnet:width=4,depth=1", 3, SHAPE)
SETTINGS = {
    "ipc": 2, "syn_steps": 4, "expert_epochs": 2, "max_start_epoch": 2, "lr_teacher": 0.2, "augmentation": "none",
}  # fmt: skip


def made_experts(net=NET, count=3, epochs=3):
    """Networks that drift: a random walk from an initialisation, [E, T + 1, P]."""
    starts = np.stack([flatten(jax.jit(net.init)(jax.random.key(e))["params"]) for e in range(count)])
    steps = np.random.default_rng(0).normal(0, 0.02, (count, epochs, starts.shape[1]))
    return np.concatenate([starts[:, None], starts[:, None] + np.cumsum(steps, axis=1)], axis=1).astype(np.float32)


EXPERTS = made_experts()


def make(method=distillers.mtt, net=NET, experts=EXPERTS, **settings):
    return method(net, experts, **SETTINGS | settings)


def aux_of(expert=1, start=1):
    return {"expert": jnp.int32(expert), "start": jnp.int32(start)}


def synthetic_of(seed=0, lr=0.2, raw=False):
    images = np.random.default_rng(seed).normal(size=(6, *SHAPE))
    return {"images": jnp.asarray(images), **({"lr": jnp.asarray(lr)} if raw else {"log_lr": jnp.log(lr)})}


def value_and_gradient(method, synthetic, seed=2, aux=None, experts=EXPERTS):
    frozen = jnp.asarray(experts, synthetic["images"].dtype)
    loss = lambda s: method.loss(jax.random.key(seed), s, aux or aux_of(), (), frozen)[0]  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(synthetic)


def cosine(a, b):
    a, b = np.ravel(a), np.ravel(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ("net", "raw", "augmentation", "batch_syn"), [(NET, True, "none", None), (CONV, False, "scale_flip", 4)]
)
def test_the_gradient_is_exact(net, raw, augmentation, batch_syn):
    """Along random directions of images and step size it is what finite differences of the loss say, in float64."""
    with jax.enable_x64():
        experts = made_experts(net)
        method = make(net=net, experts=experts, raw_lr=raw, augmentation=augmentation, batch_syn=batch_syn)
        synthetic, frozen = synthetic_of(raw=raw), jnp.asarray(experts, jnp.float64)
        loss = jax.jit(lambda s: method.loss(jax.random.key(2), s, aux_of(), (), frozen)[0])
        gradient = jax.jit(jax.grad(loss))(synthetic)
        for name, leaf in synthetic.items():
            direction = np.random.default_rng(1).normal(size=leaf.shape)
            ahead, behind = (float(loss({**synthetic, name: leaf + h * direction})) for h in (1e-6, -1e-6))
            expected = (ahead - behind) / 2e-6
            assert abs(expected) > 1e-4
            assert float((gradient[name] * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_checkpoints_change_memory_and_nothing_else():
    synthetic, aux = jax.tree.map(jnp.float32, synthetic_of()), aux_of()
    results, sizes = [], []
    for checkpoint in (True, False):
        method = make(syn_steps=12, checkpoint=checkpoint, augmentation="flip")
        loss = lambda s, f, m=method: m.loss(jax.random.key(2), s, aux, (), f)[0]  # noqa: E731
        compiled = jax.jit(jax.value_and_grad(loss)).lower(synthetic, EXPERTS).compile()
        results.append(compiled(synthetic, EXPERTS))
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    (value, gradient), (other_value, other) = results
    assert float(value) == pytest.approx(float(other_value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, other)
    assert sizes[0] < 0.6 * sizes[1]


def test_the_loss_is_relative_to_the_distance_of_the_experts():
    """A student that stands still keeps all of the distance; one that lands on the target none."""
    still = value_and_gradient(make(raw_lr=True), synthetic_of(lr=0.0, raw=True))[0]
    assert float(still) == pytest.approx(1.0, rel=1e-6)
    synthetic, method = synthetic_of(), make(syn_steps=1)
    theta = EXPERTS[1, 1]

    def cross_entropy(params):
        logits, _ = NET.apply({"params": params}, synthetic["images"].astype(jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.repeat(jnp.arange(3), 2)).mean()

    landed = EXPERTS.copy()
    landed[1, 3] = theta - 0.2 * flatten(jax.jit(jax.grad(cross_entropy))(unflatten(NET, jnp.asarray(theta))))
    assert float(value_and_gradient(method, synthetic, experts=landed)[0]) < 1e-9


def test_tesla_is_mtt_for_one_step_and_the_code_loses_a_factor_2():
    synthetic = jax.tree.map(jnp.float32, synthetic_of())
    exact, paper, code = (
        value_and_gradient(make(method, syn_steps=1, **settings), synthetic)
        for method, settings in [(distillers.mtt, {}), (distillers.tesla, {}), (distillers.tesla, {"variant": "code"})]
    )
    for value, gradient in (paper, code):
        assert float(value) == pytest.approx(float(exact[0]), rel=1e-5)
        np.testing.assert_allclose(gradient["log_lr"], exact[1]["log_lr"], rtol=1e-4)
    scale = np.abs(exact[1]["images"]).max()
    np.testing.assert_allclose(paper[1]["images"], exact[1]["images"], rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(2 * code[1]["images"], exact[1]["images"], rtol=1e-3, atol=1e-5 * scale)


def test_tesla_is_the_gradient_with_the_way_held_fixed():
    """Finite differences of |theta_0 - alpha sum_i g_i(images; theta_i fixed) - target|^2 / D, in float64."""
    with jax.enable_x64():
        method, synthetic = make(distillers.tesla, syn_steps=3), synthetic_of()
        experts = jnp.asarray(EXPERTS, jnp.float64)
        start, target, labels = experts[1, 1], experts[1, 3], jnp.repeat(jnp.arange(3), 2)

        @jax.jit
        def slope(theta, images):
            def cross_entropy(theta):
                logits, _ = NET.apply({"params": unflatten(NET, theta)}, images)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            return jax.grad(cross_entropy)(theta)

        way = [start]
        for _ in range(3):
            way.append(way[-1] - 0.2 * slope(way[-1], synthetic["images"]))

        def frozen_way(images, alpha):
            end = start - alpha * sum(slope(theta, images) for theta in way[:3])
            return float(jnp.sum((end - target) ** 2) / jnp.sum((start - target) ** 2))

        value, gradient = value_and_gradient(method, synthetic)
        assert float(value) == pytest.approx(frozen_way(synthetic["images"], 0.2), rel=1e-9)
        direction = np.random.default_rng(1).normal(size=synthetic["images"].shape)
        ahead, behind = (frozen_way(synthetic["images"] + h * direction, 0.2) for h in (1e-6, -1e-6))
        assert float((gradient["images"] * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)
        ahead, behind = (frozen_way(synthetic["images"], 0.2 + h) for h in (1e-6, -1e-6))
        assert float(gradient["log_lr"]) == pytest.approx(0.2 * (ahead - behind) / 2e-6, rel=1e-5)


def test_the_gradient_in_soft_labels_is_exact_for_one_step_and_experts_are_constants():
    with jax.enable_x64():
        method, experts = make(distillers.tesla, syn_steps=1, soft_labels=True), jnp.asarray(EXPERTS, jnp.float64)
        labels = jax.nn.softmax(jnp.asarray(np.random.default_rng(1).normal(size=(6, 3))))

        @jax.jit
        def loss(labels, experts):
            aux = aux_of() | {"soft_labels": labels}
            return method.loss(jax.random.key(2), synthetic_of(), aux, (), experts)[0]

        to_labels, to_experts = jax.jit(jax.grad(loss, argnums=(0, 1)))(labels, experts)
        direction = np.random.default_rng(2).normal(size=labels.shape)
        ahead, behind = (float(loss(labels + h * direction, experts)) for h in (1e-6, -1e-6))
        assert float((to_labels * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)
        np.testing.assert_array_equal(to_experts, 0.0)


@pytest.mark.parametrize("steps", [10, 50])
def test_tesla_only_approximates_more_steps(steps):
    """The value is MTT's, the direction of the images' gradient near it but not it (prints the cosine)."""
    synthetic = jax.tree.map(jnp.float32, synthetic_of(lr=0.1))
    exact, approximate = (
        value_and_gradient(make(method, syn_steps=steps), synthetic) for method in (distillers.mtt, distillers.tesla)
    )
    assert float(approximate[0]) == pytest.approx(float(exact[0]), rel=1e-3)
    agreement = cosine(exact[1]["images"], approximate[1]["images"])
    ratio = float(approximate[1]["log_lr"] / exact[1]["log_lr"])
    print(f"\n{steps} steps of 0.1: cosine of the images' gradients {agreement:.4f}, ratio of alpha's {ratio:.3f}")
    assert 0.5 < agreement < 0.9999


@pytest.mark.parametrize(("count", "size", "steps"), [(6, 2, 8), (6, 6, 3), (7, 3, 9)])
def test_chunks_go_through_every_image_before_a_new_permutation(key, count, size, steps):
    indices, weights = (np.asarray(x) for x in chunk_indices(key, count, size, steps))
    assert indices.shape == weights.shape == (steps, size)
    chunks = -(-count // size)
    rounds = [
        np.concatenate([indices[i][weights[i] > 0] for i in range(first, min(first + chunks, steps))])
        for first in range(0, steps, chunks)
    ]
    for seen in rounds:
        assert len(set(seen)) == len(seen)
    whole = [seen for seen in rounds if len(seen) == count]
    assert len(whole) == steps // chunks
    assert all(sorted(seen) == list(range(count)) for seen in whole)
    assert len({tuple(seen) for seen in whole}) > 1
    assert weights[0].sum() == count - (chunks - 1) * size  # the remainder comes first
    assert (weights.sum(axis=1) > 0).all()


def test_what_fills_up_a_chunk_moves_nothing():
    """Rows of weight 0 name other images: the step's gradient stays."""
    gradient = step_gradient(CONV, augment.strategy("none"))
    images, targets = synthetic_of()["images"].astype(jnp.float32), jnp.eye(3)[jnp.repeat(jnp.arange(3), 2)]
    theta = flatten(CONV.init(jax.random.key(0))["params"])
    slopes = [
        jax.jit(gradient)(
            theta,
            (images.at[5].mul(scale), targets),
            (jax.random.key(1), jnp.array([5, 5, 1, 2]), jnp.array([0.0, 0, 1, 1])),
        )
        for scale in (1.0, 1000.0)
    ]
    np.testing.assert_array_equal(*slopes)
    assert np.abs(slopes[0]).max() > 1e-3


def test_unequal_classes_and_a_short_one_that_repeats(tiny, key):
    """The labels say how many each class has, and the student learns them; 9 images of a class of 5 come again."""
    method = make(distillers.tesla, ipc=(1, 9, 2), soft_labels=True, batch_syn=12, repeat=True)
    synthetic, aux = method.init(key, tiny)
    decoded, labels = method.decode(synthetic, aux, method.frozen), np.repeat([0, 1, 2], (1, 9, 2))
    np.testing.assert_array_equal(decoded.labels, labels)
    np.testing.assert_array_equal(decoded.soft_labels, np.eye(3)[labels])
    np.testing.assert_array_equal(decoded.images[6:10], decoded.images[1:5])
    assert len(np.unique(np.asarray(decoded.images[1:10]), axis=0)) == 5
    one_step = make(ipc=(1, 9, 2), syn_steps=1)
    theta = jnp.asarray(EXPERTS[1, 1])

    def cross_entropy(params):
        logits, _ = NET.apply({"params": params}, synthetic["images"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    end = theta - 0.2 * flatten(jax.jit(jax.grad(cross_entropy))(unflatten(NET, theta)))
    expected = np.sum((end - EXPERTS[1, 3]) ** 2) / np.sum((theta - EXPERTS[1, 3]) ** 2)
    assert float(value_and_gradient(one_step, synthetic)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_each_round_shows_every_expert_once(tiny):
    method = make(max_start_epoch=2, expert_epochs=2)
    _, aux = method.init(jax.random.key(3), tiny)
    refresh = jax.jit(lambda aux, step: method.refresh(jax.random.key(step), None, aux, step, method.frozen))
    drawn = [refresh(aux, step) for step in range(30)]
    rounds = np.array([int(one["expert"]) for one in drawn]).reshape(10, 3)
    assert all(sorted(row) == [0, 1, 2] for row in rounds)
    assert len({tuple(row) for row in rounds}) > 2
    starts = [int(one["start"]) for one in drawn]
    assert set(starts) == {0, 1} and 5 < sum(starts) < 25
    other = method.init(jax.random.key(4), tiny)[1]
    assert [int(refresh(other, step)["expert"]) for step in range(30)] != rounds.ravel().tolist()


def test_the_start_is_real_images_and_the_teachers_rate(tiny, key):
    for raw in (False, True):
        method = make(raw_lr=raw)
        synthetic, aux = method.init(key, tiny)
        decoded = method.decode(synthetic, aux, method.frozen)
        assert set(synthetic) == {"images", "lr" if raw else "log_lr"}
        assert float(decoded.learning_rate) == pytest.approx(0.2, rel=1e-6)
        assert decoded.soft_labels is None
    pixels = np.rint((np.asarray(decoded.images) * np.asarray(tiny.train.std) + np.asarray(tiny.train.mean)) * 255)
    for image, label in zip(pixels, decoded.labels, strict=True):
        own = np.asarray(tiny.train.images)[np.asarray(tiny.train.labels) == label]
        assert (own == image).all(axis=(1, 2, 3)).any()


def test_the_expert_labels_the_images_at_its_target_epoch(tiny, key):
    method = make(distillers.tesla, soft_labels=True)
    synthetic, aux = method.init(key, tiny)
    np.testing.assert_array_equal(aux["soft_labels"], np.eye(3)[[0, 0, 1, 1, 2, 2]])

    def value(method, aux):
        return float(jax.jit(method.loss)(jax.random.key(2), synthetic, aux, (), method.frozen)[0])

    hard = value(make(distillers.tesla), aux_of())
    assert value(method, aux) != pytest.approx(hard, rel=1e-3)  # another expert
    assert value(method, aux_of() | {"soft_labels": aux["soft_labels"]}) == pytest.approx(hard, rel=1e-5)
    aux = method.refresh(key, synthetic, aux, jnp.int32(4), method.frozen)
    theta = EXPERTS[int(aux["expert"]), int(aux["start"]) + 2]
    logits, _ = NET.apply({"params": unflatten(NET, jnp.asarray(theta))}, synthetic["images"])
    np.testing.assert_allclose(aux["soft_labels"], jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(method.decode(synthetic, aux, method.frozen).soft_labels, aux["soft_labels"])
    assert value(method, aux_of() | {"soft_labels": aux["soft_labels"]}) != pytest.approx(hard, rel=1e-3)


def test_the_optimiser_steps_alike_in_both_forms():
    """To first order: the smaller the step, the nearer exp(log_lr) comes to the published lr."""
    images, slope = jnp.ones((2, 2)), 3.0
    errors = []
    for lr_lr in (1e-3, 1e-4):
        tx = distillers.trajectory_optimiser(10.0, lr_lr, lr_teacher=0.2)
        forms = [
            ({"images": images, "lr": jnp.float32(0.2)}, {"images": images, "lr": jnp.float32(slope)}),
            ({"images": images, "log_lr": jnp.log(0.2)}, {"images": images, "log_lr": jnp.float32(0.2 * slope)}),
        ]
        (raw, log) = (optax.apply_updates(p, tx.update(g, tx.init(p), p)[0]) for p, g in forms)
        np.testing.assert_array_equal(raw["images"], images - 10.0)
        assert float(raw["lr"]) == pytest.approx(0.2 - lr_lr * slope, rel=1e-6)
        errors.append(abs(float(jnp.exp(log["log_lr"]) - raw["lr"])))
    assert errors[0] < 0.02 * 1e-3 * slope and errors[1] < 0.02 * errors[0]


def test_momentum_is_kept_for_both():
    tx = distillers.trajectory_optimiser(2.0, 0.1, lr_teacher=1.0)
    params = {"images": jnp.zeros(2), "log_lr": jnp.zeros(())}
    gradient, state = jax.tree.map(jnp.ones_like, params), tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradient, state, params)
    np.testing.assert_allclose(updates["images"], -2.0 * 1.5)
    np.testing.assert_allclose(updates["log_lr"], -0.1 * 1.5)


def test_metadd_leaves_the_step_size_alone(tiny, auxiliaries):
    """Its terms do not depend on alpha: the first update moves it as without them, and the images otherwise."""
    tx = distillers.trajectory_optimiser(1.0, 1e-3, lr_teacher=0.2)
    config = invariant.InvariantConfig(views="none", weighting="raw")
    bare = make(augmentation="flip")
    after = []
    for method in (bare, distillers.metadd(bare, auxiliaries[:1], config=config)):
        state = distillers.init_state(jax.random.key(0), method, tx, tiny)
        before = method.synthetic(state)
        state, _ = jax.jit(distillers.make_update(method, tx))(state, tiny.train, method.frozen)
        after.append(method.synthetic(state))
    assert abs(float(after[0].learning_rate - before.learning_rate)) > 1e-5
    np.testing.assert_allclose(after[1].learning_rate, after[0].learning_rate, rtol=1e-6)
    assert not np.allclose(after[1].images, after[0].images, atol=1e-5)


def test_metadd_weighs_its_terms_by_the_images_gradient_alone(tiny, auxiliaries):
    """The step size has another gradient in its raw form and the images the same: so the weights are the same."""
    config = invariant.InvariantConfig(views="none", calibration_steps=2)
    raw, log = (
        distillers.metadd(make(raw_lr=raw_lr), auxiliaries[:1], config=config).init(jax.random.key(0), tiny)[1]
        for raw_lr in (True, False)
    )
    np.testing.assert_allclose(raw["weights"]["ai"], log["weights"]["ai"], rtol=1e-4)
    assert raw["weights"]["ai"] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ipc": 0}, "ipc=0 must be"),
        ({"syn_steps": 0}, "syn_steps=0 must be a whole number, at least 1"),
        ({"batch_syn": 7}, "batch_syn=7 must be from 1 to the set's 6 images"),
        ({"lr_teacher": 0.0}, "lr_teacher=0.0 must be a finite float32 number, above 0"),
        ({"max_start_epoch": 3}, "max_start_epoch=3 and expert_epochs=2 reach epoch 4, but the experts hold 3 epochs"),
        ({"expert_epochs": 3}, "expert_epochs=3 reach epoch 4, but"),
        ({"experts": EXPERTS[..., 1:]}, r"experts have shape \(3, 4, \d+\), but mlp.* needs"),
        ({"experts": EXPERTS[0]}, "experts have shape"),
        ({"augmentation": "sparkle"}, "unknown augmentation 'sparkle'"),
        ({"method": distillers.tesla, "variant": "real"}, "variant='real' must be one of paper, code"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


def test_what_cannot_serve_is_refused(tiny, key):
    with pytest.raises(ValueError, match=r"convnet_bn.* has batch norm.*use its instance norm"):
        distillers.mtt(zoo.parse("convnet_bn:width=4,depth=1", 3, SHAPE), EXPERTS, **SETTINGS)
    with pytest.raises(ValueError, match="ipc is 6, but class 1 has 5 images; lower ipc, or set short_class"):
        make(ipc=6).init(key, tiny)
    wide = zoo.parse("mlp:width=8", 3, (8, 8, 3))
    experts = np.zeros((1, 4, wide.num_params()), np.float32)
    with pytest.raises(ValueError, match=r"takes \(8, 8, 3\) images of 3 classes.*create the network"):
        distillers.mtt(wide, experts, **SETTINGS).init(key, tiny)
