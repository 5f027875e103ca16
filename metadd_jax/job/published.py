"""The published settings of every base method as presets METHOD/DATA/IPC, each bare and under MetaDD.

Sources: the methods' papers and programs (DC, DSA, DM, IDC, MTT, TESLA, DATM, SRe2L, NCFM, RDED). What they judge on
one architecture is judged here on MetaDD's seen and unseen ones too. ``--no-wrapped`` leaves the bare method. The
tables name what differs between rows; everything else stands in the functions below them.
"""

from __future__ import annotations

import dataclasses

from metadd_jax import distillers
from metadd_jax.invariant import InvariantConfig
from metadd_jax.job.options import DistillConfig

_SMALL = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet")
_SMALL_IPC = (1, 10, 50)
_DM_LARGE = (100, 200, 500, 1000, 1250)

# data, ipc: syn_steps, expert_epochs, max_start_epoch, image_lr, lr_lr, lr_teacher, batch_syn, zca
# The published table with its misprints corrected (cifar10 at 10: image_lr 1e5 for 1e2, lr_lr 1e-4 for 1e-5).
_MTT = {
    ("cifar10", 1): (50, 2, 2, 1e2, 1e-7, 0.01, None, True),
    ("cifar10", 10): (30, 2, 20, 1e2, 1e-5, 0.001, None, True),
    ("cifar10", 50): (30, 2, 40, 1e3, 1e-5, 0.001, None, False),
    ("cifar100_mtt", 1): (20, 3, 20, 1e3, 1e-5, 0.01, None, True),
    ("cifar100_mtt", 10): (20, 2, 20, 1e3, 1e-5, 0.01, None, False),
    ("cifar100_mtt", 50): (80, 2, 40, 1e3, 1e-5, 0.01, 125, True),
    ("tiny_imagenet", 1): (10, 2, 10, 1e4, 1e-4, 0.01, None, False),
    ("tiny_imagenet", 10): (20, 2, 40, 1e4, 1e-4, 0.01, 200, False),
    ("tiny_imagenet", 50): (20, 2, 40, 1e4, 1e-4, 0.01, 300, False),
    **{
        (subset, ipc): (20, 2, 10, 1e5, 1e-6, 0.01, batch, False)
        for subset in ("imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk")
        for ipc, batch in ((1, None), (10, 20))
    },
}
# The README leaves out --zca for cifar10 at 1, though its experts were trained with it.
_TESLA = {
    ("cifar10", 1): (50, 2, 5, 1e3, 1e-7, 0.01, None, True),
    ("cifar100_mtt", 50): (80, 2, 40, 1e3, 1e-5, 0.01, 125, True),
    ("imagenet", 1): (10, 3, 10, 1e4, 1e-4, 0.01, 100, False),
}
# IDC's data, and the rate of its images at 10 a class and 32 pixels a side. Without MNIST, whose judged networks see no
# CutMix there, and without ImageNet, whose ResNet has batch norm and warms up on real images.
_IDC = {("cifar10", (1, 10, 50)): 5e-3, ("cifar100", (10, 20)): 5e-3, ("svhn", (1, 10, 50)): 5e-3}
# data, ipc: syn_steps, expert_epochs, image_lr, lr_labels, batch_syn (None: all), min, current, max, end, lr_lr
# Of the configuration files; where they differ from the paper's table its authors follow the latter.
_DATM = {
    ("cifar10", 1): (80, 2, 1e2, 5, None, 0, None, 4, None, 1e-7),
    ("cifar10", 10): (80, 2, 1e2, 2, None, 0, 10, 20, 1000, 1e-5),
    ("cifar10", 50): (80, 2, 1e3, 2, None, 0, 20, 40, 2000, 1e-5),
    ("cifar10", 500): (40, 2, 50.0, 10, 1000, 40, None, 60, None, 1e-5),
    ("cifar10", 1000): (100, 2, 50.0, 10, 1000, 40, None, 60, None, 1e-5),
    ("cifar100_mtt", 1): (40, 3, 1e3, 10, None, 0, 10, 20, 1000, 1e-5),
    ("cifar100_mtt", 10): (80, 2, 1e3, 10, None, 0, 30, 50, 2000, 1e-5),
    ("cifar100_mtt", 50): (80, 2, 1e3, 10, 1000, 20, None, 70, None, 1e-5),
    ("cifar100_mtt", 100): (80, 2, 50.0, 10, 1000, 30, None, 70, None, 1e-5),
    ("tiny_imagenet", 1): (40, 2, 1e4, 10, None, 0, 15, 20, 2000, 1e-4),
    ("tiny_imagenet", 10): (40, 2, 1e2, 10, 500, 10, None, 50, None, 1e-4),
    ("tiny_imagenet", 50): (20, 2, 1e2, 10, 1000, 40, None, 70, None, 1e-4),
}
# data, ipc: image_lr, steps, r_bn, whether the teacher sees crops and flips, roll
_SRE2L = {
    **{(data, ipc): (0.25, 1000, 0.01, False, (0, 4)) for data in ("cifar10", "cifar100_mtt") for ipc in (1, 10, 50)},
    **{("tiny_imagenet", ipc): (0.1, 4000, 1.0, True, (-4, 4)) for ipc in (50, 100)},
    **{("imagenet", ipc): (0.25, 4000, 0.01, True, (0, 32)) for ipc in (10, 50)},
}
_SRE2L_RECIPES = {"cifar10": "cifar", "cifar100_mtt": "cifar", "tiny_imagenet": "tiny", "imagenet": "imagenet"}
_SRE2L_DATA = {"tiny_imagenet": "tiny_imagenet_sre2l"}  # constants of its own
# data, ipc: epochs of the pool, epochs of an evaluation, what trains the images
_NCFM = {
    **{(data, ipc): (60, 2000, "adamw") for data in ("cifar10", "cifar100") for ipc in _SMALL_IPC},
    ("cifar100", 10): (60, 2000, "sgd"),
    **{("tiny_imagenet", ipc): (60, epochs, "adamw") for ipc, epochs in ((1, 2000), (10, 300), (50, 40))},
    **{
        (subset, ipc): (80, 2000, "adamw")
        for subset in ("imagenette", "imagewoof", "imagefruit", "imagemeow", "imagesquawk", "imageyellow")
        for ipc in (1, 10)
    },
}
# data: factor, and the batch of an evaluation at 1, 10 and 50 images per class
_RDED = {
    "cifar10": (1, (10, 50, 100)),
    "cifar100": (1, (20, 100, 200)),
    "tiny_imagenet": (1, (100, 100, 100)),
    "imagenette": (2, (10, 50, 100)),
    "imagewoof": (2, (10, 50, 100)),
    "imagenet": (2, (20, 100, 200)),
}


