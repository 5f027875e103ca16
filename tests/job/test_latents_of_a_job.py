"""Latents in the main job: how many images a budget gives, a generator trained on the way, what lies in the folder."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from matplotlib import image

from metadd_jax import distillers, exchange
from metadd_jax.job import common, effects, options, plan, prepare, stages

OWN = distillers.DM(batch_size=4, augmentation="none")
TINY = {
    "backbone": "convnet:width=4,depth=1", "seen": (), "unseen": ("mlp:width=8",), "wrapped": False, "own": OWN,
    "distill_seeds": 1, "train_seeds": 1, "pretrain_epochs": 1, "eval_epochs": 1, "steps": 2, "chunk": 2, "ipc": 1,
}  # fmt: skip
SIREN = "siren:width=2,depth=1,fit_steps=20,lr=0.01"  # 9 numbers a net


@pytest.fixture
def job_of(tmp_path, monkeypatch):
    """Three classes of 9 pictures of 8 x 8."""
    monkeypatch.setattr(common, "open_cache", lambda folder: None)  # JAX's own is this process's
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (27, 8, 8, 1), dtype=np.uint8), np.repeat([0, 1, 2], 9)
    np.savez(tmp_path / "own.npz", images=images, labels=labels, test_images=images[::9], test_labels=labels[::9])
    places = {"dataset": tmp_path / "own.npz", "cache_dir": tmp_path / "cache", "run_dir": tmp_path / "run"}
    settings = {name: str(path) for name, path in places.items()} | TINY
    return lambda **changes: prepare.open_job(options.DistillConfig(**settings | changes))


@pytest.mark.parametrize(
    ("text", "images", "name"),
    [(SIREN, 7, "siren2x1"), ("decoder:weights=random,width=1", 1, "decoder1_random")],
)
def test_a_budget_is_filled_with_nets(job_of, text, images, name):
    job = job_of(plan=True, parameterisation=text)
    assert (job.counts, job.stored_counts, job.real_counts) == ((images,) * 3, (1, 1, 1), (1, 1, 1))
    assert stages.metadata(job, "dm", 0)["ipc"] == 1
    assert prepare.make(job, None)[0].name == f"dm+{name}"
    # At least two products of every weight at every pixel.
    least = {"siren2x1": 2 * 64 * (2 * 2 + 2), "decoder1_random": 2 * 64 * 2 * 9}[name]
    assert 1 <= plan.decode_flops(job) / (3 * images * least) < 20


def test_too_few_images_for_a_budget_are_told_with_the_numbers(job_of):
    with pytest.raises(ValueError, match=r"ipc is 14, .*\(--parameterisation siren:width=2.* takes 14 for 2 stored\)"):
        job_of(parameterisation=SIREN, ipc=2)
    assert job_of(plan=True, parameterisation=SIREN, ipc=2, short_class="fewer").counts == (9, 9, 9)


def test_a_generator_is_trained_for_the_run_and_shown(job_of, tmp_path):
    """All of the job but the judging, twice: the second time the generator comes from the cache."""
    bare = job_of(parameterisation="decoder:width=1,epochs=1,fit_steps=2", ipc=2)
    random = jax.tree.leaves(bare.parameterisation.frozen)
    job = stages.prepare_latents(bare)
    method, tx = prepare.make(job, None)
    stages.distil_all(job, [method], tx, effects.Stopwatch())
    job.lock.release()
    folder = tmp_path / "run" / "dm+decoder1_trained" / "seed0"
    facts = json.loads((folder / "latents.json").read_text())
    assert facts["stored_values"] == 6 * 64 and facts["generator_weights"] == "trained"
    assert facts["generator_explained"] <= 1 and facts["frozen_values"] == sum(leaf.size for leaf in random)
    latents, _ = exchange.load_latents(folder / "latents.npz")
    again = stages.prepare_latents(bare)
    assert again.parameterisation.trained.cached
    assert any(np.any(a != b) for a, b in zip(random, jax.tree.leaves(again.parameterisation.frozen), strict=True))
    images = np.load(folder / "synthetic.npz")["images"]
    made = jax.jit(again.parameterisation.decode)(latents, again.parameterisation.frozen)
    np.testing.assert_allclose(made, images, atol=1e-5)
    # Three rows of ten pictures of 8 x 8.
    height, width, _ = image.imread(tmp_path / "run" / "samples.png").shape
    assert 2.5 < width / height < 5


def test_a_plan_counts_the_training_and_the_start_and_does_neither(job_of, monkeypatch):
    monkeypatch.setattr(plan, "CALIBRATION_STEPS", 1)
    job, told = job_of(plan=True, parameterisation=f"{SIREN},fill=False"), []
    asked = dataclasses.replace(job.parameterisation, on_fit=lambda *words: told.append(words))
    plans, hours = plan.estimate(dataclasses.replace(job, parameterisation=asked))
    assert [one.method for one in plans] == ["dm+siren2x1"] and not told
    rate = plans[0].flops / plans[0].seconds
    assert hours["start"] * 3600 == pytest.approx(3 * plan.decode_flops(job) * 20 / rate)
    styles = job_of(plan=True, parameterisation="decoder:width=1,epochs=2,fit_steps=5").parameterisation
    assert styles.prepare_flops(10.0, 27, 3, 4) == {"generator": 3 * 10 * 2 * 27, "start": 3 * 10 * 5 * 3 * 4}


def test_glad_style_latents_are_distilled_and_exported(job_of, tmp_path):
    text = "stylegan:layer=1,layers=3,channel_base=16,channel_max=2,w_dim=3,z_dim=3,w_rate=0.5"
    job = job_of(parameterisation=text, ipc=2)
    method, tx = prepare.make(job, None)
    stages.distil_all(job, [method], tx, effects.Stopwatch())
    job.lock.release()
    folder = tmp_path / "run" / "dm+stylegan_f1" / "seed0"
    latents, facts = exchange.load_latents(folder / "latents.npz")
    assert jax.tree.map(np.shape, latents) == {"w": (6, 3, 3), "f": (6, 28, 28, 2)}
    assert facts["stored_values_per_class"] == 2 * (9 + 1568) and facts["layer"] == 1
    assert facts["generator"] == "StyleGAN3-type, untrained, seed 0 (GLaD-style)"
    made = jax.jit(job.parameterisation.decode)(latents, job.parameterisation.frozen)
    np.testing.assert_allclose(made, exchange.load_npz(folder / "synthetic.npz")[0].images, atol=1e-5)
    # Two products of every weight of the layers above at every place, and the filters on top.
    least = 2 * 6 * 9 * 4 * (30**2 + 30**2)
    assert least < plan.decode_flops(job) < 40 * least
