"""Any terms over any method: the weights of own terms re-derived by hand, by name, over every family."""

import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest
from members import energy

from metadd_jax import distillers, invariant

START, TARGET = np.random.default_rng(0).normal(size=(2, 6, 8, 8, 1)).astype(np.float32)
TX = optax.sgd(0.1)
PLAIN = {"views": "none", "calibration_steps": 3, "cap": 1e9}


def quadratic():
    return members.quadratic(START, TARGET)


def sharpness(seen):
    return -seen.logits.max(axis=-1).mean(axis=0)


def constant(seen):
    return jnp.ones(len(seen.labels))


def gradient_of_energy(x):
    return 2 * np.asarray(x, np.float64) / x.size


def norm(x):
    return float(np.sqrt((np.asarray(x, np.float64) ** 2).sum()))


def updated(method, tiny, tx=TX):
    state = distillers.init_state(jax.random.key(0), method, tx, tiny)
    return state, *jax.jit(distillers.make_update(method, tx))(state, tiny.train, method.frozen)


def test_the_weight_of_an_own_function_is_rho_times_the_ratio_of_the_gradients(tiny, auxiliaries):
    method = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, **PLAIN)
    assert method.name == "quadratic+penalty"
    before, after, metrics = updated(method, tiny)
    weight = 0.25 * norm(START - TARGET) / norm(gradient_of_energy(START))
    assert float(before.aux["weights"]["energy"]) == pytest.approx(weight, rel=1e-5)
    gradient = START - TARGET + weight * gradient_of_energy(START)
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * gradient, rtol=1e-4, atol=1e-5)
    mean = (np.float64(START) ** 2).mean()
    assert float(metrics["loss"]) == pytest.approx(0.5 * norm(START - TARGET) ** 2 + weight * mean, rel=1e-5)
    assert float(metrics["loss_energy"]) == pytest.approx(mean, rel=1e-5)
    pulls = distillers.pulls(jax.random.key(1), method, before, tiny.train)
    assert float(pulls["gradient_norm_penalty"]) == pytest.approx(0.25 * norm(START - TARGET), rel=1e-5)
    cosine = float(((START - TARGET) * START).sum()) / (norm(START - TARGET) * norm(START))
    assert float(pulls["cosine_energy"]) == pytest.approx(cosine, abs=1e-5)


