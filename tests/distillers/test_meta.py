"""MetaDD's wrapper: the weights re-derived, the base method undisturbed, the auxiliaries untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import distillers, invariant, zoo
from metadd_jax.structs import SyntheticSet

LABELS = jnp.array([0, 0, 1, 1, 2, 2])
START, TARGET = np.random.default_rng(0).normal(size=(2, 6, 8, 8, 1)).astype(np.float32)
# Without views and subset the terms do not depend on a key, so a test can compute them by itself.
STRENGTHS = {"ai": 0.3, "pos": 0.2, "var": 0.1}
PLAIN = {"views": "none", "kl": 0.0, "cap": 1e9, "weighting": "calibrated", "calibration_steps": 4} | STRENGTHS


def quadratic(signs=(1.0,)):
    """A base method that pulls towards TARGET (gradient: x - TARGET), with the sign of the step's number."""
    table = jnp.array(signs)

    def loss(key, synthetic, aux, batch, frozen, *, axis_name=None):
        return batch * 0.5 * jnp.sum((synthetic["images"] - TARGET) ** 2), (aux, {})

    return distillers.Distiller(
        name="quadratic",
        init=lambda key, dataset: ({"images": jnp.asarray(START)}, {"seen": jnp.zeros(())}),
        sample=lambda key, data, step, *, axis_name=None: table[step % len(signs)],
        loss=loss,
        refresh=lambda key, synthetic, aux, step, frozen: {"seen": aux["seen"] + 1},
        decode=lambda synthetic, aux, frozen: SyntheticSet(images=synthetic["images"], labels=LABELS),
        frozen=jnp.arange(3.0),
    )


def wrap(base, auxiliaries, **settings):
    return distillers.metadd(base, auxiliaries, config=invariant.InvariantConfig(**PLAIN | settings))


@pytest.fixture(scope="module")
def gradients(auxiliaries):
    """images -> the gradient of each term alone, by plain jax.grad of the invariant loss."""

    def of(images, name):
        config = invariant.InvariantConfig(**PLAIN)

        def term(x):
            return invariant.invariant_terms(jax.random.key(7), x, LABELS, auxiliaries, config=config)[0][name]

        return jax.grad(term)(images)

    compute = jax.jit(lambda images: {name: of(images, name) for name in ("ai", "pos", "var")})
    return lambda images: {name: np.asarray(value, np.float64) for name, value in compute(images).items()}


def norm(x):
    return float(np.sqrt((np.asarray(x, np.float64) ** 2).sum()))


@pytest.fixture(scope="module")
def calibrated(auxiliaries):
    """Three steps forwards and one back: half as long a mean *vector*; the mean length would be whole."""
    return wrap(quadratic((1.0, 1.0, 1.0, -1.0)), auxiliaries)


def test_calibrated_weights_come_from_mean_gradient_vectors(key, tiny, calibrated, gradients):
    synthetic, aux = calibrated.init(key, tiny)
    terms = gradients(synthetic["images"])
    for name, rho in (("ai", 0.3), ("pos", 0.2), ("var", 0.1)):
        expected = rho * 0.5 * norm(START - TARGET) / norm(terms[name])
        assert float(aux["weights"][name]) == pytest.approx(expected, rel=1e-3)