def _common(data: str, ipc: int, method: str, own: distillers.Method) -> DistillConfig:
    """MetaDD's networks, and the DC family's way to judge: seeds and trainings as published."""
    return DistillConfig(
        dataset=data,
        ipc=ipc,
        backbone="convnet",
        seen=("resnet34:norm=batch", "googlenet:norm=batch", "vit", "vgg11_bn"),
        unseen=("alexnet", "resnet50:norm=batch", "vgg19_bn", "swin_s"),
        method=method,
        own=own,
        # 5 sets of 20 trainings: the DC family reports mean and deviation of all 100.
        distill_seeds=5,
        train_seeds=20,
        pretrain_epochs=30,
        eval_recipe="dc",
        eval_epochs=1000,
        metadd=InvariantConfig(views="auto"),
        chunk=100,
        save_every=1000,
    )


def _imagenet_networks(config: DistillConfig) -> DistillConfig:
    """From 128 pixels on the names mean torchvision's networks, which have no option ``norm``."""
    return dataclasses.replace(
        config,
        seen=("resnet34", "googlenet", "vit_b_16", "vgg11"),
        unseen=("alexnet", "resnet50", "vgg19", "swin_s"),
    )


def _dm(data: str, ipc: int) -> DistillConfig:
    # 10 from 100 images a class on, as DM's README has it.
    large = data == "cifar10" and ipc >= 100
    return dataclasses.replace(
        _common(data, ipc, "dm", distillers.DM(class_batch=None)),
        # The program counts from 0 to 20,000 inclusive.
        steps=20_001,
        image_lr=10.0 if large else 1.0,
        chunk=113,  # divides the steps: a shorter last chunk would be compiled once more
        save_every=2000,
    )


