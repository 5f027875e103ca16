"""Judge an exported set by DD-Ranking's own program (PyPI: ddranking 0.2.0), on a CPU and without a network.

    metadd export SET --format ddranking --out judged
    python experiments/benchmark/pytorch/judge_by_ddranking.py judged --data data.npz --network MLP --epochs 100

It needs an environment of its own with ``pip install ddranking``; neither JAX nor this package is imported. The
trainings, the search of the step size, the choice of the best check and the formulas are the tool's. What is put in its
place, because release 0.2.0 stops there:

* ``get_dataset`` downloads CIFAR-10 (utils/data.py, ``datasets.CIFAR10(download=True)``): the arrays of --data.
* ``set_seed`` takes the clock: --seed and the number of the run.
* ``LabelRobustScoreHard`` appends each score twice and fails when pandas writes columns of two lengths: nothing is
  written.
* ``AugmentationRobustScore`` with hard labels has no ``teacher_models`` and no ``test_loader_real``, forgets the
  ``class_map`` of its random images and the ``step_size`` of its schedule: given to it.
* ``REAL_DATA_TRAINING_CONFIG`` knows ConvNet-3 alone for CIFAR-10: other networks train as that one does.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import torch
from ddranking.metrics import AugmentationRobustScore, LabelRobustScoreHard, aug_robust, hard_label
from ddranking.utils import misc

_DSA = {
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "scale": 1.2, "crop": 0.125,
    "cutout": 0.5,
}  # fmt: skip
_LRS = ("synthetic", "real", "random")  # in the order in which the tool trains
_ARS = ("synthetic_augmented", "random_augmented", "synthetic_plain", "random_plain")


class Pictures(torch.utils.data.Dataset):
    """Standardised images [N, C, H, W] with whole numbers as labels, as torchvision's CIFAR10 gives them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        scaled = (images / np.float32(255) - mean.astype(np.float32)) / std.astype(np.float32)
        self.images = torch.tensor(scaled.transpose(0, 3, 1, 2))
        self.targets = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.targets[index]


def put_in_place(data: str, seed: int, epochs: int) -> tuple[int, int]:
    """Puts what is named above in the tool's place; gives the number of classes and the side of an image."""
    with np.load(data, allow_pickle=False) as held:
        arrays = {name: held[name] for name in ("images", "labels", "test_images", "test_labels", "mean", "std")}
    constants = arrays["mean"], arrays["std"]
    train = Pictures(arrays["images"], arrays["labels"], *constants)
    test = Pictures(arrays["test_images"], arrays["test_labels"], *constants)
    classes, side = int(arrays["labels"].max()) + 1, int(arrays["images"].shape[1])
    same = {number: number for number in range(classes)}
    made = (3, (side, side), *(one.tolist() for one in constants), classes, train, test, test, same, same)
    original, schedule = aug_robust.get_random_data_tensors, aug_robust.get_lr_scheduler
    for module in (hard_label, aug_robust):
        module.get_dataset = lambda *_: made
        module.set_seed = functools.partial(lambda runs: misc.set_seed(1000 * seed + next(runs)), itertools.count())
        module.save_results = lambda *_: None
    aug_robust.get_random_data_tensors = lambda name, images, indices, ipc, run, path: original(
        name, images, indices, ipc, same, run, path
    )
    aug_robust.get_lr_scheduler = lambda name, optimiser, epochs_: schedule(name, optimiser, epochs_, epochs // 2)
    return classes, side


def recorded(judge: Any, names: tuple[str, ...]) -> list[float]:
    """The accuracies (percent) that ``judge`` keeps for its scores, in the order in which it finds them."""
    kept: list[float] = []
    for name in names:
        helper = getattr(judge, name)

        def call(*args: Any, helper: Any = helper, **options: Any) -> Any:
            found = helper(*args, **options)
            kept.append(float(found[0]))
            return found

        setattr(judge, name, call)
    return kept


def main() -> None:
    """Reads the command line, trains, prints accuracies and scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="of metadd export --format ddranking")
    parser.add_argument("--data", required=True, help=".npz: images, labels, test_images, test_labels, mean, std")
    parser.add_argument("--network", default="ConvNet-3", help="as the tool names it: ConvNet-3, MLP, LeNet")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5, help="trainings, each with random images of its own")
    parser.add_argument("--rate", type=float, default=0.01, help="step size on the set; for random images it searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accuracy", action="store_true", help="only train on the set, without augmentation")
    config = parser.parse_args()
    classes, side = put_in_place(config.data, config.seed, config.epochs)
    images = torch.load(config.folder / "images.pt", weights_only=True)
    labels = torch.load(config.folder / "labels.pt", weights_only=True)
    key = f"CIFAR10-{config.network}"
    hard_label.REAL_DATA_TRAINING_CONFIG.setdefault(key, hard_label.REAL_DATA_TRAINING_CONFIG["CIFAR10-ConvNet-3"])
    with tempfile.TemporaryDirectory() as place:
        common = {
            "dataset": "CIFAR10", "ipc": len(labels) // classes, "im_size": (side, side), "num_workers": 0,
            "model_name": config.network, "data_aug_func": "dsa", "aug_params": _DSA, "optimizer": "sgd",
            "lr_scheduler": "step", "step_size": config.epochs // 2, "num_eval": config.runs, "device": "cpu",
            "num_epochs": config.epochs, "random_data_format": "tensor", "random_data_path": place,
            "save_path": f"{place}/scores.csv",
        }  # fmt: skip
        if config.accuracy:
            common |= {"data_aug_func": None}
        robust = LabelRobustScoreHard(**common, eval_full_data=True)
        if config.accuracy:
            found = [
                robust._compute_hard_label_metrics_helper(images, None, labels, config.rate, "syn")[0]
                for _ in range(config.runs)
            ]
            print(json.dumps({"network": config.network, "epochs": config.epochs, "accuracies": found}))
            return
        accuracies = recorded(robust, ("_compute_hard_label_metrics_helper",))
        scores = robust.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=config.rate)
        second = AugmentationRobustScore(**common, label_type="hard")
        second.teacher_models, second.test_loader_real = None, second.test_loader_syn
        others = recorded(second, ("_compute_with_aug_metrics_helper", "_compute_without_aug_metrics_helper"))
        scores |= second.compute_metrics(image_tensor=images, syn_lr=config.rate)
    by_name = {name: accuracies[at :: len(_LRS)] for at, name in enumerate(_LRS)}
    by_name |= {name: others[at :: len(_ARS)] for at, name in enumerate(_ARS)}
    print(json.dumps({"network": config.network, "epochs": config.epochs, "accuracies": by_name, "scores": scores}))


if __name__ == "__main__":
    main()
