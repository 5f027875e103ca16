"""Soft labels of a teacher for every batch, computed while training or stored beforehand.

Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (ECCV 2022), as in SRe2L: the teacher
sees the very batch that the student sees (cropped, flipped, mixed). The loss is the mean over the batch of
KL(softmax(teacher / T) || softmax(student / T)); the recipe says whether it is multiplied by T^2.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from metadd_jax import files, parallel, provenance, ranges
from metadd_jax.data import sampling
from metadd_jax.structs import Array, Auxiliary
from metadd_jax.training import batches, recipes


@struct.dataclass
class StoredLogits:
    """A teacher's logits for all batches of a training (see ``store`` and ``open_stored``).

    Attributes:
      key: decides order and views of the images in ``fit``, in place of the student's own key: the logits belong to
        these very views.
      shared_key: chooses the DSA tokens, in the same way.
      path: the .npy file [E, N, K] float16, row i of an epoch for the i-th image that is shown (static).
    """

    # The path and not the array: 30 GB of labels stay on the disk.

    key: jax.Array
    shared_key: jax.Array
    path: str = struct.field(pytree_node=False)


@struct.dataclass
class Committee:
    """Several teachers, whose labels are the weighted mean of their logits (see ``committee``).

    Attributes:
      members: M frozen networks of the same classes.
      weights: [M] float32, 1 in all.
    """

    members: tuple[Auxiliary, ...]
    weights: Array


Teacher = Auxiliary | Committee


def committee(members: Sequence[Auxiliary], *, weights: Sequence[float] | None = None) -> Committee:
    """Makes one teacher of several: G-VBSM and CV-DD label by the mean of their logits, CV-DD by a weighted one.

    Args:
      members: M frozen networks of the same classes, at least one.
      weights: M numbers from 0, divided by their sum; None for 1 / M each. CV-DD's are ``prior_weights(priors, 10)``.

    Raises:
      ValueError: if there is no member, if their classes differ, or if the weights are not one each.
    """
    classes = {member.net.num_classes for member in members}
    if len(classes) != 1:
        raise ValueError(f"a committee of teachers for {sorted(classes)} classes; give at least one, for the same data")
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(members),) or not all(map(ranges.Real(0).holds, shares)) or not shares.sum() > 0:
        raise ValueError(f"weights={weights} of a committee of {len(members)}; give one number from 0 each, not all 0")
    return Committee(tuple(members), jnp.asarray(shares / shares.sum(), jnp.float32))


def prior_weights(priors: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Computes CV-DD's weights of a committee, softmax(prior / temperature).

    At ten points of difference they are close to one-hot (temperature 5: .88 and .12).

    Args:
      priors: one number for each teacher: the accuracy in percent, on real images, of a network trained on a set that
        was distilled with this teacher alone.
      temperature: 5 where the set is recovered, 10 where it is labelled, as published; above 0.

    Returns:
      One weight each, 1 in all.

    Raises:
      ValueError: for a temperature that is not above 0 or a prior that is not finite.

    Example:
      >>> [round(weight, 3) for weight in prior_weights([63.0, 65.3], 5.0)]  # CV-DD's temperature
      [0.387, 0.613]
    """
    ranges.require("temperature", temperature, ranges.Real(0, above=True))
    ranges.require("priors", tuple(priors), ranges.Each(ranges.Real()))
    scores = np.asarray(priors, np.float64) / temperature
    shares = np.exp(scores - scores.max())
    return tuple((shares / shares.sum()).tolist())