def _gradient(data: str, ipc: int, method: str, own: distillers.GradientMatching) -> DistillConfig:
    """DC and DSA: 1001 networks, each matched ``outer`` times."""
    # One of our steps is one matching, so a published iteration is ``outer`` of them.
    outer, _ = own.loops(ipc)
    return dataclasses.replace(_common(data, ipc, method, own), image_lr=0.1, steps=1001 * outer, chunk=91)


def _dc(data: str, ipc: int) -> DistillConfig:
    """Judged as it distils, without DSA; only MNIST is augmented."""
    augmented = data == "mnist"
    words = "dc_crop_scale_rotate" if augmented else "none"
    config = _gradient(data, ipc, "dc", distillers.DC())
    return dataclasses.replace(config, eval_augmentation=words, eval_epochs=1000 if augmented else 300)


def _modelpool(ipc: int) -> DistillConfig:
    """ModelPool's table at 1000 iterations with both of its halves, by its paper: pool (depth 3) and distillation."""
    # At 1 image a class its loops are (1, 10), and the 10 are never reached: training is left out after the last step.
    config = dataclasses.replace(_dc("cifar10", ipc), pool=("convnets",), eval_kd=True)
    return dataclasses.replace(config, pool_warmup=501)  # the program counts from 0 to 500 inclusive


def _trajectory(
    data: str,
    ipc: int,
    row: tuple,
    method: str,
    record: type[distillers.TrajectoryMatching],
    *,
    steps: int,
    train_seeds: int,
) -> DistillConfig:
    syn_steps, expert_epochs, max_start, image_lr, lr_lr, lr_teacher, batch_syn, zca = row
    imagenet = data == "imagenet"
    own = record(
        experts=50 if imagenet else 100,
        epochs=50,
        at_once=10,
        syn_steps=syn_steps,
        expert_epochs=expert_epochs,
        max_start_epoch=max_start,
        lr_teacher=lr_teacher,
        lr_lr=lr_lr,
        batch_syn=batch_syn,
        soft_labels=imagenet,
    )
    config = dataclasses.replace(
        _common(data, ipc, method, own),
        image_size=64 if imagenet else None,
        zca=zca,
        steps=steps,
        image_lr=image_lr,
        distill_seeds=1,
        train_seeds=train_seeds,
        save_every=500,
    )
    small = data in _SMALL or data == "cifar100_mtt" or imagenet
    return config if small else _imagenet_networks(config)


def _datm(data: str, ipc: int, row: tuple) -> DistillConfig:
    syn_steps, expert_epochs, image_lr, lr_labels, batch_syn, first, current, last, end, lr_lr = row
    own = distillers.DATM(
        experts=100,
        epochs=100,
        at_once=10,
        syn_steps=syn_steps,
        expert_epochs=expert_epochs,
        min_start_epoch=first,
        first_upper=current,
        max_start_epoch=last,
        expansion_end=end or distillers.DATM.expansion_end,
        threshold=1.1 if (data, ipc) == ("cifar10", 1) else 1.0,
        picks="random" if (data, ipc) == ("cifar100_mtt", 50) else "correct",
        lr_labels=lr_labels,
        lr_lr=lr_lr,
        batch_syn=batch_syn,
    )
    return dataclasses.replace(
        _common(data, ipc, "datm", own),
        zca=True,
        # The program counts from 0 to 10,000 inclusive.
        steps=10_001,
        image_lr=image_lr,
        distill_seeds=1,
        train_seeds=1,
        eval_recipe="datm",
        chunk=73,  # divides the steps
        save_every=500,
    )


def _idc(data: str, ipc: int, rate: float) -> DistillConfig:
    """Packed by 2 as published; IDC-I is the same with ``--parameterisation pixels``."""
    own = distillers.IDC(class_batch=None)
    return dataclasses.replace(
        _common(data, ipc, "idc", own),
        parameterisation="factor2",
        image_lr=rate * ipc / 10,
        # 2000 networks of 100 sweeps.
        steps=2000 * own.inner,
        distill_seeds=1,
        train_seeds=3,
        eval_recipe="idc",
        save_every=2000,
    )


