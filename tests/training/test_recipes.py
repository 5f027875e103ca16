"""Recipes against the published loop and NumPy optimisers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax.training import protocols, recipes


@pytest.mark.parametrize("published", [1, 2, 3, 10, 301])
def test_dc_schedule_is_that_of_the_published_loop(published):
    """for epoch in range(E + 1): train(rate); if epoch in [E // 2 + 1]: rate *= 0.1, new optimiser."""
    steps_per_epoch, rates, restarts, rate = 3, [], [], 0.01
    for epoch in range(published + 1):
        rates += [rate] * steps_per_epoch
        if epoch == published // 2 + 1:
            rate *= 0.1
            restarts.append((epoch + 1) * steps_per_epoch)
    recipe = recipes.dc_evaluation(published)
    assert recipe.epochs == published + 1
    steps = jnp.arange((published + 1) * steps_per_epoch)
    np.testing.assert_allclose(recipes.learning_rate(recipe, steps_per_epoch)(steps), rates, rtol=1e-6)
    assert recipes.restart_step(recipe, steps_per_epoch) == (restarts[0] if restarts else len(rates))


def test_dc_settings_are_the_published_ones():
    recipe = recipes.dc_evaluation(300, augmentation="color_flip")
    chosen = (recipe.optimiser, recipe.learning_rate, recipe.momentum, recipe.weight_decay, recipe.batch_size)
    assert chosen == ("sgd", 0.01, 0.9, 5e-4, 256)
    assert recipe.augmentation == "color_flip"
    assert hash(recipe) == hash(recipes.dc_evaluation(300, augmentation="color_flip"))


def test_cosine_ends_at_zero_and_never_restarts():
    recipe = recipes.pretraining(4, learning_rate=0.5)
    t = np.arange(13)
    rates = recipes.learning_rate(recipe, 3)(jnp.asarray(t))
    np.testing.assert_allclose(rates, 0.25 * (1 + np.cos(np.pi * t / 12)), atol=1e-7)
    assert recipes.restart_step(recipe, 3) == 12  # past the last step


def run(recipe, gradients, start):
    """Parameters after each step at rate 1."""
    tx, params = recipes.direction(recipe), jnp.asarray(start)
    state, seen = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, -0.1 * updates)
        seen.append(np.asarray(params))
    return seen


def test_sgd_adds_the_decay_to_the_gradient_before_the_momentum():
    recipe = recipes.Recipe(epochs=1, momentum=0.8, weight_decay=0.3)
    gradients, x, v = [1.0, -2.0, 0.5], 4.0, 0.0
    expected = []
    for gradient in gradients:
        v = 0.8 * v + gradient + 0.3 * x
        x -= 0.1 * v
        expected.append(x)
    np.testing.assert_allclose(run(recipe, gradients, 4.0), expected, rtol=1e-6)


def test_adamw_decouples_the_decay():
    recipe = recipes.Recipe(epochs=1, optimiser="adamw", weight_decay=0.3)
    gradients, x, m, v = [1.0, -2.0, 0.5], 4.0, 0.0, 0.0
    expected = []
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        x -= 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.3 * x)
        expected.append(x)
    np.testing.assert_allclose(run(recipe, gradients, 4.0), expected, rtol=1e-5)


def test_warm_up_is_linear_and_the_cosine_has_the_rest():
    recipe = recipes.Recipe(epochs=5, learning_rate=0.2, schedule="cosine", warmup_epochs=2)
    t = np.arange(16)
    expected = np.where(t < 6, 0.2 * (t + 1) / 6, 0.1 * (1 + np.cos(np.pi * (t - 6) / 9)))
    np.testing.assert_allclose(recipes.learning_rate(recipe, 3)(jnp.asarray(t)), expected, atol=1e-7)


@pytest.mark.parametrize("optimiser", recipes.OPTIMISERS)
def test_vectors_may_be_left_out_of_the_decay(optimiser):
    recipe = recipes.Recipe(epochs=1, optimiser=optimiser, weight_decay=0.3, decay_vectors=False)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = recipes.direction(recipe)
    updates, _ = tx.update({"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_sre2l_settings_are_the_published_ones():
    cifar, tiny, imagenet = (recipes.sre2l_evaluation(data) for data in ("cifar", "tiny", "imagenet"))
    for recipe, epochs, batch, temperature, mix in (
        (cifar, 400, 128, 30, "mixup"),
        (tiny, 100, 256, 20, "none"),
        (recipes.sre2l_evaluation("tiny_ddranking"), 400, 256, 20, "cutmix"),
        (imagenet, 300, 1024, 20, "cutmix"),
    ):
        assert (recipe.epochs, recipe.batch_size, recipe.temperature, recipe.mix) == (epochs, batch, temperature, mix)
        assert float(recipes.learning_rate(recipe, 1)(epochs)) == pytest.approx(0, abs=1e-9)  # not one half
    for recipe in (cifar, imagenet):
        chosen = (recipe.optimiser, recipe.learning_rate, recipe.weight_decay, recipe.decay_vectors)
        assert chosen == ("adamw", 1e-3, 0.01, False)
    assert tiny.temperature_squared and not (cifar.temperature_squared or imagenet.temperature_squared)
    code = recipes.sre2l_evaluation("cifar_code")  # the released program: teacher in training mode, everything decays
    assert dataclasses.replace(code, teacher_mode="evaluation", decay_vectors=False) == cifar != code
    squeeze = recipes.sre2l_squeeze("cifar"), recipes.sre2l_squeeze("tiny")
    chosen = [(r.learning_rate, r.weight_decay, r.epochs, r.warmup_epochs, r.batch_size) for r in (*squeeze, tiny)]
    assert chosen == [(0.1, 5e-4, 200, 0, 128), (0.2, 1e-4, 50, 5, 256), (0.2, 1e-4, 100, 5, 256)]
    assert all((r.optimiser, r.momentum) == ("sgd", 0.9) for r in (*squeeze, tiny))
    with pytest.raises(
        ValueError,
        match="no published recipe for 'mnist'; use one of cifar, cifar_code, tiny, tiny_ddranking, imagenet",
    ):
        recipes.sre2l_evaluation("mnist")


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1.0), (150, 0.853553), (299, 0.502618), (300, 0.5)])
def test_half_a_cosine_ends_at_one_half(epoch, factor):
    recipe = protocols.rded_evaluation(300)
    rate = recipes.learning_rate(recipe, 7)(jnp.int32(7 * epoch))
    assert float(rate) == pytest.approx(1e-3 * factor, rel=2e-6)
    assert recipes.restart_step(recipe, 7) == 2100  # past the last step


