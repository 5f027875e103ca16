"""The plan: formulas against XLA's count, memory against what lies there, a job that cannot fit is refused."""

import dataclasses
import types

import jax
import pytest

from metadd_jax import distillers, parallel, zoo
from metadd_jax.job import options, plan, prepare

TINY = {
    "backbone": "convnet:width=4,depth=2",
    "seen": ("convnet:width=4,depth=1", "convnet:width=6,depth=1"),
    "unseen": ("mlp:width=8",),
    "own": distillers.DM(batch_size=4),
    "pretrain_epochs": 1,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    config = options.DistillConfig(plan=True, run_dir=str(folder / "run"), cache_dir=str(folder / "cache"), **TINY)
    return prepare.open_job(config)


def test_a_plan_leaves_no_run_behind(job):
    assert not any(job.directory.iterdir())


def test_forward_flops_are_those_of_the_layers(job):
    net = job.backbone  # 3x3 convolutions 1 -> 4 on 32x32 (28 padded by 3) and 4 -> 4 on 16x16, Linear 256 -> 10
    products = 9 * 4 * 32 * 32 + 9 * 16 * 16 * 16 + 256 * 10
    assert plan.forward_flops(net) == 2 * products


def test_controls_cost_a_pass_of_their_twins_and_of_the_real_images(job):
    own = sum(map(plan.forward_flops, job.seen))
    usual = plan.step_flops(job, job.config.metadd)

    def more(**changes):
        return plan.step_flops(job, dataclasses.replace(job.config.metadd, **changes)) - usual

    twins = plan.step_flops(job, prepare.variant(job.config.metadd, "var_untrained=1")) - usual
    assert twins == pytest.approx(4 * sum(job.counts) * own)
    config = dataclasses.replace(job.config, variants=("only,cos=1",))
    stages = plan._stages(dataclasses.replace(job, config=config), [plan.Plan("dm", 1.0, 1.0, ())])
    assert stages["real side"] == pytest.approx(len(job.dataset.train.images) * own / 3600)
    config = dataclasses.replace(job.config, variants=("var_real=1", "var_real=1,cam.alpha=mean", "only,cos=1"))
    stages = plan._stages(dataclasses.replace(job, config=config), [plan.Plan("dm", 1.0, 1.0, ())])
    assert stages["real side"] == pytest.approx(3 * len(job.dataset.train.images) * own / 3600)
    assert more(focus=0.5) == pytest.approx(sum(job.counts) * own)
    assert more(further_lr=0.1) == pytest.approx(3 * sum(job.counts) * own)
    assert more(subset=5) == pytest.approx(-4 * (sum(job.counts) - 5) * own)
    assert "real side" not in plan._stages(job, [plan.Plan("dm", 1.0, 1.0, ())])


def test_flops_of_a_step_bare_and_under_metadd(job):
    f, own = plan.forward_flops(job.backbone), sum(map(plan.forward_flops, job.seen))

    def flops(wrapped=False, **changes):
        config = dataclasses.replace(job.config, **changes)
        return plan.step_flops(dataclasses.replace(job, config=config), config.metadd if wrapped else None)

    assert flops() == pytest.approx(f * 10 * 4 + 3 * f * 10)
    assert flops(True) == pytest.approx(flops() + 10 * 4 * own)
    subset = dataclasses.replace(job.config.metadd, subset=5)
    assert flops(True, metadd=subset) == pytest.approx(flops() + 5 * 4 * own)
    mtt = distillers.MTT(syn_steps=4, batch_syn=5)  # every formula: tests/distillers/test_registry.py
    assert flops(method="mtt", own=mtt) == pytest.approx(4 * 5 * 12 * f)


@pytest.mark.parametrize(("steps_that_fit", "classes"), [(0.5, 1), (7, 3), (1000, 10)])
def test_classes_at_once_are_those_that_half_of_the_memory_holds(job, monkeypatch, steps_that_fit, classes):
    own = dataclasses.replace(job.config.own, class_batch=None)
    asked = dataclasses.replace(job, config=dataclasses.replace(job.config, own=own))
    assert plan.for_memory(asked).config.own.class_batch == 1  # a CPU
    compiled = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(temp_size_in_bytes=1000))
    monkeypatch.setattr(plan, "_compile", lambda job, method, tx: (compiled, ()))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(parallel, "memory_limit", lambda: 1000 * steps_that_fit)
    assert plan.for_memory(asked).config.own.class_batch == classes
    assert plan.for_memory(job).config == job.config


@pytest.mark.parametrize(
    ("method", "own", "knobs"),
    [
        ("dm", distillers.DM(), ["--seen", "--dm.class-batch or --dm.micro-batch or --dm.batch-size"]),
        ("mtt", distillers.MTT(experts=5), ["--mtt.experts", "--mtt.batch-syn"]),
    ],
)
def test_memory_is_made_smaller_by_options_of_the_method(job, method, own, knobs):
    asked = dataclasses.replace(job, config=dataclasses.replace(job.config, method=method, own=own))
    stood_in = own.stand_in(job.backbone, None)
    base, tx = prepare.make(asked, stood_in)
    state = distillers.init_state(jax.random.key(0), base, tx, job.dataset)
    parts = plan._parts(asked, base, state, 1e6, wrapped=False)
    assert [part.knob for part in parts] == ["--stream-per-class", "--ipc", *knobs]
    if method == "mtt":
        assert parts[2].size == 4 * 5 * own.snapshots * job.backbone.num_params()
    assert "--metadd.subset" in plan._parts(asked, base, state, 1e6, wrapped=True)[3].knob


def test_steps_hours_and_memory(job):
    bare = dataclasses.replace(job, config=dataclasses.replace(job.config, wrapped=False))
    plans, stages = plan.estimate(bare)
    [entry] = plans
    sizes = {part.name: part.size for part in entry.parts}
    assert sizes["real images"] == pytest.approx(4000 * 28 * 28, rel=0.02)
    assert sizes["set and optimiser"] == pytest.approx(3 * 4 * 10 * 28 * 28, rel=0.02)  # images twice and momentum
    assert entry.memory == sum(sizes.values()) and entry.seconds > 0
    assert stages["distil"] == pytest.approx(job.config.steps * job.config.distill_seeds * entry.seconds / 3600)
    text = "\n".join(plan.lines(job, plans, stages))
    assert "| dm |" in text and "hours:minutes" in text


def test_what_cannot_fit_is_refused_with_the_option_that_mends_it(monkeypatch):
    monkeypatch.setattr(parallel, "memory_limit", lambda: 4_000_000)
    parts = (plan.Part("real images", 3e6, "--stream-per-class"), plan.Part("scratch of a step", 2e6, "--class-batch"))
    with pytest.raises(ValueError, match=r"dm needs about 5 MB on a device of 4 MB.*real images.*--stream-per-class"):
        plan.refuse_what_cannot_fit([plan.Plan("dm", 1.0, 1.0, parts)])
    plan.refuse_what_cannot_fit([plan.Plan("dm", 1.0, 1.0, parts[:1])])


def test_an_accelerators_plan_tells_which_trainings_run_at_once(job, monkeypatch):
    wide = dataclasses.replace(job, unseen=(*job.unseen, zoo.parse("alexnet", 10, (28, 28, 1))))
    wide = dataclasses.replace(wide, config=dataclasses.replace(job.config, ipc=10))
    assert plan._order_of_trainings(wide) == []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    [line] = plan._order_of_trainings(wide)
    small, large = line.split("one after the other")
    assert all(net.label in small for net in job.networks) and "alexnet" not in small and "alexnet" in large
    assert f"up to {job.config.at_once} seeds" in small
