"""Auxiliaries with epochs of their own: what is trained how long, who looks, what it costs."""

import types

import jax
import numpy as np
import pytest

from metadd_jax import distillers, files, keys
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job import common, options, plan, prepare, stages

SEEN = ("convnet:width=4,depth=1", "convnet:width=6,depth=1")


def open_job(folder, **settings):
    config = options.DistillConfig(
        backbone="convnet:width=4,depth=2", seen=SEEN, unseen=("mlp:width=8",), own=distillers.DM(batch_size=4),
        pretrain_epochs=3, train_per_class=4, plan=True, run_dir=str(folder / "run"), cache_dir=str(folder / "cache"),
        metadd=InvariantConfig(views="auto", weighting="raw"), **settings,
    )  # fmt: skip
    return prepare.open_job(config)


@pytest.fixture
def asked(monkeypatch):
    """What would have been trained, (label, epochs); its weights are those of a seed that is the number of epochs."""
    found = []

    def pretrain(nets, dataset, recipe, cache, **settings):
        found.extend((net.label, recipe.epochs) for net in nets)
        return [types.SimpleNamespace(net=net, variables=net.init(jax.random.key(recipe.epochs))) for net in nets]

    monkeypatch.setattr(common, "pretrain", pretrain)
    return found


def same(variables, others):
    pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(others), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_each_network_looks_after_each_number_of_epochs(asked, tmp_path):
    job = open_job(tmp_path, seen_epochs=(0, 2))
    trained = stages.pretrain_all(job, unseen=False)
    assert asked == [(job.backbone.label, 3)]
    frozen = stages.freeze_all(job, trained)
    assert asked[1:] == [(label, 2) for label in SEEN]
    assert list(job.looked_through) == [f"{label}, {number} epochs" for label in SEEN for number in (0, 2)]
    (base, *ours) = prepare.wrapped(job, distillers.dm(job.backbone, ipc=1, batch_size=4), frozen)
    looking = ours[0].frozen["auxiliaries"]
    assert [one.net.label for one in looking] == [SEEN[0], SEEN[0], SEEN[1], SEEN[1]]
    for one, number in zip(looking, (0, 2, 0, 2), strict=True):
        key = jax.random.key(2) if number else keys.root(0, "pretrain")  # untrained: where a training would start
        assert same(one.variables, one.net.init(key)) and one.map_eps
    assert same(frozen[job.backbone.label].variables, job.backbone.init(jax.random.key(3)))
    assert base.terms is None


def test_without_epochs_of_their_own_they_are_those_of_the_table(asked, tmp_path):
    job = open_job(tmp_path)
    frozen = stages.freeze_all(job, stages.pretrain_all(job))
    assert list(frozen) == [net.label for net in job.networks] and {epochs for _, epochs in asked} == {3}
    assert list(job.looked_through) == list(SEEN)
    bare = open_job(tmp_path / "bare", seen_epochs=(2,), wrapped=False)  # nobody looks, so none is trained
    assert (
        list(stages.freeze_all(bare, {})) == []
        and len(prepare.wrapped(bare, None, {"convnet:width=4,depth=2": 0})) == 1
    )


def test_a_plan_counts_them(tmp_path):
    usual, twice = open_job(tmp_path / "usual"), open_job(tmp_path / "twice", seen_epochs=(0, 2))
    own = sum(map(plan.forward_flops, usual.seen))
    more = plan.step_flops(twice, twice.config.metadd) - plan.step_flops(usual, usual.config.metadd)
    assert more == pytest.approx(4 * sum(usual.counts) * own)
    hours = plan._stages(twice, [plan.Plan("dm", 1.0, 1.0, ())])["auxiliaries"]
    assert hours == pytest.approx(3 * 2 * len(usual.dataset.train.images) * own / 3600)
    assert set(prepare.stand_ins(twice, dict.fromkeys([net.label for net in twice.networks]))) > set(
        twice.looked_through
    )


def test_networks_that_learn_from_the_set_need_space_in_its_checkpoints(tmp_path, monkeypatch):
    job, asked = open_job(tmp_path, variants=("further_lr=0.1",)), []
    monkeypatch.setattr(files, "require_space", lambda folder, size: asked.append(size))
    prepare._check_space(job, 1000)
    prepare._check_space(open_job(tmp_path / "bare"), 1000)
    # The two latest checkpoints and the export of three sets (bare, MetaDD, the variant), and the one being written.
    weights = 4 * sum(net.num_params() for net in job.seen)
    assert asked == [
        (3 * 3 * job.config.distill_seeds + 1) * (1000 + weights),
        (3 * 2 * job.config.distill_seeds + 1) * 1000,
    ]


def test_a_number_said_twice_is_refused_and_four_can_be_drawn_from(tmp_path):
    with pytest.raises(ValueError, match="--seen-epochs 1 2 1 says a number twice; say it once"):
        open_job(tmp_path, seen_epochs=(1, 2, 1))
    with pytest.raises(
        ValueError, match=r"--metadd\.drawn 5 in --variants drawn=5 is more than the 4 networks of --seen"
    ):
        open_job(tmp_path, seen_epochs=(1, 2), variants=("drawn=5",))
    assert open_job(tmp_path, seen_epochs=(1, 2), variants=("drawn=4",)).config.auxiliaries == 4