def divergence(teacher_logits: jax.Array, logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Computes KL(softmax(teacher / T) || softmax(student / T)) of each image, without a factor T^2.

    Args:
      teacher_logits: [B, K].
      logits: [B, K], the student's.
      temperature: T, above 0.

    Returns:
      [B] float32.

    Raises:
      ValueError: if teacher and student differ in the number of classes.
    """
    if teacher_logits.shape != logits.shape:
        raise ValueError(
            f"teacher logits {teacher_logits.shape} and student logits {logits.shape} must agree; use a teacher of the "
            "student's classes"
        )
    # Stored logits are float16, too narrow for a softmax.
    target = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(logits / temperature)), axis=-1)


def teacher_logits(
    teacher: Teacher, images: jax.Array, *, mode: str = "evaluation", weights: jax.Array | None = None
) -> jax.Array:
    """Computes the teacher's logits of a batch; no gradient flows through them.

    Args:
      teacher: the frozen network, or a committee of them.
      images: [B, H, W, C] float32 in the set's value space.
      mode: where its batch norm takes its statistics from, see ``recipes.Recipe.teacher_mode``.
      weights: [B], 0 for padding, which stays out of the statistics of the batch.

    Returns:
      [B, K].
    """
    if isinstance(teacher, Committee):
        each = [teacher_logits(member, images, mode=mode, weights=weights) for member in teacher.members]
        return sum(w * logits for w, logits in zip(teacher.weights, each, strict=True))
    seen = images if teacher.preprocess is None else teacher.preprocess(images)
    if mode == "training":
        return jax.lax.stop_gradient(teacher.net.apply_batch(teacher.variables, seen, weights)[0])
    return jax.lax.stop_gradient(teacher.net.apply(teacher.variables, seen)[0])


def stored_bytes(images: int, epochs: int, classes: int) -> int:
    """Returns the size of stored labels in bytes, two per logit: ``images`` x ``epochs`` x ``classes`` x 2.

    ImageNet-1K at 50 images per class and 300 epochs takes 30 GB.
    """
    return images * epochs * classes * 2


def store(
    key: jax.Array,
    path: str | os.PathLike,
    images: Array,
    recipe: recipes.Recipe,
    teacher: Teacher,
    *,
    shared_key: jax.Array,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> StoredLogits:
    """Writes the teacher's logits of every batch that ``fit(key, ..., recipe, shared_key=shared_key)`` would show.

    It needs the memory of the labels of one epoch. The file appears when it is whole.

    Args:
      key: the key of that ``fit``.
      path: the .npy file to write, [E, N, K] float16 (``stored_bytes``). A manifest of the same name in .json has keys,
        recipe and hashes.
      images: [N, H, W, C], as for ``fit``.
      recipe: the recipe of that ``fit``.
      teacher: the frozen network, or a committee of them.
      shared_key: the shared key of that ``fit``.
      mean: [C], for uint8 images.
      std: [C], for uint8 images.

    Returns:
      The labels, as ``teacher`` of ``fit``.

    Raises:
      ValueError: if there is such a file already, or the disk is too full.
    """
    path = pathlib.Path(path).with_suffix(".npy")
    classes, count = _members(teacher)[0].net.num_classes, len(images)
    _check_room(path, stored_bytes(count, recipe.epochs, classes))
    batch_size = min(recipe.batch_size, count)
    # Everything that decides a view of an image, or what the teacher says of it.
    facts = _facts(key, images, recipe, shared_key)
    facts |= {"constants": _constants(mean, std), "teacher": fingerprint(teacher)}

    def epoch_logits(epoch: jax.Array, images: jax.Array, teacher: Teacher) -> jax.Array:
        indices, weights = batches.epoch_order(key, epoch, count, batch_size)

        def step_logits(item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            step, index, present = item
            batch = sampling.standardise(images[index], mean, std)
            batch = batches.view(key, step, batch, recipe, shared_key=shared_key, weights=present)
            return teacher_logits(teacher, batch, mode=recipe.teacher_mode, weights=present).astype(jnp.float16)

        # The padding of the last batch is cut off: the file has one row per image.
        steps = epoch * len(indices) + jnp.arange(len(indices))
        return jax.lax.map(step_logits, (steps, indices, weights)).reshape(-1, classes)[:count]

    compiled = parallel.jit(epoch_logits)
    images = jnp.asarray(images)  # on the device once, not at every epoch
    with files.atomic_path(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(recipe.epochs, count, classes))
        for epoch in range(recipe.epochs):
            rows[epoch] = compiled(jnp.int32(epoch), images, teacher)
        rows.flush()
        manifest = facts | {"shape": list(rows.shape), "sha256": files.hash_file(temporary)}
        # Before the labels are renamed to their final name, so that they never lack a manifest.
        files.write_json(path.with_suffix(".json"), manifest)
    return StoredLogits(key=key, shared_key=shared_key, path=str(path))


def open_stored(
    key: jax.Array,
    path: str | os.PathLike,
    images: Array,
    recipe: recipes.Recipe,
    *,
    shared_key: jax.Array,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    teacher: Teacher | None = None,
) -> StoredLogits:
    """Opens stored labels for ``fit(..., teacher=...)`` and checks that they are whole and belong to this training.

    Labels of other views would be wrong without any error: every image would get the label of another crop.

    Args:
      key: as for ``store``.
      path: as for ``store``.
      images: as for ``store``.
      recipe: as for ``store``.
      shared_key: as for ``store``.
      mean: as for ``store``.
      std: as for ``store``.
      teacher: the network that must have written them; None takes the labels of any teacher.

    Returns:
      The labels, as ``teacher`` of ``fit``.

    Raises:
      ValueError: if the file is missing or damaged, or was written for other keys, images or constants, another recipe
        or teacher, or by other code, versions or another kind of device, whose views of the images may differ.
    """
    path = pathlib.Path(path).with_suffix(".npy")
    if not path.exists() or not path.with_suffix(".json").exists():
        raise ValueError(f"{path} or its manifest (.json) is missing; write the labels with relabel.store")
    manifest = files.read_json(path.with_suffix(".json"))
    wanted = _facts(key, images, recipe, shared_key) | {"constants": _constants(mean, std)}
    wanted |= {} if teacher is None else {"teacher": fingerprint(teacher)}
    for name, value in wanted.items():
        if manifest.get(name) != value:
            raise ValueError(f"{path} was written for another {name} ({manifest.get(name)}, not {value}); store anew")
    if files.hash_file(path) != manifest["sha256"]:
        raise ValueError(f"{path} is damaged (its hash differs from the manifest's); it is left as it is: store anew")
    return StoredLogits(key=key, shared_key=shared_key, path=str(path))


def stored_logits(stored: StoredLogits, step: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Reads the logits of one batch of ``fit``: the host reads the file while the step runs.

    Args:
      stored: the labels.
      step: [] int, counted from 0 over all epochs.
      shape: (batch size, K); the padding of the last batch of an epoch gets zeros.

    Returns:
      [B, K] float16.
    """

    def read(step: np.ndarray) -> np.ndarray:
        rows = np.load(stored.path, mmap_mode="r")
        epoch, place = divmod(int(step), -(-rows.shape[1] // shape[0]))
        found = rows[epoch, place * shape[0] : (place + 1) * shape[0]]
        return np.concatenate([found, np.zeros((shape[0] - len(found), shape[1]), np.float16)])

    # Several students under vmap read one after the other: each has its own step.
    return jax.pure_callback(read, jax.ShapeDtypeStruct(shape, jnp.float16), step, vmap_method="sequential")


def _facts(key: jax.Array, images: ArrayLike, recipe: recipes.Recipe, shared_key: jax.Array) -> dict[str, Any]:
    return {
        "key": jax.random.key_data(key).tolist(),
        "shared_key": jax.random.key_data(shared_key).tolist(),
        "recipe": recipes.facts(recipe),
        "images": files.hash_arrays(images),
        **provenance.facts(*provenance.TRAINING),
    }


def _constants(mean: ArrayLike | None, std: ArrayLike | None) -> list:
    return [None if array is None else np.asarray(array, np.float32).tolist() for array in (mean, std)]


def fingerprint(teacher: Teacher) -> str:
    """Hashes (hex) what decides a teacher's labels: weights, code and, of a committee, its members' shares."""
    # By weights and code, not by name: two teachers of one architecture give other labels.
    code = " ".join(f"{one.net!r} {provenance.code_of([one.net, one.preprocess])}" for one in _members(teacher))
    weights = [one.variables for one in _members(teacher)]
    shares = [teacher.weights] if isinstance(teacher, Committee) else []
    return files.hash_arrays(*jax.tree.leaves((weights, shares)), text=code)


def _members(teacher: Teacher) -> tuple[Auxiliary, ...]:
    return teacher.members if isinstance(teacher, Committee) else (teacher,)


def _was_killed(path: pathlib.Path) -> bool:
    """Whether a manifest of ours exists without its labels: the process died between the two."""
    try:
        manifest = files.read_json(path.with_suffix(".json"))
    except ValueError:
        return False
    return not path.exists() and isinstance(manifest, dict) and {"shared_key", "teacher", "sha256"} <= set(manifest)


def _check_room(path: pathlib.Path, size: int) -> None:
    manifest = path.with_suffix(".json")
    # Before the teacher is asked, which may take hours.
    for taken in (path, manifest):
        if taken.exists() and not (taken == manifest and _was_killed(path)):
            raise ValueError(f"{taken} exists and is left as it is; choose another name or move it away")
    files.require_writable(path.parent)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise ValueError(
            f"the labels take {size / 1e9:.2f} GB, but {path.parent} has {free / 1e9:.2f} GB left; choose another disk "
            "or ask the teacher while training"
        )