def test_unsaturated_weights_are_by_the_margin_of_the_logits(key, tiny, auxiliaries, gradients):
    """The gradient of sum_m [log sum_{k != y} exp z_k - z_y] re-derived in NumPy from the logits' own Jacobians."""
    synthetic, aux = wrap(quadratic(), auxiliaries, weighting="unsaturated").init(key, tiny)
    margin = np.zeros(START.shape)
    own = np.eye(3)[np.asarray(LABELS)]
    for one in auxiliaries:

        def logits(images, one=one):
            return one.net.apply(one.variables, images)[0]

        # An image's logits depend on that image alone.
        slopes = np.asarray(jax.jit(jax.jacrev(lambda images, of=logits: of(images).sum(axis=0)))(START), np.float64)
        z = np.where(own, -np.inf, np.asarray(logits(START), np.float64))
        others = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        margin += np.einsum("bk,kbhwc->bhwc", others - own, slopes) / len(LABELS)
    terms = gradients(synthetic["images"])
    expected = {"ai": 0.3 / norm(margin), "pos": 0.2 / norm(terms["pos"]), "var": 0.1 / norm(terms["var"])}
    for name, value in expected.items():
        assert float(aux["weights"][name]) == pytest.approx(value * norm(START - TARGET), rel=1e-3)
    # Less than by the cross-entropy's own gradient, which is the shorter one.
    assert float(aux["weights"]["ai"]) < 0.3 * norm(START - TARGET) / norm(terms["ai"])


def test_the_cap_bounds_a_calibrated_weight(key, tiny, auxiliaries):
    _, aux = wrap(quadratic(), auxiliaries, cap=1e-3, ai=0.0).init(key, tiny)
    assert aux["weights"] == {"pos": pytest.approx(1e-3), "var": pytest.approx(1e-3)}


def test_the_weighted_gradients_add_up_and_weights_stay(key, tiny, calibrated, gradients):
    method, tx = calibrated, optax.sgd(0.1)
    state = distillers.init_state(key, method, tx, tiny)
    update = jax.jit(distillers.make_update(method, tx))
    for _ in range(2):
        before = np.asarray(state.synthetic["images"], np.float64)
        weights = {name: float(weight) for name, weight in state.aux["weights"].items()}
        terms = gradients(state.synthetic["images"])
        state, metrics = update(state, tiny.train, method.frozen)
        total = before - TARGET + sum(weights[name] * terms[name] for name in terms)
        np.testing.assert_allclose(state.synthetic["images"], before - 0.1 * total, rtol=1e-3, atol=1e-4)
        assert {name: float(weight) for name, weight in state.aux["weights"].items()} == weights
        parts = float(metrics["loss_base"]) + sum(weights[t] * float(metrics[f"loss_{t}"]) for t in weights)
        assert float(metrics["loss"]) == pytest.approx(parts, rel=1e-4)
    # They are leaves of the state, hence of every checkpoint; the base method's own aux goes on beside them.
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.aux)}
    assert names == {"['base']['seen']", "['weights']['ai']", "['weights']['pos']", "['weights']['var']"}
    assert float(state.aux["base"]["seen"]) == 2


def test_per_step_weights_hold_the_ratio_at_every_step(key, tiny, auxiliaries, gradients):
    method, tx = wrap(quadratic(), auxiliaries, weighting="per_step"), optax.sgd(0.3)
    state = distillers.init_state(key, method, tx, tiny)
    update = jax.jit(distillers.make_update(method, tx))
    seen = []
    for _ in range(3):
        before = np.asarray(state.synthetic["images"], np.float64)
        terms = gradients(state.synthetic["images"])
        state, metrics = update(state, tiny.train, method.frozen)
        for name, rho in (("ai", 0.3), ("pos", 0.2), ("var", 0.1)):
            ratio = float(metrics[f"weight_{name}"]) * norm(terms[name]) / norm(before - TARGET)
            assert ratio == pytest.approx(rho, rel=1e-3)
        # The weights are constants of the step: no gradient flows through them.
        total = before - TARGET + sum(float(metrics[f"weight_{name}"]) * terms[name] for name in terms)
        np.testing.assert_allclose(state.synthetic["images"], before - 0.3 * total, rtol=1e-3, atol=1e-4)
        seen.append(float(metrics["weight_var"]))
    assert len(set(seen)) == 3


def test_raw_weights_are_the_strengths(key, tiny, auxiliaries):
    _, aux = wrap(quadratic(), auxiliaries, weighting="raw", pos=0.0).init(key, tiny)
    assert aux["weights"] == {"ai": pytest.approx(0.3), "var": pytest.approx(0.1)}


