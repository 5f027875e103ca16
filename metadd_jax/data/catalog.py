"""What is known about data sets by name: constants, class names, ImageNet subsets, augmentation.

The constants are part of a distilled set: repositories disagree on them (CIFAR-100 above all), so each
spelling that a repository uses has a name of its own here.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple


class Constants(NamedTuple):
    """Per-channel mean and standard deviation of pixels in [0, 1], as tuples of C floats."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# The lists of MTT (imagenette to imagesquawk), of GLaD (imagenet_a to _e) and imageblub, in the order in which the
# published programs number the classes: the third of imagewoof is label 2 although its index is the largest.
IMAGENET_SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagenet_a": (255, 376, 984, 364, 500, 986, 333, 576, 148, 135),
    "imagenet_b": (129, 916, 90, 275, 995, 874, 102, 259, 685, 139),
    "imagenet_c": (565, 94, 554, 535, 92, 392, 291, 136, 324, 11),
    "imagenet_d": (9, 258, 13, 262, 19, 339, 321, 24, 93, 322),
    "imagenet_e": (816, 96, 100, 145, 739, 713, 783, 76, 688, 326),
    "imageblub": (392, 393, 33, 397, 6, 107, 327, 390, 108, 122),
}
"""Ten ImageNet-1K classes each; the order is the order of the labels. ``imagenet_a`` to ``_e`` are GLaD's."""

IMAGENET_CLASSES = 1000
"""ImageNet-1K's index of a class is its rank among all the sorted WordNet ids."""

SUBSET_SIZE = 128
"""Side of the images of an ImageNet subset in the field (MTT, GLaD)."""

# To four digits, as the published programs have them: a set is standardised by what its numbers were measured with.
_MNIST = Constants((0.1307,), (0.3081,))
_FASHION = Constants((0.2861,), (0.3530,))
_SVHN = Constants((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
_CIFAR10 = Constants((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = Constants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

CONSTANTS: dict[str, Constants] = {
    "mnist": _MNIST,
    "mnist5k": _MNIST,
    "fashion_mnist": _FASHION,
    "svhn": _SVHN,
    "svhn_cropped": _SVHN,
    "cifar10": _CIFAR10,
    # The DC repository's; MTT, TESLA, SRe2L and DD-Ranking use those of CIFAR-10 on CIFAR-100.
    "cifar100": Constants((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar100_mtt": _CIFAR10,
    # DC, MTT and DD-Ranking take ImageNet's, SRe2L those of the set itself.
    "tiny_imagenet": _IMAGENET,
    "tiny_imagenet_sre2l": Constants((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": _IMAGENET,
    "imagenet2012": _IMAGENET,
    **dict.fromkeys(IMAGENET_SUBSETS, _IMAGENET),
    # FRePo and RCIG: the deviation over all pixels, where the others average the deviations of images.
    "cifar10_frepo": Constants((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "tiny_imagenet_frepo": Constants((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813)),
    "imagenette_frepo": Constants((0.4626, 0.4588, 0.4251), (0.2790, 0.2745, 0.2973)),
    "imagewoof_frepo": Constants((0.4917, 0.4613, 0.3931), (0.2513, 0.2442, 0.2530)),
    # RDED standardises every set by ImageNet's; CV-DD has CIFAR-10's of FRePo.
    "cifar10_rded": _IMAGENET,
    "cifar100_rded": _IMAGENET,
    "cifar100_cvdd": Constants((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}

TFDS_NAMES: dict[str, str] = {
    "svhn": "svhn_cropped",
    "imagenet": "imagenet2012",
    **dict.fromkeys(IMAGENET_SUBSETS, "imagenet2012"),
    "cifar100_mtt": "cifar100",
    "cifar10_frepo": "cifar10",
    "tiny_imagenet_frepo": "tiny_imagenet",
    "tiny_imagenet_sre2l": "tiny_imagenet",
    "imagenette_frepo": "imagenette",
    "imagewoof_frepo": "imagewoof",
    "cifar10_rded": "cifar10",
    "cifar100_rded": "cifar100",
    "cifar100_cvdd": "cifar100",
}
"""The TensorFlow Datasets name of a set whose name here differs, or that it is a part of."""

_DIGITS = tuple(str(digit) for digit in range(10))

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "mnist5k": _DIGITS,
    "svhn": _DIGITS,
    "svhn_cropped": _DIGITS,
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip

NOT_FLIPPED = frozenset({"mnist", "mnist5k", "svhn", "svhn_cropped"})
"""Sets in which a mirrored image may mean something else."""


OWN: dict[str, str | None] = {}
"""The sets of ``data.register``, each with the tokens of its augmentation "auto" where they were given."""


def names() -> frozenset[str]:
    """All names that mean something here, without those of ``data.register``."""
    return frozenset().union(CONSTANTS, CLASS_NAMES, IMAGENET_SUBSETS, TFDS_NAMES, TFDS_NAMES.values())


def augmentation(name: str) -> str:
    """Chooses the differentiable augmentation of a set: DSA's tokens, with flips except for digits.

    A set that is not known here is not flipped either, and a warning says so: a missing flip costs little accuracy, and
    a mirrored letter, digit or organ may belong to another class.

    Args:
      name: the set's, as ``load`` takes it.

    Returns:
      The strategy's tokens, joined by "_" (see ``metadd_jax.augment``).
    """
    own = OWN.get(name)
    if own is not None:
        return own
    if name not in names():
        warnings.warn(
            f'augmentation "auto" of {name}, which is not in the catalog, is {_UPRIGHT}: no mirror images, which may '
            f'mean something else; where they do not, name {_FLIPPED} instead of "auto"',
            stacklevel=2,
        )
        return _UPRIGHT
    return _UPRIGHT if name in NOT_FLIPPED else _FLIPPED


_UPRIGHT = "color_crop_cutout_scale_rotate"
_FLIPPED = "color_crop_cutout_flip_scale_rotate"