def _squeeze(data: str, ipc: int, row: tuple) -> DistillConfig:
    image_lr, steps, r_bn, views, roll = row
    recipe = _SRE2L_RECIPES[data]
    squeeze = "cifar" if recipe == "cifar" else "tiny"
    own = distillers.SqueezeRecover(squeeze=squeeze, r_bn=r_bn, crop=views, flip=views, roll=roll)
    config = dataclasses.replace(
        _common(_SRE2L_DATA.get(data, data), ipc, "sre2l", own),
        backbone="resnet18_bn",
        image_lr=image_lr,
        steps=steps,
        distill_seeds=1,
        train_seeds=3,
        eval_recipe=f"sre2l_{recipe}",
        eval_epochs={"cifar": 400, "tiny": 100, "imagenet": 300}[recipe],
        save_every=500,
    )
    if recipe != "imagenet":
        return config
    return dataclasses.replace(_imagenet_networks(config), image_size=224, backbone="resnet18")


def _ncfm(data: str, ipc: int, row: tuple) -> DistillConfig:
    pool_epochs, eval_epochs, update = row
    own = distillers.NCFM(experts=20, epochs=pool_epochs, at_once=10, update=update, class_batch=None)
    config = dataclasses.replace(
        _common(data, ipc, "ncfm", own),
        parameterisation="factor2",
        steps=20_000,
        image_lr=0.001 if update == "adamw" else 0.01,
        distill_seeds=1,
        train_seeds=10,
        eval_recipe="ncfm",
        eval_epochs=eval_epochs,
    )
    return config if data in _SMALL else _imagenet_networks(config)


def _rded(data: str, ipc: int) -> DistillConfig:
    """Bare: nothing is trained, so there is nothing for MetaDD to join."""
    factor, batches = _RDED[data]
    config = dataclasses.replace(
        _common(data, ipc, "rded", distillers.RDED(factor=factor)),
        wrapped=False,
        steps=1,
        backbone="resnet18_bn",
        distill_seeds=1,
        train_seeds=3,
        eval_recipe="rded" if factor == 1 else f"rded_factor{factor}",
        eval_epochs=300,
        eval_batch=batches[_SMALL_IPC.index(ipc)],
    )
    if data in _SMALL:
        return config
    return dataclasses.replace(_imagenet_networks(config), image_size=224, backbone="resnet18")


PRESETS: dict[str, DistillConfig] = {
    **{f"dm/{data}/{ipc}": _dm(data, ipc) for data in _SMALL for ipc in _SMALL_IPC},
    **{f"dm/cifar10/{ipc}": _dm("cifar10", ipc) for ipc in _DM_LARGE},
    **{f"dc/{data}/{ipc}": _dc(data, ipc) for data in _SMALL for ipc in _SMALL_IPC},
    **{f"modelpool/cifar10/{ipc}": _modelpool(ipc) for ipc in (1, 10)},
    **{f"dsa/{data}/{ipc}": _gradient(data, ipc, "dsa", distillers.DSA()) for data in _SMALL for ipc in _SMALL_IPC},
    **{
        f"mtt/{data}/{ipc}": _trajectory(data, ipc, row, "mtt", distillers.MTT, steps=5000, train_seeds=5)
        for (data, ipc), row in _MTT.items()
    },
    **{
        f"tesla/{data}/{ipc}": _trajectory(data, ipc, row, "tesla", distillers.TESLA, steps=10_000, train_seeds=3)
        for (data, ipc), row in _TESLA.items()
    },
    **{f"idc/{data}/{ipc}": _idc(data, ipc, rate) for (data, ipcs), rate in _IDC.items() for ipc in ipcs},
    **{f"datm/{data}/{ipc}": _datm(data, ipc, row) for (data, ipc), row in _DATM.items()},
    **{f"sre2l/{data}/{ipc}": _squeeze(data, ipc, row) for (data, ipc), row in _SRE2L.items()},
    **{f"ncfm/{data}/{ipc}": _ncfm(data, ipc, row) for (data, ipc), row in _NCFM.items()},
    **{f"rded/{data}/{ipc}": _rded(data, ipc) for data in _RDED for ipc in _SMALL_IPC},
}