def test_the_base_method_sees_what_it_sees_without_the_wrapper(tiny, auxiliaries):
    """Terms too weak to change a float leave the very trajectory of bare DM, calibrated or not."""
    base = distillers.dm(zoo.parse("mlp:width=8", 3, (8, 8, 1)), ipc=2, batch_size=8, augmentation="flip")
    tx = optax.sgd(0.1, momentum=0.5)

    def trajectory(method):
        state = distillers.init_state(jax.random.key(0), method, tx, tiny)
        update = jax.jit(distillers.make_update(method, tx))
        points = [state.synthetic["images"]]
        for _ in range(3):
            state, metrics = update(state, tiny.train, method.frozen)
            points += [state.synthetic["images"], metrics.get("loss_base", metrics["loss"])]
        return points

    bare = trajectory(base)
    config = invariant.InvariantConfig(ai=1e-25, pos=0, var=0, kl=0, views="none", calibration_steps=2)
    for point, other in zip(bare, trajectory(distillers.metadd(base, auxiliaries, config=config)), strict=True):
        np.testing.assert_allclose(other, point, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(bare[0], bare[-2])


def test_no_gradient_reaches_an_auxiliary_and_none_changes(key, tiny, auxiliaries):
    method = distillers.metadd(
        quadratic(),
        auxiliaries,
        reference=auxiliaries[0],
        config=invariant.InvariantConfig(weighting="raw", views="none", kl=1.0, pos=0.1, var=0.1),
    )
    synthetic, aux = method.init(key, tiny)
    copies = jax.tree.map(np.array, method.frozen)

    def loss(frozen):
        return method.loss(key, synthetic, aux, jnp.ones(()), frozen)[0]

    slopes = jax.jit(jax.grad(loss))(method.frozen)
    variables = [auxiliary.variables for auxiliary in (*slopes["auxiliaries"], slopes["reference"])]
    assert jax.tree.leaves(variables)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(variables))
    np.testing.assert_array_equal(method.frozen["base"], [0, 1, 2])
    for now, then in zip(jax.tree.leaves(method.frozen), jax.tree.leaves(copies), strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_wrapped_method_is_named_and_decoded_as_the_base(key, tiny, auxiliaries):
    method = wrap(quadratic(), auxiliaries, weighting="raw")
    assert method.name == "quadratic+metadd"
    state = distillers.init_state(key, method, optax.sgd(0.1), tiny)
    np.testing.assert_array_equal(method.synthetic(state).labels, LABELS)
    np.testing.assert_array_equal(method.synthetic(state).images, state.synthetic["images"])


def test_too_few_auxiliaries_or_no_reference_stop_at_the_start(key, tiny, auxiliaries):
    with pytest.raises(ValueError, match="at least 2 auxiliaries"):
        wrap(quadratic(), auxiliaries[:1]).init(key, tiny)
    with pytest.raises(ValueError, match=r"L_ai needs reference=.*or set kl=0"):
        wrap(quadratic(), auxiliaries, kl=1.0).init(key, tiny)


def test_pulls_say_how_much_each_term_pulls_and_in_which_direction(tiny, auxiliaries, gradients):
    method = wrap(quadratic(), auxiliaries)
    state = distillers.init_state(jax.random.key(0), method, optax.sgd(0.1), tiny)
    facts, aux = distillers.pulls(jax.random.key(0), method, state, tiny.train), state.aux
    base = np.float64(START - TARGET).ravel()
    own = {name: float(aux["weights"][name]) * value.ravel() for name, value in gradients(START).items()}
    own["metadd"] = sum(own.values())
    np.testing.assert_allclose(facts["gradient_norm_base"], norm(base), rtol=1e-4)
    for name, vector in own.items():
        np.testing.assert_allclose(facts[f"gradient_norm_{name}"], norm(vector), rtol=1e-3)
        cosine = base @ vector / (norm(base) * norm(vector))
        np.testing.assert_allclose(facts[f"cosine_{name}"], cosine, atol=1e-3)
    assert len(facts) == 1 + 2 * len(own)
