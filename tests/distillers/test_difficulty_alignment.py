"""DATM by its published numbers, by NumPy where it picks and labels images, and as MTT where its switches are off."""

import dataclasses

import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest
from test_trajectory_matching import EXPERTS, NET, SETTINGS

from metadd_jax import distillers, invariant
from metadd_jax.distillers import difficulty_alignment
from metadd_jax.distillers.contract import LABELS
from metadd_jax.training import fitting
from metadd_jax.training.trajectories import unflatten

KEY = jax.random.key(0)
LABEL_LOGITS = np.array([[[2, 1], [0, 3]], [[4, 0], [1, -1]], [[0, 1], [2, 2.5]]])


def make(**settings):
    return distillers.datm(NET, EXPERTS, **SETTINGS | {"threshold": 100.0} | settings)


def optimiser(image_lr=1.0, **settings):
    return distillers.DATM(**settings).optimiser(image_lr, 0.5, 1, None)


def updated(method, tx, dataset, steps=1, state=None):
    state = state or distillers.init_state(KEY, method, tx, dataset)
    update = jax.jit(distillers.make_update(method, tx))
    for _ in range(steps):
        state, metrics = update(state, dataset.train, method.frozen)
    return state, metrics


def test_the_upper_end_of_the_window_in_numbers():
    """newer_methods.md 12.2."""
    record = distillers.DATM(first_upper=10, max_start_epoch=20, expansion_end=1000)
    found = [int(record.upper(step)) for step in (0, 99, 100, 550, 999, 1000, 5000, 2**31 - 1)]
    assert found == [10, 10, 11, 15, 19, 20, 20, 20]
    assert [int(distillers.DATM(max_start_epoch=4).upper(step)) for step in (0, 10**6)] == [4, 4]


def test_starts_fill_the_window_and_never_leave_it(tiny):
    method = make(min_start_epoch=0, first_upper=1, max_start_epoch=2, expansion_end=40)
    _, aux = method.init(KEY, tiny)
    refresh = jax.jit(lambda step: method.refresh(jax.random.key(step), None, aux, step, method.frozen))
    starts = np.array([int(refresh(step)["start"]) for step in range(80)])
    assert not starts[:40].any()
    assert set(starts[40:]) == {0, 1} and 8 < starts[40:].sum() < 32  # 20 +- 3.2
    late = make(min_start_epoch=1, max_start_epoch=2)
    assert int(late.refresh(KEY, None, aux, jnp.int32(3), late.frozen)["start"]) == 1


def test_the_first_labels_in_numbers():
    """12.2: image 0 averages experts 0 and 1, image 1 experts 0 and 2; and where nobody is right, all of them."""
    found = difficulty_alignment.mean_opinion(jnp.asarray(LABEL_LOGITS), jnp.array([0, 1]))
    np.testing.assert_allclose(found, [[3, 0.5], [1, 2.75]], rtol=1e-6)
    nobody = difficulty_alignment.mean_opinion(jnp.asarray(LABEL_LOGITS[[0, 1]]), jnp.array([1, 0]))
    np.testing.assert_allclose(nobody[0], LABEL_LOGITS[:2, 0].mean(axis=0), rtol=1e-6)


def test_the_cross_entropy_of_logits_in_numbers():
    """12.2, by the loss with which judged networks train on the set: its labels are the softmax of the logits."""
    outputs = jnp.array([[1, 0, -1], [0.5, 0.5, 2]])

    def mean(logits):
        return fitting._losses(jax.nn.softmax(logits), outputs, recipe=None).mean()

    value, gradient = jax.value_and_grad(mean)(jnp.array([[2.0, 0, 0], [0, 1, 3]]))
    assert float(value) == pytest.approx(0.66520797, rel=1e-6)
    np.testing.assert_allclose(gradient, [[-0.125729, 0.036238, 0.089491], [0.026586, 0.072268, -0.098854]], atol=2e-6)


