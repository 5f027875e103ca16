"""The plan: formulas against XLA's count, memory against what lies there, a job that cannot fit is refused."""

import options
import pipeline
import plan
import pytest

from metadd_jax import parallel

TINY = {
    "backbone": "convnet:width=4,depth=2",
    "seen": ("convnet:width=4,depth=1", "convnet:width=6,depth=1"),
    "unseen": ("mlp:width=8",),
    "batch_size": 4,
    "pretrain_epochs": 1,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    config = options.DistillConfig(plan=True, run_dir=str(folder / "run"), cache_dir=str(folder / "cache"), **TINY)
    return pipeline.prepare(config)


def test_a_plan_leaves_no_run_behind(job):
    assert not any(job.directory.iterdir())


def test_forward_flops_are_those_of_the_layers(job):
    net = job.backbone  # 3x3 convolutions 1 -> 4 on 32x32 (28 padded by 3) and 4 -> 4 on 16x16, Linear 256 -> 10
    products = 9 * 4 * 32 * 32 + 9 * 16 * 16 * 16 + 256 * 10
    assert plan.forward_flops(net) == pytest.approx(2 * products, rel=0.5)  # norms, pools and ReLUs come on top


def test_steps_hours_and_memory(job):
    plans, stages = plan.plan(job)
    assert [entry.method for entry in plans] == ["dm", "dm+metadd"]
    bare, wrapped = plans
    f = plan.forward_flops(job.backbone)
    assert bare.flops == pytest.approx(f * 10 * 4 + 3 * f * 10)
    assert wrapped.flops == pytest.approx(bare.flops + 10 * 4 * sum(map(plan.forward_flops, job.seen)))
    sizes = {part.name: part.size for part in bare.parts}
    assert sizes["real images"] == pytest.approx(4000 * 28 * 28, rel=0.02)
    assert sizes["set and optimiser"] == pytest.approx(3 * 4 * 10 * 28 * 28, rel=0.02)  # images twice and momentum
    assert wrapped.memory > bare.memory > 0 and min(bare.seconds, wrapped.seconds) > 0
    expected = job.config.steps * job.config.distill_seeds * (bare.seconds + wrapped.seconds) / 3600
    assert stages["distil"] == pytest.approx(expected)
    text = "\n".join(plan.lines(job, plans, stages))
    assert "| dm+metadd |" in text and "hours:minutes" in text


def test_what_cannot_fit_is_refused_with_the_option_that_mends_it(job, monkeypatch):
    monkeypatch.setattr(parallel, "memory_limit", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"dm needs about 4 MB.*real images.*change --stream-per-class"):
        plan.plan(job)
