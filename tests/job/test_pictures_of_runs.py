"""A picture that cannot be drawn is a warning and costs no results."""

import types

import numpy as np
import pytest

from metadd_jax import structs
from metadd_jax.job import results


@pytest.fixture
def job(tmp_path):
    arrays = types.SimpleNamespace(mean=np.float32([0.5]), std=np.float32([0.25]))
    dataset = types.SimpleNamespace(train=arrays, whitening=None, class_names=("$", "b"))
    settings = types.SimpleNamespace(first_seed=0, distill_seeds=2, ipc=1)
    return types.SimpleNamespace(directory=tmp_path, dataset=dataset, config=settings, seen=())


@pytest.fixture
def sets():
    made = structs.SyntheticSet(images=np.zeros((2, 8, 8, 1), np.float32), labels=np.arange(2))
    return {"random": [made] * 2, "dm": [made] * 2}


def test_every_distilled_set_is_drawn(job, sets):
    results.draw(job, sets, {})
    drawn = sorted(path.relative_to(job.directory).as_posix() for path in job.directory.rglob("*.png"))
    assert drawn == ["dm/seed0/synthetic.png", "dm/seed1/synthetic.png"]


def test_one_that_cannot_be_drawn_is_a_warning(job, sets):
    """A file of the user's in its place, a fault of the drawing library: the other set is drawn, the run goes on."""
    (job.directory / "dm" / "seed0").mkdir(parents=True)
    (job.directory / "dm" / "seed0" / "synthetic.png").write_text("mine")
    with pytest.warns(UserWarning, match="no pictures of .*seed0: ValueError: .* is not what metadd_jax wrote"):
        results.draw(job, sets, {})
    assert (job.directory / "dm" / "seed0" / "synthetic.png").read_text() == "mine"
    assert (job.directory / "dm" / "seed1" / "synthetic.png").exists()


def test_any_error_of_the_drawing_is_a_warning(job, sets, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no font")

    monkeypatch.setattr(results.pictures, "grid", fail)
    with pytest.warns(UserWarning, match="RuntimeError: no font") as warned:
        results.draw(job, sets, {})
    assert len(warned) == 2