def guesses(images, number):
    params = unflatten(NET, jnp.asarray(EXPERTS[number, -1]))
    return np.asarray(NET.apply({"params": params}, images)[0])


def real(dataset):
    train = dataset.train
    return (np.asarray(train.images) / 255.0 - np.asarray(train.mean)) / np.asarray(train.std)


def test_images_start_from_those_that_experts_are_right_on(tiny):
    """Every class gives first what expert 0 is right on, then expert 1, ...: in NumPy, by all experts' guesses."""
    labels, images = np.asarray(tiny.train.labels), real(tiny).astype(np.float32)
    right = np.stack([guesses(images, number).argmax(axis=1) == labels for number in range(3)])
    rank = np.where(right.any(axis=0), right.argmax(axis=0), 3)
    counts = (15, 4, 9)  # more than one expert is right on, and all of class 2
    draws = []
    for seed in (0, 1):
        picked = difficulty_alignment.correct_images(jax.random.key(seed), NET, EXPERTS[:, -1], tiny.train, counts)
        draws.append(np.asarray(picked))
        classes = np.split(draws[-1], np.cumsum(counts)[:-1])
        for label, own in enumerate(classes):
            found = [np.abs(images - image).max(axis=(1, 2, 3)).argmin() for image in own]
            assert len(set(found)) == len(own) and set(labels[found]) == {label}
            assert sorted(rank[found]) == sorted(rank[labels == label])[: len(own)]
            assert list(rank[found]) == sorted(rank[found])
    assert not np.array_equal(*draws)
    assert len(set(rank)) > 2  # else nothing was tested
    twice = difficulty_alignment.correct_images(KEY, NET, EXPERTS[:, -1], tiny.train, (1, 7, 1), repeat=True)
    np.testing.assert_array_equal(twice[1:3], twice[6:8])  # class 1 has five images
    with pytest.raises(ValueError, match="ipc is 6, but class 1 has 5 images; lower ipc, or set short_class"):
        make(ipc=6).init(KEY, tiny)


def test_labels_start_from_the_experts_opinions(tiny):
    synthetic, aux = make().init(KEY, tiny)
    logits = np.stack([guesses(synthetic["images"], number) for number in range(3)])
    labels = np.repeat([0, 1, 2], 2)
    for image, label in enumerate(labels):
        sure = logits[:, image][logits[:, image].argmax(axis=1) == label]
        expected = (sure if len(sure) else logits[:, image]).mean(axis=0)
        np.testing.assert_allclose(synthetic[LABELS][image], expected, rtol=1e-4, atol=1e-5)
    made = make().decode(synthetic, aux, ())
    np.testing.assert_allclose(made.soft_labels, jax.nn.softmax(synthetic[LABELS]), rtol=1e-6)
    np.testing.assert_array_equal(made.labels, labels)
    # A logarithm of the labels is the logits again, for whoever wants them: no softmax sees what is lost.
    np.testing.assert_allclose(jax.nn.softmax(jnp.log(made.soft_labels)), made.soft_labels, rtol=1e-5)
    random, _ = make(picks="random").init(KEY, tiny)
    np.testing.assert_allclose(random[LABELS], guesses(random["images"], 0), rtol=1e-4, atol=1e-5)


def test_without_its_switches_it_is_mtt_to_the_bit(tiny):
    plain = make(soft_labels=False, picks="random")
    found, metrics = updated(plain, optimiser(soft_labels=False), tiny, steps=3)
    usual, of_mtt = updated(
        distillers.mtt(NET, EXPERTS, **SETTINGS), distillers.MTT().optimiser(1.0, 0.5, 1, None), tiny, 3
    )
    jax.tree.map(np.testing.assert_array_equal, found.synthetic, usual.synthetic)
    np.testing.assert_array_equal(metrics["loss"], of_mtt["loss"])
    assert plain.synthetic(found).soft_labels is None and float(metrics["kept"]) == 1


