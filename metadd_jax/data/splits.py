"""Which images accuracy is measured on."""

from __future__ import annotations

from metadd_jax.structs import Dataset, ImageArrays

# No "train": a network's accuracy on what it learned from is no measure of a set.
SPLITS = ("test", "validation")


def split_of(dataset: Dataset, split: str) -> ImageArrays:
    """Picks the split on which accuracy is measured.

    Args:
      dataset: the real data.
      split: "test", or "validation" for choosing settings: what is chosen on test images is no measurement on them.

    Raises:
      ValueError: for another word, or where no validation images were carved out.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    if split == "test":
        return dataset.test
    if dataset.validation is None:
        raise ValueError(f"{dataset.name} was loaded without validation images; load it with validation_fraction=0.1")
    return dataset.validation
