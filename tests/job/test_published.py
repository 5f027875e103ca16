"""The published presets: each reads as its paper has it, and each runs, bare and under MetaDD, on a stand-in."""

import dataclasses

import jax
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import data, distillers, features
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job import methods, presets, published

GREY = ("mnist", "fashion_mnist")


def stand_in(channels):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 6)
    images = rng.integers(0, 256, (18, 8, 8, channels)).astype(np.uint8)
    return data.from_arrays("stand-in", images, labels, images, labels)


def shrunk(config):
    """The preset on a stand-in: 3 classes, 8x8 pixels, tiny networks and counts; its rates and switches stay."""
    count = 3 * min(config.ipc, 2)
    return dataclasses.replace(
        config,
        ipc=min(config.ipc, 2),
        batch_size=4,
        class_batch=2,
        steps=2,
        augmentation="flip_crop",
        dc=dataclasses.replace(config.dc, inner=1),
        mtt=dataclasses.replace(
            config.mtt, experts=2, epochs=2, at_once=2, syn_steps=2, expert_epochs=1, max_start_epoch=2,
            batch_syn=min(config.mtt.batch_syn, count),
        ),
        sre2l=dataclasses.replace(config.sre2l, squeeze="short", squeeze_epochs=1, weights=None),
    )  # fmt: skip


def distilled(name, tmp_path):
    """Images before and after two steps, bare and under MetaDD."""
    preset = presets.preset(name)
    config = shrunk(preset)
    dataset = stand_in(1 if preset.dataset in GREY else 3)
    if config.zca:
        dataset = data.whiten(dataset)
    spec = "convnet_bn:width=4,depth=1" if config.method == "sre2l" else "convnet:width=4,depth=1"
    net = mdd.zoo.parse(spec, dataset.num_classes, dataset.image_shape)
    methods.check_backbone(config, net)
    prerequisite = {"sre2l": methods.squeeze, "mtt": methods.experts, "tesla": methods.experts}.get(config.method)
    trained = prerequisite(config, net, dataset, tmp_path) if prerequisite else None
    base, tx = methods.make(config, net, dataset, trained=trained)
    auxiliaries = [features.freeze(net, net.init(jax.random.key(seed)), dataset) for seed in (1, 2)]
    own = InvariantConfig(views="flip", calibration_steps=1)
    for method in (base, distillers.metadd(base, auxiliaries, config=own)):
        before = method.synthetic(distillers.init_state(jax.random.key(0), method, tx, dataset))
        state = distillers.distil(0, method, tx, dataset, distillers.RunConfig(steps=2, chunk=2, device_mode="jit"))
        yield np.asarray(before.images), np.asarray(method.synthetic(state).images)


@pytest.mark.slow  # the contract suite runs every method
@pytest.mark.parametrize("name", published.PRESETS)
def test_every_preset_runs_bare_and_under_metadd(name, tmp_path):
    for before, made in distilled(name, tmp_path):
        assert np.isfinite(made).all()
        assert np.abs(made - before).max() > 0


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_is_a_setting_that_can_work(name):
    config = presets.preset(name)
    methods.check(config)
    recipe = methods.evaluation_recipe(config)
    assert recipe.epochs >= config.eval_epochs
    side = {"mnist": 28, "fashion_mnist": 28, "mnist5k": 28, "tiny_imagenet": 64, "tiny_imagenet_sre2l": 64}.get(
        config.dataset, 32
    )
    side = config.image_size or (128 if config.dataset in data.IMAGENET_SUBSETS else side)
    shape = (side, side, 1 if config.dataset in (*GREY, "mnist5k") else 3)
    for spec in (config.backbone, *config.seen, *config.unseen):
        mdd.zoo.parse(spec, 10, shape)
    methods.check_backbone(config, mdd.zoo.parse(config.backbone, 10, shape))


def test_no_matching_preset_ends_on_a_shorter_chunk():
    """It would be compiled once more."""
    for name, row in published.PRESETS.items():
        if row.method in ("dm", "dc", "dsa"):
            assert row.steps % row.chunk == 0, name


def test_rows_read_as_published():
    row = presets.preset("mtt/cifar100_mtt/50")
    assert (row.mtt.syn_steps, row.mtt.expert_epochs, row.mtt.max_start_epoch) == (80, 2, 40)
    assert (row.image_lr, row.mtt.lr_lr, row.mtt.lr_teacher, row.mtt.batch_syn, row.zca) == (1e3, 1e-5, 0.01, 125, True)
    assert (row.steps, row.mtt.experts, row.mtt.epochs, row.train_seeds, row.eval_epochs) == (5000, 100, 50, 5, 1000)
    assert presets.preset("dm/cifar10/1250").image_lr == 10 and presets.preset("dm/cifar10/50").image_lr == 1
    dc = presets.preset("dc/mnist/50")
    assert (dc.steps, dc.image_lr, dc.image_momentum, dc.batch_size) == (1001 * 50, 0.1, 0.5, 256)
    assert (dc.eval_augmentation, dc.eval_epochs) == ("dc_crop_scale_rotate", 1000)
    assert presets.preset("dc/cifar10/10").eval_epochs == 300
    squeeze = presets.preset("sre2l/tiny_imagenet/100")
    assert (squeeze.dataset, squeeze.eval_recipe) == ("tiny_imagenet_sre2l", "sre2l_tiny")
    assert (squeeze.image_lr, squeeze.steps, squeeze.sre2l.r_bn, squeeze.sre2l.roll) == (0.1, 4000, 1.0, (-4, 4))
    assert presets.preset("tesla/imagenet/1").mtt.soft_labels