def test_strengths_by_units_and_pulls_by_values_come_from_one_program(tiny, auxiliaries):
    """The unit has three times the gradient: a third of the weight. The pull is that of the value."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, fun_name="", **_: compiled.append(fun_name) if "backend_compile" in event else None
    )
    term = invariant.Term("energy", lambda seen: (energy(seen), {"seen": energy(seen)}), unit=lambda x: 3 * energy(x))
    settings = {**PLAIN, "weighting": "unsaturated"}
    method = distillers.penalise(quadratic(), auxiliaries, {term: 0.3, constant: 0.1}, **settings)
    state = distillers.init_state(jax.random.key(0), method, TX, tiny)
    weight = 0.3 * norm(START - TARGET) / (3 * norm(gradient_of_energy(START)))
    assert float(state.aux["weights"]["energy"]) == pytest.approx(weight, rel=1e-5)
    found = distillers.pulls(jax.random.key(1), method, state, tiny.train)
    assert float(found["gradient_norm_energy"]) == pytest.approx(0.1 * norm(START - TARGET), rel=1e-5)
    assert sum("sum_gradients" in name for name in compiled) == 1


def test_pulls_know_the_weights_of_each_step(tiny, auxiliaries):
    """Rescaled at every step, a term pulls with rho times the base method's strength, wherever the set stands."""
    method = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, **PLAIN | {"weighting": "per_step"})
    _, state, metrics = updated(method, tiny)
    weight = 0.25 * norm(START - TARGET) / norm(gradient_of_energy(START))
    assert float(metrics["weight_energy"]) == pytest.approx(weight, rel=1e-5)
    pulls = distillers.pulls(jax.random.key(1), method, state, tiny.train)
    moved = np.asarray(state.synthetic["images"])
    assert norm(moved - START) > 1
    assert float(pulls["gradient_norm_energy"]) == pytest.approx(0.25 * norm(moved - TARGET), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "shares"), [("falling", (1, 0.75, 0.5, 0.25, 0, 0)), ("rising", (0, 0.25, 0.5, 0.75, 1, 1))]
)
def test_weights_fall_and_rise_linearly_with_the_updates(tiny, auxiliaries, schedule, shares):
    """Against the same quadratic, stepped in float64 with the weight of each step by hand."""
    method = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, schedule=schedule, schedule_steps=4, **PLAIN)
    weight = 0.25 * norm(START - TARGET) / norm(gradient_of_energy(START))
    state = distillers.init_state(jax.random.key(0), method, TX, tiny)
    update, x = jax.jit(distillers.make_update(method, TX)), np.float64(START)
    for share in shares:
        state, metrics = update(state, tiny.train, method.frozen)
        x = x - 0.1 * (x - TARGET + share * weight * gradient_of_energy(x))
        assert float(metrics["weight_energy"]) == pytest.approx(share * weight, rel=1e-5)
    np.testing.assert_allclose(state.synthetic["images"], x, rtol=1e-4, atol=1e-5)
    # What pulls is what the schedule has come to, and measuring moves it no further.
    pulls = distillers.pulls(jax.random.key(1), method, state, tiny.train)
    expected = shares[-1] * weight * norm(gradient_of_energy(state.synthetic["images"]))
    assert float(pulls["gradient_norm_energy"]) == pytest.approx(expected, rel=1e-4)


def test_a_schedule_without_an_end_is_refused_and_others_keep_their_state(tiny, auxiliaries):
    with pytest.raises(ValueError, match="schedule='falling' needs schedule_steps"):
        distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, schedule="falling", **PLAIN)
    usual = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, **PLAIN)
    assert set(distillers.init_state(jax.random.key(0), usual, TX, tiny).aux) == {"base", "weights"}


def test_a_term_without_gradient_gets_the_cap_and_moves_nothing(tiny, auxiliaries):
    settings = PLAIN | {"cap": 7.0}
    _, after, metrics = updated(distillers.penalise(quadratic(), auxiliaries, {constant: 0.5}, **settings), tiny)
    assert float(metrics["weight_constant"]) == 7
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * (START - TARGET), rtol=1e-5, atol=1e-6)


def test_names_functions_and_terms_go_together_and_raw_strengths_are_weights(tiny, auxiliaries):
    """DESIGN's call; and L = L_base + sum_t w_t L_t, re-derived from the networks' logits."""
    capped = invariant.Term("capped", lambda seen: jnp.minimum(energy(seen), 0.5), needs=())
    strengths = {"ai": 3.0, sharpness: 0.1, capped: 2.0, "var": 0.0}
    method = distillers.penalise(quadratic(), auxiliaries, strengths, weighting="raw", views="none")
    before, _, metrics = updated(method, tiny)
    assert {name: float(weight) for name, weight in before.aux["weights"].items()} == pytest.approx(
        {"ai": 3.0, "sharpness": 0.1, "capped": 2.0}
    )
    logits = np.stack([np.asarray(a.net.apply(a.variables, START)[0], np.float64) for a in auxiliaries])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ai = -log_p[:, np.arange(6), np.arange(6) // 2].sum(0).mean()
    sharp = -logits.max(-1).mean()
    cap = np.minimum((np.float64(START) ** 2).mean((1, 2, 3)), 0.5).mean()
    expected = 0.5 * norm(START - TARGET) ** 2 + 3 * ai + 0.1 * sharp + 2 * cap
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


OVER = {
    "mtt": lambda: (members.trajectories(distillers.mtt), members.TRAJECTORY_TX),
    "sre2l": lambda: members.recover(crop=False),
}


@pytest.mark.parametrize("name", OVER)
def test_it_goes_over_every_family(name, tiny, auxiliaries):
    base, tx = OVER[name]()
    method = distillers.penalise(base, auxiliaries, {sharpness: 0.2}, views="none", weighting="raw")
    state, after, metrics = updated(method, tiny, tx)
    assert method.name == f"{name}+penalty"
    images = np.asarray(method.synthetic(state).images)
    logits = np.stack([np.asarray(a.net.apply(a.variables, images)[0], np.float64) for a in auxiliaries])
    assert float(metrics["loss_sharpness"]) == pytest.approx(-logits.max(-1).mean(), rel=1e-5)
    total = float(metrics["loss_base"]) + 0.2 * float(metrics["loss_sharpness"])
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)
    assert not np.array_equal(after.synthetic["images"], images)


