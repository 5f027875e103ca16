"""The published presets: each reads as its paper has it, and each runs, bare and under MetaDD, on a stand-in."""

import dataclasses

import jax
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import data, distillers, features, keys
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job import checks, prepare, presets, published, recipes

GREY = ("mnist", "fashion_mnist")


def stand_in(channels):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 6)
    images = rng.integers(0, 256, (18, 8, 8, channels)).astype(np.uint8)
    return data.from_arrays("stand-in", images, labels, images, labels)


def shrunk(config):
    """The preset on a stand-in: 3 classes, 8x8 pixels, tiny networks and counts; its rates and switches stay."""
    # A stored image of a packed set stands for four of the six real ones.
    ipc, words = min(config.ipc, 2 if config.parameterisation == "pixels" else 1), {"augmentation": "flip_crop"}
    batch = getattr(config.own, "batch_syn", None)
    trajectories = {
        "experts": 2, "epochs": 2, "at_once": 2, "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2,
        "batch_syn": batch and min(batch, 3 * ipc), **words,
    }  # fmt: skip
    small = {
        "dm": {"batch_size": 4, "class_batch": 2, **words},
        "dc": {"batch_size": 4, "class_batch": 2, "inner": 1},
        "dsa": {"batch_size": 4, "class_batch": 2, "inner": 1, **words},
        "idc": {"batch_size": 4, "real_images": 8, **words},
        "mtt": trajectories,
        "tesla": trajectories,
        "datm": trajectories | {"min_start_epoch": 0, "first_upper": None},
        "ncfm": {"experts": 2, "epochs": 1, "at_once": 2, "batch_size": 4, "class_batch": 2, "frequencies": 8, **words},
        "rded": {"candidates": 8, "crops": 2},
        "sre2l": {"squeeze": "short", "squeeze_epochs": 1, "weights": None},
    }
    own = dataclasses.replace(config.own, **small[config.method])
    if not own.trains:
        return dataclasses.replace(config, ipc=1, own=own)
    ipc, warmup = 1 if config.parameterisation != "pixels" else ipc, 0 if config.pool else None
    return dataclasses.replace(config, ipc=ipc, steps=2, own=own, pool_warmup=warmup)


def distilled(name, tmp_path):
    """Images before and after two steps, bare and under MetaDD."""
    preset = presets.preset(name)
    config = shrunk(preset)
    dataset = stand_in(1 if preset.dataset in GREY else 3)
    if config.zca:
        dataset = data.whiten(dataset)
    spec = "convnet_bn:width=4,depth=1" if config.own.teaches else "convnet:width=4,depth=1"
    net = mdd.zoo.parse(spec, dataset.num_classes, dataset.image_shape)
    made = distillers.parameterisations.parse(config.parameterisation, dataset)
    job = prepare.Job(config, tmp_path, dataset, net, (), (), made)
    trained = mdd.training.pretrain(net, dataset, recipes.backbone(config))
    base, tx = prepare.make(job, job.own.prepare(net, dataset, trained, tmp_path, progress=lambda *facts: None))
    auxiliaries = [features.freeze(net, net.init(jax.random.key(seed)), dataset) for seed in (1, 2)]
    own = InvariantConfig(views="flip", calibration_steps=1)
    every = (base, distillers.metadd(base, auxiliaries, config=own)) if base.trains else (base,)
    for method in every:
        # Of the run's own start, or images that stand still would seem to move.
        before = method.synthetic(distillers.init_state(keys.root(0, "distil"), method, tx, dataset))
        state = distillers.distil(0, method, tx, dataset, distillers.RunConfig(steps=2, chunk=2, device_mode="jit"))
        yield np.asarray(before.images), np.asarray(method.synthetic(state).images), method.trains