def test_the_gradient_in_the_logits_is_exact(tiny):
    """Against finite differences of the loss in float64, through all four steps of the student."""
    with jax.enable_x64():
        method = make(raw_lr=True)
        draw = np.random.default_rng(3)
        synthetic = {
            "images": jnp.asarray(draw.normal(size=(6, *members.SHAPE))), "lr": jnp.asarray(0.2),
            LABELS: jnp.asarray(draw.normal(size=(6, 3))),
        }  # fmt: skip
        aux, experts = {"expert": jnp.int32(1), "start": jnp.int32(1)}, jnp.asarray(EXPERTS, jnp.float64)
        loss = jax.jit(lambda logits: method.loss(KEY, {**synthetic, LABELS: logits}, aux, (), experts)[0])
        direction = draw.normal(size=(6, 3))
        ahead, behind = (float(loss(synthetic[LABELS] + h * direction)) for h in (1e-6, -1e-6))
        slope = float((jax.grad(loss)(synthetic[LABELS]) * direction).sum())
        assert abs(slope) > 1e-5 and slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("broken", ["too far", "not a number"])
def test_a_step_above_the_threshold_moves_nothing(tiny, broken):
    """Neither images, labels and step size nor their momenta, which the step before has left."""
    method, tx = make(), optimiser()
    before, metrics = updated(method, tx, tiny)
    assert float(metrics["kept"]) == 1 and float(metrics["gradient_norm"]) > 0
    experts = jnp.full_like(method.frozen, jnp.nan) if broken == "not a number" else method.frozen
    strict = make(threshold=1e-3)
    after, metrics = jax.jit(distillers.make_update(strict, tx))(before, tiny.train, experts)
    jax.tree.map(np.testing.assert_array_equal, after.synthetic, before.synthetic)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
    assert int(after.step) == 2
    assert {name: float(metrics[name]) for name in ("kept", "loss", "gradient_norm")} == {
        "kept": 0, "loss": pytest.approx(1e-3), "gradient_norm": 0,
    }  # fmt: skip


def test_a_run_whose_steps_are_all_skipped_stops_and_says_so(tiny):
    config = distillers.RunConfig(steps=4, chunk=2, device_mode="jit")
    with pytest.raises(distillers.MeaninglessError, match=r"above the threshold in every step .* raise threshold"):
        distillers.distil(0, make(threshold=1e-6), optimiser(), tiny, config)


def test_images_labels_and_step_size_have_rates_and_momenta_of_their_own():
    tx = optimiser(10.0, lr_labels=4.0, lr_lr=0.5, raw_lr=True)
    params = {"images": jnp.zeros(2), LABELS: jnp.zeros(3), "lr": jnp.zeros(())}
    gradient, state = jax.tree.map(jnp.ones_like, params), tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradient, state, params)
    np.testing.assert_allclose(updates["images"], -10 * 1.5)
    np.testing.assert_allclose(updates[LABELS], -4 * 1.9)
    np.testing.assert_allclose(updates["lr"], -0.5 * 1.5)


def test_labels_that_are_not_trained_stay(tiny):
    method = make()
    start = distillers.init_state(KEY, method, optimiser(lr_labels=0.0), tiny)
    state, _ = updated(method, optimiser(lr_labels=0.0), tiny, 2, start)
    np.testing.assert_array_equal(state.synthetic[LABELS], start.synthetic[LABELS])
    moved, _ = updated(method, optimiser(lr_labels=5.0), tiny, 2)
    assert np.abs(np.asarray(moved.synthetic[LABELS] - start.synthetic[LABELS])).max() > 1e-6


