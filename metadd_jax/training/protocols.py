"""How networks are trained by the programs of NCFM and RDED: their pre-training, and how they judge a set."""

from __future__ import annotations

import functools

from metadd_jax import augment
from metadd_jax.training import views
from metadd_jax.training.recipes import EVALUATIONS, RELABELLING, Recipe


def ncfm_pretraining(epochs: int) -> Recipe:
    """Returns the training of the networks that NCFM draws from, as IDC's: SGD at .01, x .2 at 2/3 and 5/6, batch 128.

    Wang et al., "Dataset Distillation with Neural Characteristic Function" (CVPR 2025), and its released program.

    Args:
      epochs: 60 as published, 80 for ten-class subsets of ImageNet.
    """
    return Recipe(
        epochs=epochs, batch_size=128, schedule="drops", drops=(2 / 3, 5 / 6), drop_factor=0.2,
        augmentation="idc_color_crop", mix="cutmix", mix_probability=0.5,
    )  # fmt: skip


def ncfm_evaluation(epochs: int, *, augmentation: augment.Augmentation = augment.NATURAL) -> Recipe:
    """Returns NCFM's evaluation: AdamW at .001 (decay .01), x .5 at each fifth, batch 128, CutMix on half the batches.

    The released program prints the best test accuracy over its checks; here that of the last epoch counts.

    Args:
      epochs: 2000 as published (Tiny-ImageNet at 10 and 50 images per class 300 and 40).
      augmentation: DSA's tokens, of which the cutout is left out; colours and mirror images always, one of the others
        an image.
    """
    augmentation = _without_cutout(augmentation)
    return Recipe(
        epochs=epochs, batch_size=128, optimiser="adamw", learning_rate=1e-3, weight_decay=0.01, schedule="drops",
        drops=(0.2, 0.4, 0.6, 0.8), drop_factor=0.5, augmentation=augmentation, mix="cutmix", mix_probability=0.5,
    )  # fmt: skip


def idc_evaluation(epochs: int, *, augmentation: augment.Augmentation = augment.NATURAL) -> Recipe:
    """Returns IDC's evaluation: SGD at .01, momentum .9, decay 5e-4, x .2 at 2/3 and 5/6, batch 64, CutMix on half.

    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (ICML 2022), and its released
    program, which tests four times and prints the best and the last accuracy; here that of the last epoch counts.

    Args:
      epochs: 1000 as published on CIFAR, SVHN and MNIST; on ImageNet fewer, the more images a set has.
      augmentation: as for ``ncfm_evaluation``.
    """
    return Recipe(
        epochs=epochs, batch_size=64, learning_rate=0.01, momentum=0.9, weight_decay=5e-4, schedule="drops",
        drops=(2 / 3, 5 / 6), drop_factor=0.2, augmentation=_without_cutout(augmentation), mix="cutmix",
        mix_probability=0.5,
    )  # fmt: skip


def _without_cutout(augmentation: augment.Augmentation) -> augment.Augmentation:
    """The tokens in IDC's way, see ``ncfm_evaluation``; what is no text of DSA's tokens stays."""
    if isinstance(augmentation, str) and augmentation not in ("", "none") and not augmentation.startswith(views.OTHERS):
        return "idc_" + "_".join(token for token in augmentation.split("_") if token != "cutout")
    return augmentation


def rded_evaluation(epochs: int, *, factor: int = 1, augmentation: augment.Augmentation = "none") -> Recipe:
    """Returns RDED's evaluation: AdamW at .001, decay .01 but for vectors, half a cosine, CutMix always, T = 20.

    Sun et al., "On the Diversity and Realism of Distilled Dataset" (CVPR 2024), and its released program. Patches are
    permuted, images cropped to 1 / ``factor`` of the area or more and mirrored. At factor 1 the crop is all of a square
    image. The program changes the step size once per epoch, here it changes with every step; it prints the best of six
    test accuracies and lets batch norm see every batch twice, which is not done here.

    Args:
      epochs: 300 as published.
      factor: into how many patches a side an image is stitched.
      augmentation: nothing; the views are its own.
    """
    del augmentation
    return Recipe(
        epochs=epochs, batch_size=100, optimiser="adamw", learning_rate=1e-3, weight_decay=0.01, decay_vectors=False,
        schedule="half_cosine", shuffle=factor, crop="resized", crop_scale=(1 / factor, 1.0), flip=True, mix="cutmix",
        temperature=20.0,
    )  # fmt: skip


EVALUATIONS |= {
    "ncfm": ncfm_evaluation,
    "idc": idc_evaluation,
    "rded": rded_evaluation,
    "rded_factor2": functools.partial(rded_evaluation, factor=2),
}
RELABELLING |= {"rded", "rded_factor2"}
