"""Other data for the networks that MetaDD looks through (``--seen-data``).

What of its gain needs networks that know the very images that are distilled?
"""

from __future__ import annotations

import numpy as np

import metadd_jax as mdd
from metadd_jax.job.options import DistillConfig

UNUSED = "unused"
"""The word for the training images that ``--train-per-class`` leaves out."""


def check(config: DistillConfig) -> None:
    """Refuses ``--seen-data`` beside options that it does not go with, before any data are read.

    Raises:
      ValueError: naming the option.
    """
    if config.seen_data is None:
        return
    said = f"--seen-data {config.seen_data}"
    if not config.looks:
        raise ValueError(f"{said} is of MetaDD's auxiliaries, and --no-wrapped has none; leave one of the two out")
    if config.zca:
        raise ValueError(f"{said} would be shown whitened images; leave --zca out")
    if config.seen_data == UNUSED and config.train_per_class is None:
        raise ValueError(f"{said} needs --train-per-class, which leaves training images unused")


def data_of(config: DistillConfig, dataset: mdd.Dataset) -> mdd.Dataset | None:
    """Loads the images that the auxiliaries learn from; None where these are the job's own.

    Args:
      config: the options.
      dataset: the job's data.

    Raises:
      ValueError: if no images are left unused, or the other data have other classes or colours.
    """
    name = config.seen_data
    if name is None:
        return None
    if name == UNUSED:
        return _unused(config, dataset)
    other = mdd.data.load(name, data_dir=config.data_dir, cache_dir=config.cache_dir)
    if other.num_classes != dataset.num_classes:
        raise ValueError(
            f"--seen-data {name} has {other.num_classes} classes, and the set has {dataset.num_classes}; the terms "
            "read the logit of an image's own class, so give data of as many"
        )
    channels, own = other.image_shape[2], dataset.image_shape[2]
    if own not in (1, channels):
        raise ValueError(
            f"--seen-data {name} has {channels} channels, and the set has {own}; a coloured set cannot be shown to "
            "networks of grey images"
        )
    return other


def way(dataset: mdd.Dataset, source: mdd.Dataset) -> mdd.zoo.Preprocess | None:
    """Makes the map from a set's images to those that its auxiliaries learned from.

    Args:
      dataset: the real data of the set.
      source: what the auxiliaries learned from.

    Returns:
      None where both are alike.
    """
    ends = [[tuple(map(float, side)) for side in (one.train.mean, one.train.std)] for one in (dataset, source)]
    if ends[0] == ends[1] and dataset.image_shape == source.image_shape:
        return None
    channels = source.image_shape[2]
    return mdd.zoo.Preprocess(
        source_mean=ends[0][0],
        source_std=ends[0][1],
        target_mean=ends[1][0],
        target_std=ends[1][1],
        size=source.image_shape[:2],
        channels=channels if channels != dataset.image_shape[2] else None,
    )


def _unused(config: DistillConfig, dataset: mdd.Dataset) -> mdd.Dataset:
    """The training images that ``--train-per-class`` leaves out, none of them equal to one that is in use."""
    whole = mdd.data.load(
        config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir, image_size=config.image_size,
        on_device=False,
    )  # fmt: skip
    held = [dataset.train, *([] if dataset.validation is None else [dataset.validation])]
    # By their pixels and not by the draw that chose them: of two equal images one may be in use.
    used = {image.tobytes() for split in held for image in np.asarray(split.images)}
    images, labels = np.asarray(whole.train.images), np.asarray(whole.train.labels)
    left = np.array([image.tobytes() not in used for image in images])
    counts = np.bincount(labels[left], minlength=dataset.num_classes)
    if counts.min() == 0:
        label = int(counts.argmin())
        raise ValueError(
            f"--seen-data {UNUSED}: no image of class {label} ({dataset.class_names[label]}) is left unused; lower "
            "--train-per-class"
        )
    return mdd.data.from_arrays(
        f"{dataset.name}, unused images",
        images[left],
        labels[left],
        np.asarray(dataset.test.images),
        np.asarray(dataset.test.labels),
        class_names=dataset.class_names,
        mean=np.asarray(dataset.train.mean),
        std=np.asarray(dataset.train.std),
    )
