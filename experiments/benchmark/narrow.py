"""How far bfloat16 in frozen networks turns MetaDD's gradient.

    python experiments/benchmark/narrow.py --networks resnet18 vgg11 --dataset mnist5k --epochs 5

Trains each network in float32, freezes it in both types, and compares the gradients of the terms at real test images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import tyro

from metadd_jax import data, features, invariant, parallel, training, zoo
from metadd_jax.job import command
from metadd_jax.structs import Auxiliary

TERMS = ("ai", "pos", "var")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
      networks: as ``zoo.parse`` reads them; at least two with maps for L_pos and L_var.
      dataset: as ``metadd distill`` reads it.
      data_dir: where TFDS finds it.
      epochs: of training.
      images: of the test split, the first ones of a random order.
    """

    networks: tuple[str, ...] = ("convnet:width=16", "vgg11_bn:width=8", "alexnet:width=8", "resnet18:width=16")
    dataset: str = "mnist5k"
    data_dir: str | None = None
    epochs: int = 5
    images: int = 100


def gradients(auxiliaries: Sequence[Auxiliary], images: jax.Array, labels: jax.Array) -> dict[str, np.ndarray]:
    """Returns the gradient [N, H, W, C] of each term at images [N, H, W, C]; of one network that of L_ai alone."""
    names = TERMS if len(auxiliaries) > 1 else TERMS[:1]
    config = invariant.InvariantConfig(views="none", **{name: float(name in names) for name in TERMS})

    def terms(images: jax.Array) -> dict[str, jax.Array]:
        return invariant.invariant_terms(jax.random.key(0), images, labels, auxiliaries, config=config)[0]

    found = parallel.jit(jax.jacrev(terms))(images)
    return {name: np.asarray(found[name], np.float64) for name in names}


def compare(wide: np.ndarray, narrow: np.ndarray) -> tuple[float, float, float]:
    """Returns cosine and ratio of the lengths of two gradients of all images, and the median cosine of one image."""
    lengths = np.linalg.norm(narrow), np.linalg.norm(wide)
    rows = [gradient.reshape(len(gradient), -1) for gradient in (wide, narrow)]
    alone = (rows[0] * rows[1]).sum(1) / (np.linalg.norm(rows[0], axis=1) * np.linalg.norm(rows[1], axis=1) + 1e-30)
    return (
        float((wide * narrow).sum() / lengths[0] / lengths[1]),
        float(lengths[0] / lengths[1]),
        float(np.median(alone)),
    )


def run(arguments: Sequence[str], *, program: str) -> None:
    """Prints the table."""
    config = tyro.cli(Config, args=arguments, prog=program)
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    chosen = np.random.default_rng(0).permutation(len(dataset.test.labels))[: config.images]
    images = data.standardise(np.asarray(dataset.test.images)[chosen], dataset.test.mean, dataset.test.std)
    labels = np.asarray(dataset.test.labels)[chosen]
    pairs = []
    for spec in config.networks:
        net = zoo.parse(spec, dataset.num_classes, dataset.image_shape)
        trained = training.pretrain(net, dataset, training.pretraining(config.epochs))
        both = (dataclasses.replace(net, compute=compute) for compute in ("float32", "bfloat16"))
        pairs.append([features.freeze(own, trained.variables, dataset) for own in both])
        print(f"{spec}: {100 * trained.accuracy:.1f} % on the test split", flush=True)
    print(
        "\n| through | term | cosine | length, bfloat16 / float32 | median cosine of an image |\n|---|---|---|---|---|"
    )
    for name, own in [*zip(config.networks, ([pair] for pair in pairs), strict=True), ("all of them", pairs)]:
        wide, narrow = (gradients(side, images, labels) for side in zip(*own, strict=True))
        for term in wide:
            numbers = " | ".join(f"{number:.4f}" for number in compare(wide[term], narrow[term]))
            print(f"| {name} | L_{term} | {numbers} |", flush=True)


if __name__ == "__main__":
    command.main(run, program="narrow.py")