def test_a_penalty_around_a_penalised_method_adds_to_it(tiny, auxiliaries):
    inner = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, **PLAIN)
    outer = distillers.penalise(inner, auxiliaries, {sharpness: 0.0, energy: 0.5}, **PLAIN, name="more")
    assert outer.name == "quadratic+penalty+more"
    before, after, metrics = updated(outer, tiny)
    first = START - TARGET + 0.25 * norm(START - TARGET) / norm(START) * START  # the inner method's gradient
    second = first + 0.5 * norm(first) / norm(START) * START
    np.testing.assert_allclose(after.synthetic["images"], START - 0.1 * second, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(before.aux) == jax.tree.structure(
        {"base": {"base": (), "weights": {"energy": 0}}, "weights": {"energy": 0}}
    )
    assert float(metrics["weight_energy"]) == pytest.approx(
        0.5 * norm(first) / norm(gradient_of_energy(START)), rel=1e-4
    )
    # What both call alike is told apart.
    assert float(metrics["penalty_weight_energy"]) == pytest.approx(
        0.25 * norm(START - TARGET) / norm(gradient_of_energy(START)), rel=1e-4
    )
    assert float(metrics["penalty_loss_base"]) == pytest.approx(0.5 * norm(START - TARGET) ** 2, rel=1e-4)
    with pytest.raises(ValueError, match="has a penalty called 'penalty' already"):
        distillers.penalise(inner, auxiliaries, {energy: 0.5})


def test_pulls_see_a_penalty_inside_a_parameterisation(tiny, auxiliaries):
    """Latents that are the pixels upside down have the pixels' gradients upside down: the same norms and cosines."""

    class Negative:
        frozen = ()

        def init(self, key, images):
            return -images

        def decode(self, latents, frozen):
            return -latents

    inner = distillers.penalise(quadratic(), auxiliaries, {energy: 0.25}, **PLAIN)
    found = []
    for method in (inner, distillers.parameterise(inner, Negative())):
        state = distillers.init_state(jax.random.key(0), method, TX, tiny)
        found.append(distillers.pulls(jax.random.key(1), method, state, tiny.train))
    assert len(found[0]) == 5
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5)