def test_the_rate_drops_at_shares_of_the_epochs():
    """torch.optim.lr_scheduler.MultiStepLR at 2/3 and 5/6, and at every fifth."""
    for recipe, places, factor in (
        (protocols.ncfm_pretraining(60), (40, 50), 0.2),
        (protocols.ncfm_evaluation(40), (8, 16, 24, 32), 0.5),
    ):
        rates = recipes.learning_rate(recipe, 3)(jnp.arange(3 * recipe.epochs))
        expected = [
            recipe.learning_rate * factor ** sum(t // 3 >= place for place in places) for t in range(len(rates))
        ]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
        assert recipes.restart_step(recipe, 3) == 3 * recipe.epochs
    # A manifest is JSON: what it holds must equal the facts again.
    facts = recipes.facts(protocols.ncfm_pretraining(60))
    assert json.loads(json.dumps(facts)) == facts


def test_newer_protocols_read_as_published():
    ncfm, rded = protocols.ncfm_evaluation(2000), recipes.EVALUATIONS["rded_factor2"](300)
    chosen = [(r.optimiser, r.learning_rate, r.weight_decay, r.mix, r.mix_probability) for r in (ncfm, rded)]
    assert chosen == [("adamw", 1e-3, 0.01, "cutmix", 0.5), ("adamw", 1e-3, 0.01, "cutmix", 1.0)]
    assert (ncfm.batch_size, ncfm.augmentation) == (128, "idc_color_crop_flip_scale_rotate")  # no cutout
    assert protocols.ncfm_evaluation(1, augmentation="none").augmentation == "none"
    chosen = (rded.temperature, rded.temperature_squared, rded.shuffle, rded.crop_scale, rded.flip, rded.decay_vectors)
    assert chosen == (20.0, False, 2, (0.5, 1.0), True, False)
    pool = protocols.ncfm_pretraining(60)
    assert (pool.learning_rate, pool.momentum, pool.weight_decay, pool.batch_size) == (0.01, 0.9, 5e-4, 128)
    with pytest.raises(
        ValueError, match=r"crop_scale=\(0.5, 0.2\) must be two shares of the area, the lower one first"
    ):
        recipes.Recipe(epochs=1, crop_scale=(0.5, 0.2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"optimiser": "lion"}, "optimiser='lion' must be one of sgd, adamw"),
        ({"schedule": "linear"}, "schedule='linear' must be one of step, cosine, half_cosine, drops"),
        ({"augmentation": "sparkle"}, "unknown augmentation 'sparkle'"),
        ({"crop": "centre"}, "crop='centre' must be one of none, shift, resized"),
        ({"mix": "smix"}, "mix='smix' must be one of none, mixup, cutmix"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"teacher_mode": "eval"}, "teacher_mode='eval' must be one of evaluation, training"),
        ({"schedule": "cosine", "warmup_epochs": 1}, "warmup_epochs=1 with schedule 'cosine' and epochs=1"),
        ({"epochs": 3, "warmup_epochs": 1}, "warmup_epochs=1 with schedule 'step'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recipes.Recipe(**{"epochs": 1} | settings)


def test_an_optax_transformation_has_a_key_by_its_code():
    """The same one built again has the same; another number, in whatever it is wrapped, has another."""

    def facts(rate, wrap=lambda tx: tx):
        return recipes.facts(recipes.Recipe(epochs=1, optimiser=wrap(optax.adam(rate))))

    def scheduled(tx):
        return optax.chain(optax.clip_by_global_norm(1.0), tx, optax.scale_by_schedule(optax.linear_schedule(1, 0, 9)))

    def masked(tx):
        return optax.masked(tx, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params))

    for wrap in (lambda tx: tx, scheduled, masked):
        assert json.dumps(facts(1e-3, wrap)) == json.dumps(facts(1e-3, wrap)) != json.dumps(facts(2e-3, wrap))
    assert len({facts(1e-3, wrap)["optimiser"] for wrap in (lambda tx: tx, scheduled, masked)}) == 3
    hash(recipes.Recipe(epochs=1, optimiser=optax.adam(1e-3)))


@pytest.mark.parametrize("setting", [{"learning_rate": 0.1}, {"schedule": "cosine"}, {"weight_decay": 0.0}])
def test_settings_that_an_optax_transformation_makes_idle_are_refused(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}=.* plays no part beside an optax transformation"):
        recipes.Recipe(epochs=2, optimiser=optax.adam(1e-3), **setting)
