"""IDC's packing: type "multi" in NumPy, its grey border, its order, and every method of pixels over it."""

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest
from test_parameterisation import RAMP, unpacked

from metadd_jax import data, distillers, exchange
from metadd_jax.distillers import packing, parameterisations

FOUR = members.PACKED  # decoded images of a stored one


def test_multi_is_the_stored_image_and_its_cells_one_stored_image_after_the_other():
    """newer_methods.md 4.1 on the ramp of 12.4: the union over factors 1 and 2."""
    both = np.concatenate([RAMP, 100 + RAMP])
    made = np.asarray(distillers.factor(2, kind="multi").decode(both, ()))
    assert made.shape == (10, 4, 4, 1)
    np.testing.assert_array_equal(made[[0, 5]], both)
    np.testing.assert_allclose(made[1:5], unpacked(RAMP, 2), atol=1e-6)
    np.testing.assert_allclose(made[1:5].mean(axis=(1, 2, 3)), [2.5, 4.5, 10.5, 12.5], atol=1e-6)
    np.testing.assert_allclose(made[6:], 100 + made[1:5], rtol=1e-6)
    three = distillers.factor(3, kind="multi")
    assert (three.per_stored, three.name) == (14, "factor3_multi")
    wide = np.random.default_rng(0).normal(size=(1, 6, 6, 1)).astype(np.float32)
    made = np.asarray(three.decode(wide, ()))
    for start, size in ((0, 1), (1, 2), (5, 3)):
        np.testing.assert_allclose(made[start : start + size**2], unpacked(wide, size), atol=1e-5)


def test_multi_starts_from_the_images_of_its_smallest_cells(key):
    grey = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((10, 6, 6, 1), np.float32)
    stored = np.asarray(distillers.factor(2, kind="multi").init(key, grey))
    np.testing.assert_allclose(stored[0, ::3, ::3, 0].ravel(), [1, 2, 3, 4], atol=1e-6)
    np.testing.assert_allclose(stored[1, ::3, ::3, 0].ravel(), [6, 7, 8, 9], rtol=1e-6)
    with pytest.raises(ValueError, match="needs a multiple of 5 images"):
        distillers.factor(2, kind="multi").init(key, grey[:8])
    with pytest.raises(ValueError, match="kind='all' must be one of single, multi"):
        distillers.factor(2, kind="all")


def test_a_job_pads_with_the_middle_of_a_pixel(tiny):
    """12.4: 0.5 in [0, 1]; whitened images have no such value."""
    (value,) = packing.grey(tiny)
    assert value * float(tiny.train.std[0]) + float(tiny.train.mean[0]) == pytest.approx(0.5, abs=1e-6)
    made = parameterisations.parse("factor:size=3,kind=multi", tiny)
    assert (made.pad, made.kind, made.facts) == ((value,), "multi", {
        "factor": 3, "factor_kind": "multi", "factor_pad": (value,),
    })  # fmt: skip
    last = np.asarray(made.decode(jnp.zeros((1, 8, 8, 1)), ()))[-1]
    np.testing.assert_allclose(last[-1], value, rtol=1e-6)  # 8 pixels in cells of 3: one row of 9 is border
    assert parameterisations.parse("factor:pad=2", tiny).pad == 2
    assert packing.grey(data.whiten(tiny)) == 0


def test_idcs_order_has_all_images_of_a_cell_together():
    """12.4: A.TL B.TL A.TR B.TR A.BL B.BL A.BR B.BR, class by class, whatever their numbers."""
    stored = np.arange(3 * 4.0, dtype=np.float32).reshape(
        3, 2, 2, 1
    )  # A and B of class 0, C of class 2; a pixel a cell
    ours = np.asarray(distillers.factor(2).decode(stored, ()))[:, 0, 0, 0]
    order = exchange.cells_first(np.repeat([0, 2], [8, 4]), 4)
    np.testing.assert_array_equal(ours[order], [0, 4, 1, 5, 2, 6, 3, 7, 8, 9, 10, 11])


def pixel_methods(auxiliaries):
    """Every method that trains images, with ``FOUR`` of them in each class, and its optimiser."""
    tx = members.TX
    made = {
        "dm": (members.base(ipc=FOUR), tx),
        "dc": (members.matching(distillers.dc, ipc=FOUR), tx),
        "dsa": (members.matching(distillers.dsa, ipc=FOUR, augmentation=members.SMALL_VIEWS), tx),
        "sre2l": members.recover(ipc=FOUR),
    }
    record = distillers.DATM(threshold=100.0)
    for name, method in (("mtt", distillers.mtt), ("tesla", distillers.tesla)):
        made[name] = (members.trajectories(method, ipc=FOUR), members.TRAJECTORY_TX)
    made["datm"] = (
        members.trajectories(distillers.datm, ipc=FOUR, settings=record), record.optimiser(1.0, 0.5, 1, None)
    )  # fmt: skip
    return made


def shape_of_update(method, tx, dataset):
    def step():
        state = distillers.init_state(jax.random.key(0), method, tx, dataset)
        return distillers.make_update(method, tx)(state, dataset.train, method.frozen)[0]

    return jax.eval_shape(step)


# DSA and TESLA differ from DC and MTT in what packing does not see.
ALIKE = [pytest.param(name, marks=pytest.mark.slow) for name in ("dsa", "tesla")]


@pytest.mark.parametrize("name", ["dm", "dc", "mtt", "datm", "sre2l", *ALIKE])
def test_every_method_of_pixels_takes_a_packed_set_bare_and_under_metadd(name, tiny, auxiliaries):
    base, tx = pixel_methods(auxiliaries)[name]
    packed = members.packed(base)
    wrapped = members.wrapped(auxiliaries, over=packed, kl=0.0)
    for method in (packed, wrapped):
        state = shape_of_update(method, tx, tiny)
        assert state.synthetic["latents"].shape == (3, *members.SHAPE)
        made = jax.eval_shape(lambda s, m=method: m.decode(s.synthetic, s.aux, m.frozen), state)
        assert made.images.shape == (3 * FOUR, *members.SHAPE)
    assert wrapped.name == f"{base.name}+factor2+metadd"


@pytest.mark.slow  # one more compilation a method
@pytest.mark.parametrize("name", ["dc", "dsa", "mtt", "tesla", "datm", "sre2l"])
def test_the_gradient_of_every_method_is_pulled_back(name, tiny, auxiliaries, key):
    """By the transpose of the decoder, which is linear: <decode(d), slope> is the derivative along every d."""
    base, _ = pixel_methods(auxiliaries)[name]
    method = members.packed(base)
    synthetic, aux = method.init(key, tiny)
    batch = base.sample(key, tiny.train, 0)
    aux = method.refresh(key, synthetic, aux, jnp.int32(1), method.frozen)
    latents = synthetic["latents"]
    shown = {**synthetic, "images": jnp.asarray(unpacked(np.asarray(latents), 2), jnp.float32)}
    del shown["latents"]
    slope = jax.jit(jax.grad(lambda s: base.loss(key, s, aux, batch, base.frozen)[0]))(shown)["images"]
    found = jax.jit(jax.grad(lambda s: method.loss(key, s, aux, batch, method.frozen)[0]))(synthetic)["latents"]
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=latents.shape)
        expected = float((unpacked(direction, 2) * np.asarray(slope, np.float64)).sum())
        scale = np.linalg.norm(unpacked(direction, 2)) * np.linalg.norm(slope)
        assert float((direction * np.asarray(found, np.float64)).sum()) == pytest.approx(expected, abs=2e-4 * scale)
