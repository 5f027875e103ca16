"""Knowledge distillation beside the labels: stored numbers, NumPy's sums, a whole training by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import training, zoo

SHAPE = (8, 8, 1)
NET = zoo.parse("mlp:width=8", 3, SHAPE)
GUIDE = zoo.parse("mlp:width=4", 3, SHAPE)
HOW = training.Guidance(GUIDE)


def test_the_temperature_falls_by_a_tenth_an_epoch_and_never_to_nothing():
    found = [float(HOW.tau(epoch)) for epoch in (0, 1, 5, 10, 20, 50)]
    np.testing.assert_allclose(found, [1.5, 1.35, 0.885735, 0.523018, 0.182365, 0.007731], rtol=1e-4)
    assert float(HOW.tau(5000)) == pytest.approx(1e-3)


@pytest.mark.parametrize(("epoch", "wanted"), [(0, 0.623256), (10, 0.503526)])
def test_the_loss_of_stored_numbers(epoch, wanted):
    student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[0.0, 2.0, 1.0]])
    own = optax.softmax_cross_entropy_with_integer_labels(student, jnp.array([0]))
    assert float(own[0]) == pytest.approx(0.551445, abs=1e-6)
    assert float(HOW.losses(own, teacher, student, epoch)[0]) == pytest.approx(wanted, abs=2e-6)


def test_late_epochs_stay_finite_with_their_gradients():
    logits = jnp.array([[30.0, -20.0, 1.0]])

    def loss(student):
        return HOW.losses(jnp.zeros(1), logits, student, 2000)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([[-40.0, 2.0, 3.0]]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e-3  # tau: the term fades


def test_a_training_is_plain_descent_on_the_formula():
    """Three full batches by SGD without momentum: softmax, KL and their gradients from NumPy and jax.grad alone."""
    images = jax.random.normal(jax.random.key(1), (6, *SHAPE))
    labels = jnp.arange(6) % 3
    start, guide = NET.init(jax.random.key(2)), GUIDE.init(jax.random.key(3))
    recipe = training.Recipe(epochs=3, batch_size=6, learning_rate=0.5, momentum=0.0, weight_decay=0.0)
    key = jax.random.key(4)
    made = training.fit(key, NET, images, labels, recipe, shared_key=key, variables=start, guidance=(HOW, guide))
    teacher = np.asarray(GUIDE.apply(guide, images)[0], np.float64)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    params = start["params"]
    for epoch in range(3):
        logits, pull = jax.vjp(lambda p: NET.apply({"params": p}, images)[0], params)
        tau = 1.5 * 0.9**epoch
        belief = softmax(np.asarray(logits, np.float64)) - np.eye(3)[np.asarray(labels)]
        away = softmax(np.asarray(logits, np.float64) / tau) - softmax(teacher / tau)
        slope = (0.5 * belief + 0.5 * tau * away) / 6  # of (1 - a) CE + a tau^2 KL, in the logits
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, pull(jnp.asarray(slope, jnp.float32))[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), made["params"], params)
    plain = training.fit(key, NET, images, labels, recipe, shared_key=key, variables=start)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), made["params"], plain["params"])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_numbers_out_of_range_are_refused():
    for name, value in (("share", 1.5), ("temperature", 0.0), ("decay", 0.0), ("decay", 1.1)):
        with pytest.raises(ValueError, match=rf"^{name}="):
            training.Guidance(GUIDE, **{name: value})
