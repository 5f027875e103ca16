"""The condition of a set: shares and sizes against arithmetic by hand, and runs that end in nonsense."""

import jax
import numpy as np
import optax
import pytest
from members import SHAPE, base, trajectories

from metadd_jax import data, distillers, structs
from metadd_jax.distillers import condition

CONFIG = distillers.RunConfig(steps=4, chunk=2, save_every=2)


@pytest.fixture
def dataset(tiny):
    return tiny


def as_set(dataset, pixels, **more):
    """A set whose pixels (in [0, 1] if they are a picture's) are given, in the value space of the data."""
    images = (np.asarray(pixels, np.float32) - dataset.train.mean) / dataset.train.std
    return structs.SyntheticSet(images=np.asarray(images), labels=np.arange(len(images)), **more)


def line(step, loss, gradient):
    return {"step": step, "distill/loss": loss, "distill/gradient_norm": gradient}


def test_the_numbers_are_those_of_hand(dataset):
    pixels = np.full((2, *SHAPE), 0.5)
    pixels[0, :4, :4] = 1.5  # 16 of 128 values outside
    pixels[1, 0, 0] = 1 + 0.4 / 255  # rounds to white
    found = distillers.examine(as_set(dataset, pixels), dataset, [line(2, 4.0, 1.0), line(4, 2.0, 0.5)])
    assert found.outside == 16 / 128
    mean, std = float(dataset.train.mean[0]), float(dataset.train.std[0])
    size = np.sqrt(np.mean(((pixels - mean) / std) ** 2))
    assert found.size == pytest.approx(size / max(mean / std, (1 - mean) / std), rel=1e-5)
    assert (found.loss, found.gradient) == ((4.0, 2.0), (1.0, 0.5))
    assert found.warnings() == []
    assert "12 % of the pixel values" in found.describe() and "loss 4 at the start, 2 at the end" in found.describe()


def test_nothing_was_logged(dataset):
    assert distillers.examine(as_set(dataset, np.zeros((1, *SHAPE))), dataset, [{"step": 0, "report/x": 1.0}]) is None


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"size": 5.1}, "have left what a picture can hold"),
        ({"gradient": (1.0, 0.9e-3)}, "the gradient has died"),
        ({"loss": (1.0, 1.1), "size": 1.1}, "the loss has risen from 1 to 1.1"),
    ],
)
def test_what_looks_wrong_is_said(change, part):
    fine = condition.Condition(outside=0.6, size=0.5, loss=(1.0, 0.5), gradient=(1.0, 0.5))
    (text,) = fine._replace(**change).warnings()
    assert part in text and "\n" not in text
    assert fine.warnings() == []


def test_the_bound_stands_where_it_is_said_to(dataset):
    def refuse(size, gradient=1.0, **more):
        images = np.full((3, *SHAPE), size * condition.farthest(dataset), np.float32)
        synthetic = structs.SyntheticSet(images=images, labels=np.arange(3), **more)
        condition.refuse_meaningless(synthetic, dataset, gradient, done=7, is_last=bool(more.pop("last", False)))

    refuse(0.99 * condition.MOST)
    with pytest.raises(distillers.MeaninglessError, match=r"pixels are 303 times as large .* after step 7; lower"):
        refuse(1.01 * condition.MOST)
    with pytest.raises(distillers.MeaninglessError, match="gradient is 0"):
        refuse(1.0, gradient=0.0)
    with pytest.raises(distillers.MeaninglessError, match=r"step size is 0\.0 after step 7; lower lr_lr"):
        refuse(1.0, learning_rate=np.float32(0))
    refuse(1.0, learning_rate=np.float32(-0.1))  # on its way it may be negative (``raw_lr``)
    with pytest.raises(distillers.MeaninglessError, match=r"step size is -0\.1"):
        condition.refuse_meaningless(
            structs.SyntheticSet(np.zeros((3, *SHAPE)), np.arange(3), None, np.float32(-0.1)),
            dataset, 1.0, done=7, is_last=True,
        )  # fmt: skip


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_run_whose_images_leave_every_picture_stops_and_keeps_nothing_of_it(rate, dataset, tmp_path):
    with pytest.raises(distillers.MeaninglessError, match="times as large as a picture's after step 2"):
        distillers.distil(0, base(), optax.sgd(rate), dataset, CONFIG, directory=tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_a_run_that_goes_wrong_without_end_warns(dataset):
    with pytest.warns(UserWarning, match="dm, seed 0: the images have left what a picture can hold"):
        state = distillers.distil(0, base(), optax.sgd(300.0), dataset, CONFIG)
    assert int(state.step) == CONFIG.steps and np.isfinite(state.synthetic["images"]).all()


def test_a_run_in_order_says_nothing(dataset, recwarn):
    distillers.distil(0, base(), optax.sgd(0.1), dataset, CONFIG)
    assert [str(found.message) for found in recwarn if "seed 0" in str(found.message)] == []


def test_a_step_size_that_becomes_nothing_stops_the_run(dataset):
    # exp(-200) is 0 in float32.
    tx = optax.stateless(lambda _, params: {name: -200.0 * (name == "log_lr") - 0 * x for name, x in params.items()})
    with pytest.raises(distillers.MeaninglessError, match=r"the learned step size is 0\.0 after step"):
        distillers.distil(0, trajectories(distillers.mtt), tx, dataset, CONFIG)


def test_whitened_images_are_measured_as_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 4, 4, 1), np.uint8)
    whitened = data.whiten(data.from_arrays("noise", images, np.arange(90) % 3, images[:6], np.arange(6) % 3))
    real = structs.SyntheticSet(images=np.asarray(whitened.train.images), labels=np.arange(90) % 3)
    found = distillers.examine(real, whitened, [line(1, 1.0, 1.0)])
    assert found.outside < 0.01 and condition.farthest(whitened) == 1
    beyond = real.replace(images=3 * real.images)
    assert distillers.examine(beyond, whitened, [line(1, 1.0, 1.0)]).outside > 0.3
    assert jax.tree.all(jax.tree.map(np.isfinite, found))
