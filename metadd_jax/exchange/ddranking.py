"""The configuration by which DD-Ranking judges an exported set: its recipe for the DC family, or for learned labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metadd_jax import structs
from metadd_jax.data import catalog

# What it calls the sets that it knows, and whose constants it standardises them by: CIFAR-100 by CIFAR-10's.
_NAMES = {
    "cifar10": ("CIFAR10", "cifar10"),
    "cifar100_mtt": ("CIFAR100", "cifar10"),
    "tiny_imagenet": ("TinyImageNet", "imagenet"),
    "imagenet": ("ImageNet1K", "imagenet"),
    **{
        name: (f"Image{name.removeprefix('image').capitalize()}", "imagenet")
        for name in ("imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk")
    },
}
_DSA = {
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "scale": 1.2, "crop": 0.125,
    "cutout": 0.5,
}  # fmt: skip


def config(synthetic: structs.SyntheticSet, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Makes what ``ddranking.config.Config.from_file`` reads; paths in it are relative and for the user to set.

    Args:
      synthetic: the set.
      metadata: see ``checks.check_set``; ``dataset`` is the catalog's name.

    Returns:
      JSON's own kinds; None for data that DD-Ranking does not know, or a set standardised by other constants than its
      (such as ``cifar100``, DC's): it would judge on images that are scaled otherwise than the set.
    """
    known = _NAMES.get(str(metadata.get("dataset")))
    if known is None:
        return None
    name, constants = known[0], catalog.CONSTANTS[known[1]]
    whitened = metadata["value_space"] == "zca"
    if not whitened and not all(
        np.shape(metadata[key]) == np.shape(wanted) and np.allclose(metadata[key], wanted, atol=1e-4)
        for key, wanted in zip(("mean", "std"), constants, strict=True)
    ):
        return None
    counts = np.bincount(np.asarray(synthetic.labels), minlength=len(metadata["class_names"]))
    if len(set(counts.tolist())) > 1:
        return None  # its hard labels are as many of each class
    side = int(synthetic.images.shape[1])
    depth = 3 + sum(side > limit for limit in (32, 64, 128))
    settings: dict[str, Any] = {
        "dataset": name, "real_data_path": "./datasets", "ipc": int(counts[0]), "im_size": [side, side],
        "model_name": f"ConvNet-{depth}", "use_zca": whitened, "data_aug_func": "dsa", "aug_params": _DSA,
        "optimizer": "sgd", "lr_scheduler": "step", "step_size": 500, "weight_decay": 0.0005, "momentum": 0.9,
        "num_eval": 5, "num_epochs": 1000, "syn_batch_size": 256, "real_batch_size": 256, "num_workers": 4,
        "use_torchvision": False, "custom_train_trans": None, "custom_val_trans": None, "random_data_format": "tensor",
        "random_data_path": "./random_data", "eval_full_data": True, "save_path": "./results/scores.csv",
        "device": "cuda", "dist": False,
    }  # fmt: skip
    if synthetic.soft_labels is not None:
        settings |= {
            "soft_label_criterion": "sce", "soft_label_mode": "S", "loss_fn_kwargs": {"temperature": 1.0},
            "use_aug_for_hard": True, "stu_use_torchvision": False, "tea_use_torchvision": False, "teacher_dir": None,
            "teacher_model_names": None,
        }  # fmt: skip
    return settings