@pytest.mark.slow  # the contract suite runs every method
@pytest.mark.parametrize("name", published.PRESETS)
def test_every_preset_runs_bare_and_under_metadd(name, tmp_path):
    for before, made, trains in distilled(name, tmp_path):
        assert np.isfinite(made).all()
        assert (np.abs(made - before).max() > 0) == trains


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_is_a_setting_that_can_work(name):
    config = presets.preset(name)
    checks.check_options(config)
    recipe = recipes.evaluation(config)
    assert recipe.epochs >= config.eval_epochs
    side = {"mnist": 28, "fashion_mnist": 28, "mnist5k": 28, "tiny_imagenet": 64, "tiny_imagenet_sre2l": 64}.get(
        config.dataset, 32
    )
    side = config.image_size or (128 if config.dataset in data.IMAGENET_SUBSETS else side)
    shape = (side, side, 1 if config.dataset in (*GREY, "mnist5k") else 3)
    for spec in (config.backbone, *config.seen, *config.unseen):
        mdd.zoo.parse(spec, 10, shape)
    config.own.check_network(mdd.zoo.parse(config.backbone, 10, shape))


def test_no_matching_preset_ends_on_a_shorter_chunk():
    """It would be compiled once more."""
    for name, row in published.PRESETS.items():
        if row.method in ("dm", "dc", "dsa", "datm"):
            assert row.steps % row.chunk == 0, name


def test_rows_read_as_published():
    row = presets.preset("mtt/cifar100_mtt/50")
    own = row.own
    assert (own.syn_steps, own.expert_epochs, own.max_start_epoch) == (80, 2, 40)
    assert (row.image_lr, own.lr_lr, own.lr_teacher, own.batch_syn, row.zca) == (1e3, 1e-5, 0.01, 125, True)
    assert (row.steps, own.experts, own.epochs, row.train_seeds, row.eval_epochs) == (5000, 100, 50, 5, 1000)
    assert presets.preset("dm/cifar10/1250").image_lr == 10 and presets.preset("dm/cifar10/50").image_lr == 1
    assert presets.preset("dm/cifar10/50").own == distillers.DM(batch_size=256, class_batch=None)
    dc = presets.preset("dc/mnist/50")
    assert (dc.steps, dc.image_lr, dc.image_momentum, dc.own.batch_size) == (1001 * 50, 0.1, 0.5, 256)
    assert (dc.eval_augmentation, dc.eval_epochs) == ("dc_crop_scale_rotate", 1000)
    assert presets.preset("dc/cifar10/10").eval_epochs == 300
    squeeze = presets.preset("sre2l/tiny_imagenet/100")
    assert (squeeze.dataset, squeeze.eval_recipe) == ("tiny_imagenet_sre2l", "sre2l_tiny")
    assert (squeeze.image_lr, squeeze.steps, squeeze.own.r_bn, squeeze.own.roll) == (0.1, 4000, 1.0, (-4, 4))
    assert (
        presets.preset("tesla/imagenet/1").own.soft_labels and presets.preset("tesla/cifar10/1").own.batch_syn is None
    )


def test_idcs_rows_have_its_learning_rates():
    """newer_methods.md 12.4: CIFAR at 1, 10 and 50 images a class."""
    rows = [presets.preset(f"idc/cifar10/{ipc}") for ipc in (1, 10, 50)]
    assert [row.image_lr for row in rows] == pytest.approx([5e-4, 0.005, 0.025])
    assert {(row.parameterisation, row.steps, row.image_momentum, row.zca) for row in rows} == {
        ("factor2", 200_000, 0.5, False)
    }
    own = rows[0].own
    assert (own.batch_size, own.inner, own.most, own.real_images, own.distance) == (64, 100, 128, 2000, "mse")
    recipe = recipes.evaluation(rows[1])
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.momentum) == (1000, 64, 0.01, 0.9)
    assert (recipe.schedule, recipe.drop_factor, recipe.mix, recipe.mix_probability) == ("drops", 0.2, "cutmix", 0.5)
    assert recipe.drops == pytest.approx((2 / 3, 5 / 6))
    less = dataclasses.replace(rows[1], eval_same_compute=True)
    assert recipes.evaluation(less, per_stored=4).epochs == 250 and recipes.evaluation(less).epochs == 1000
    assert recipes.evaluation(rows[1], per_stored=4).epochs == 1000