def test_what_cannot_be_weighed_is_refused_at_once(auxiliaries):
    def penalise(terms, networks=auxiliaries, **settings):
        return distillers.penalise(quadratic(), networks, terms, **settings)

    with pytest.raises(ValueError, match=r"^unknown term 'vr' \(did you mean 'var'\?\); use one of ai, pos, var"):
        penalise({"vr": 1.0})
    with pytest.raises(ValueError, match=r"^strength of 'ai'=-1 must be a finite float32 number, at least 0$"):
        penalise({"ai": -1})
    with pytest.raises(ValueError, match="two terms are called 'energy'"):
        penalise({energy: 1.0, invariant.Term("energy", sharpness): 1.0})
    with pytest.raises(ValueError, match="L_pos and L_var compare networks: give at least 2"):
        penalise({"pos": 1.0, "var": 1.0}, auxiliaries[:1])
    with pytest.raises(ValueError, match="at least 1 auxiliary"):
        penalise({energy: 1.0}, [])
    with pytest.raises(ValueError, match=r"auxiliaries is a Auxiliary; give a list of what features.freeze returns"):
        penalise({energy: 1.0}, auxiliaries[0])
    with pytest.raises(ValueError, match=r"reference is a Architecture; give what features.freeze returns"):
        penalise({energy: 1.0}, [one.net for one in auxiliaries])
    with pytest.raises(ValueError, match=r"^base is a DM; give a method, such as distillers\.dm\(net, ipc=1\) returns"):
        distillers.penalise(distillers.DM(), auxiliaries, {energy: 1.0})
    with pytest.raises(ValueError, match=r"^strength of 'ai'='1' must be a finite"):
        penalise({"ai": "1"})
    with pytest.raises(ValueError, match=r"^cam=None must be a features.CamConfig"):
        penalise({energy: 1.0}, cam=None)
    with pytest.raises(ValueError, match="'corp'"):
        penalise({energy: 1.0}, views="corp")
    with pytest.raises(ValueError, match="views='auto' is for the main job"):
        penalise({energy: 1.0}, views="auto")
    with pytest.raises(ValueError, match=r"^config={'ai': 1.0} must be an InvariantConfig"):
        distillers.metadd(quadratic(), auxiliaries, config={"ai": 1.0})
    with pytest.raises(ValueError, match="must give each term its strength"):
        penalise(["ai"])
    with pytest.raises(ValueError, match="3 is no term"):
        penalise({3: 1.0})
    for taken in ("base", "penalty"):  # what the gradients of the sum are called: a term would take their place
        with pytest.raises(ValueError, match=f"a term cannot be called '{taken}'"):
            penalise({invariant.Term(taken, energy): 1.0})
    with pytest.raises(ValueError, match="the term 'base' is one of metadd_jax"):
        invariant.register("base", energy)
    with pytest.raises(ValueError, match=r"weighting='row' must be one of .*did you mean 'raw'"):
        penalise({energy: 1.0}, weighting="row")
    paired = invariant.Term("paired", energy, needs=("reference",))
    with pytest.raises(ValueError, match=r"L_paired needs reference="):
        penalise({paired: 1.0})


def test_networks_trained_further_judge_the_next_step(tiny, auxiliaries):
    """One step of the networks on the start by hand; the loss is that of the moved networks, which are in the state."""
    settings = {"weighting": "raw", "views": "none", "further_lr": 0.5}
    method = distillers.penalise(quadratic(), auxiliaries, {"ai": 1.0}, **settings)
    before, after, metrics = updated(method, tiny)
    labels, losses = jnp.arange(6) // 2, []
    for one, own in zip(auxiliaries, after.aux["networks"], strict=True):

        def loss(params, one=one):
            logits = one.net.apply({**one.variables, "params": params}, START)[0]
            return -jax.nn.log_softmax(logits)[jnp.arange(6), labels].mean()

        start = one.variables["params"]
        wanted = jax.tree.map(lambda p, g: p - 0.5 * g, start, jax.jit(jax.grad(loss))(start))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), own, wanted)
        losses.append(float(loss(own)))
        assert losses[-1] < float(loss(start))
    assert float(metrics["loss_ai"]) == pytest.approx(sum(losses), rel=1e-4)
    assert float(metrics["network_drift"]) > 0
    jax.tree.map(np.testing.assert_array_equal, before.aux["networks"], invariant.own_params(auxiliaries))
    with pytest.raises(ValueError, match=r"L_cos compares with what they made of real images before"):
        equipped = invariant.equip(auxiliaries, tiny, [invariant.TERMS["cos"]])
        distillers.penalise(quadratic(), equipped, {"cos": 1.0}, **settings)