def test_metadd_weighs_its_terms_by_the_images_alone(tiny, auxiliaries):
    """Labels are no images: trained or given as they start, MetaDD's weights are the same."""
    config = invariant.InvariantConfig(views="none", calibration_steps=2)
    method = distillers.metadd(make(), auxiliaries[:1], config=config)
    _, aux = method.init(KEY, tiny)
    base = make()
    synthetic, _ = base.init(KEY, tiny)

    def fixed_init(key, dataset):
        images, aux = base.init(key, dataset)
        return {name: leaf for name, leaf in images.items() if name != LABELS}, aux

    def fixed_loss(key, images, aux, batch, frozen, *, axis_name=None):
        return base.loss(key, {**images, LABELS: synthetic[LABELS]}, aux, batch, frozen, axis_name=axis_name)

    def fixed_decode(images, aux, frozen):
        return base.decode({**images, LABELS: synthetic[LABELS]}, aux, frozen)

    fixed = base._replace(init=fixed_init, loss=fixed_loss, decode=fixed_decode)
    _, other = distillers.metadd(fixed, auxiliaries[:1], config=config).init(KEY, tiny)
    np.testing.assert_allclose(aux["weights"]["ai"], other["weights"]["ai"], rtol=1e-5)
    assert aux["weights"]["ai"] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 0.0}, "threshold=0.0 must be a finite float32 number, above 0"),
        ({"picks": "best"}, "picks='best' must be one of correct, random"),
        ({"first_upper": 5, "max_start_epoch": 2}, "first_upper=5 and max_start_epoch=2 leave no epoch"),
        ({"min_start_epoch": 2}, "min_start_epoch=2, first_upper=None and max_start_epoch=2 leave no epoch"),
        ({"max_start_epoch": 3}, "max_start_epoch=3 and expert_epochs=2 reach epoch 4, but the experts hold 3 epochs"),
        ({"lr_labels": -1.0}, "lr_labels=-1.0 must be"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


def test_its_gradient_may_be_teslas(tiny):
    """The loss is the same number; for one step of the student the gradients are too, that of the labels included."""
    exact, tesla = (
        distillers.datm(NET, EXPERTS, settings=record(), **SETTINGS | {"syn_steps": 1, "threshold": 100.0})
        for record in (distillers.DATM, distillers.DATMTesla)
    )
    assert tesla.name == "datm_tesla"
    synthetic, aux = exact.init(KEY, tiny)
    found = [
        jax.jit(jax.value_and_grad(lambda s, m=method: m.loss(KEY, s, aux, (), m.frozen)[0]))(synthetic)
        for method in (exact, tesla)
    ]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    for name, leaf in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], leaf, rtol=1e-3, atol=1e-5 * np.abs(leaf).max())


def test_experts_are_the_reachable_snapshots_and_the_last(tiny, tmp_path):
    """What lies between is not put on the device; plain and flat experts have folders of their own."""
    record = distillers.DATM(experts=2, epochs=5, at_once=2, max_start_epoch=1, expert_epochs=1, augmentation="none")
    given = record.prepare(NET, tiny, None, tmp_path, progress=lambda *facts: None)
    assert given.shape == (2, 3, NET.num_params())
    mtt = distillers.MTT(**{
        name: getattr(record, name) for name in ("experts", "epochs", "at_once", "max_start_epoch", "expert_epochs")
    }, augmentation="none", rho=0.01, rho_alpha=0.3)  # fmt: skip
    (folder, _), (same, _) = record.cached(NET, tiny, tmp_path)[0], mtt.cached(NET, tiny, tmp_path)[0]
    assert folder == same and folder.exists()
    for change in ({"rho": 0.02}, {"rho_alpha": 0.2}, {"rho": 0.0}):
        assert dataclasses.replace(record, **change).cached(NET, tiny, tmp_path)[0][0] != folder
    few = mtt.prepare(NET, tiny, None, tmp_path, progress=lambda *facts: None)
    np.testing.assert_array_equal(few, given[:, :2])
    assert optax.tree.norm(given[:, 2] - given[:, 1]) > 0