def test_ncfms_and_rdeds_rows_read_as_published():
    row, recipe = presets.preset("ncfm/cifar10/10"), recipes.evaluation(presets.preset("ncfm/cifar10/10"))
    own = row.own
    assert (own.frequencies, own.batch_size, own.experts, own.epochs, own.sampler) == (4096, 1024, 20, 60, "gaussian")
    assert (own.amplitude, own.phase, own.calibration, own.weight_decay, own.patience) == (0.5, 0.5, 1.0, 5e-4, 500)
    assert (row.parameterisation, row.steps, row.image_lr, row.train_seeds) == ("factor2", 20_000, 0.001, 10)
    assert (recipe.epochs, recipe.augmentation) == (2000, "idc_color_crop_flip_scale_rotate")
    sgd = presets.preset("ncfm/cifar100/10")
    assert (sgd.own.update, sgd.image_lr, sgd.image_momentum) == ("sgd", 0.01, 0.5)
    assert presets.preset("ncfm/cifar100/50").own.update == "adamw"
    assert [presets.preset(f"ncfm/tiny_imagenet/{ipc}").eval_epochs for ipc in (1, 10, 50)] == [2000, 300, 40]
    assert presets.preset("ncfm/imagewoof/10").own.epochs == 80
    row = presets.preset("rded/imagenet/10")
    assert (row.own.factor, row.own.candidates, row.own.crops, row.eval_batch, row.wrapped) == (2, 300, 5, 100, False)
    recipe = recipes.evaluation(row)
    assert (recipe.epochs, recipe.batch_size, recipe.shuffle, recipe.crop_scale) == (300, 100, 2, (0.5, 1.0))
    small = recipes.evaluation(presets.preset("rded/cifar10/1"))
    assert (small.batch_size, small.shuffle, small.crop_scale, small.temperature) == (10, 1, (1.0, 1.0), 20.0)


def test_datms_rows_read_as_published():
    row = presets.preset("datm/cifar10/50")
    own = row.own
    assert (own.syn_steps, own.expert_epochs, own.lr_labels, own.batch_syn, own.lr_lr) == (80, 2, 2, None, 1e-5)
    assert (own.min_start_epoch, own.first_upper, own.max_start_epoch, own.expansion_end) == (0, 20, 40, 2000)
    assert (own.experts, own.epochs, own.rho, own.rho_alpha, own.lr_teacher) == (100, 100, 0.01, 0.3, 0.01)
    assert (row.image_lr, row.image_momentum, row.zca, row.steps, row.eval_epochs) == (1e3, 0.5, True, 10_001, 1000)
    recipe = recipes.evaluation(row)
    assert (recipe.epochs, recipe.drop_epoch, recipe.batch_size, recipe.momentum) == (1001, 502, 128, 0.9)
    assert (recipe.optimiser, recipe.weight_decay) == ("sgd", 5e-4)
    assert presets.preset("datm/cifar10/1").own.threshold == 1.1 and own.threshold == 1.0
    late = presets.preset("datm/cifar100_mtt/50").own
    assert (late.picks, late.min_start_epoch, late.first_upper, late.max_start_epoch) == ("random", 20, None, 70)
    for name, other in published.PRESETS.items():
        if name.startswith("datm/"):  # every target lies within the stored epochs, every chunk within the set
            classes = {"cifar10": 10, "cifar100_mtt": 100, "tiny_imagenet": 200}[other.dataset]
            assert other.own.max_start_epoch - 1 + other.own.expert_epochs <= 100
            assert (other.own.batch_syn or 1) <= classes * other.ipc


@pytest.mark.parametrize(
    ("preset", "method", "own"),
    [
        ("smoke", "dsa", distillers.DSA(batch_size=8)),
        ("mnist5k", "dc", distillers.DC(batch_size=64)),
        ("cifar10_published", "sre2l", distillers.SqueezeRecover(crop=False, flip=False, roll=(0, 4))),
        ("dm/cifar10/10", "dsa", distillers.DSA(batch_size=256, class_batch=None)),
    ],
)
def test_another_method_in_a_preset_keeps_what_the_preset_says_where_it_can(preset, method, own):
    assert presets.preset(preset).with_method(method).own == own


def test_teslas_two_programs_keep_their_variants():
    paper, code = presets.preset("tesla/cifar10/1"), presets.preset("tesla/cifar10/1").with_method("tesla_code")
    assert code.own == dataclasses.replace(paper.own, variant="code")
    with pytest.raises(ValueError, match=r"own holds settings of DM, but the method is mtt; give MTT"):
        dataclasses.replace(presets.preset("smoke"), method="mtt")
