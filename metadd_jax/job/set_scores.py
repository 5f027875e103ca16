"""DD-Ranking's scores of one set: the trainings that they need beside those of ``metadd evaluate``, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import metadd_jax as mdd
from metadd_jax import keys
from metadd_jax.evaluation import scores
from metadd_jax.job import labels
from metadd_jax.training import recipes, relabel


class Judge(NamedTuple):
    """How a set is judged.

    Attributes:
      dataset: the real data.
      networks: what to train.
      seeds: R trainings of each network.
      recipe: how, with its augmentation.
      labels: "hard" or "own", where no teacher labels.
      teacher: who labels every batch, or None.
      guidance: the guide beside the labels, or None.
    """

    dataset: mdd.Dataset
    networks: Sequence[mdd.zoo.Architecture]
    seeds: int
    recipe: recipes.Recipe
    labels: str
    teacher: relabel.Teacher | None
    guidance: mdd.training.Guidance | None

    def train(self, sets: Sequence[mdd.SyntheticSet], *, on_network: Callable[[str], None] | None = None) -> np.ndarray:
        """Trains ``seeds`` times on each of S sets: accuracies [networks, S * R] in [0, 1] or NaN, by set."""
        return self._train(sets, self.seeds, None, on_network)

    def train_once(
        self, sets: Sequence[mdd.SyntheticSet], *, on_network: Callable[[str], None] | None = None
    ) -> np.ndarray:
        """Trains once on each of R sets: accuracies [networks, R]; runs share no luck of a training."""
        return self._train(sets, 1, range(len(sets)), on_network)

    def _train(
        self,
        sets: Sequence[mdd.SyntheticSet],
        seeds: int,
        draws: Sequence[int] | None,
        on_network: Callable[[str], None] | None,
    ) -> np.ndarray:
        tables = mdd.evaluation.cross_architecture(
            keys.root(0, "judge"),
            sets,
            self.dataset,
            self.networks,
            seeds=seeds,
            recipe=self.recipe,
            draws=draws,
            labels=self.labels,
            teacher=self.teacher,
            guidance=self.guidance,
            on_network=on_network,
        )
        return np.concatenate([np.array([row.accuracies for row in table]) for table in tables], axis=1)

    @property
    def plain(self) -> Judge:
        """The same without augmentation, crops, mirror images and mixtures."""
        recipe = dataclasses.replace(self.recipe, augmentation="none", crop="none", flip=False, shuffle=1, mix="none")
        return self._replace(recipe=recipe)

    @property
    def augmented(self) -> Judge:
        """The same with the data set's own augmentation, where the recipe has none."""
        if self.recipe != self.plain.recipe:
            return self
        own = mdd.data.augmentation(self.dataset.name)
        return self._replace(recipe=dataclasses.replace(self.recipe, augmentation=own))

    @property
    def is_soft(self) -> bool:
        """Whether networks learn from more than hard labels; a set's own soft ones ``require_fit`` refuses."""
        return self.teacher is not None or self.guidance is not None

    @property
    def hard(self) -> Judge:
        """Hard labels and plain cross-entropy; a recipe for other labels lends them no augmentation (as the tool's)."""
        return self.plain._replace(labels="hard", teacher=None, guidance=None)


def require_fit(chosen: labels.Labels, sets: Sequence[mdd.SyntheticSet]) -> None:
    """Refuses what random real images cannot be compared with: several sets, or soft labels that the set alone has.

    Args:
      chosen: the labels of the evaluation.
      sets: what is judged.

    Raises:
      ValueError: naming the choices.
    """
    if len(sets) > 1:
        raise ValueError(f"--scores are those of one set, and the file holds {len(sets)}; choose one by --set 0")
    if chosen.rule == "own" and sets[0].soft_labels is not None:
        raise ValueError(
            "--scores compares with random real images, which have no soft labels of their own as the set has; "
            "say --labels hard or --labels teacher:NET"
        )


def stored(synthetic: mdd.SyntheticSet, metadata: Mapping[str, Any], dataset: mdd.Dataset) -> tuple[int, ...]:
    """Gives the stored images of each class, [K]: a packed set counts by what it stores, not by what it is decoded to.

    Args:
      synthetic: the set, as networks see it.
      metadata: of its file; what has no "ipc" there is counted.
      dataset: the real data.
    """
    decoded = tuple(np.bincount(np.asarray(synthetic.labels), minlength=dataset.num_classes).tolist())
    said = metadata.get("ipc")
    counts: tuple[Any, ...] = tuple(said) if isinstance(said, list | tuple) else (said,) * dataset.num_classes
    # The file travels: what cannot be a count of each class is none.
    known = len(counts) == dataset.num_classes and all(type(one) is int and one > 0 for one in counts)
    return counts if known else decoded


def measure(
    judge: Judge,
    synthetic: mdd.SyntheticSet,
    accuracies: np.ndarray,
    whole: Sequence[float],
    counts: Sequence[int],
    *,
    on_network: Callable[[str], None] | None = None,
) -> dict[str, np.ndarray]:
    """Trains what the scores need and is not there yet.

    Args:
      judge: how the set was judged.
      synthetic: the set.
      accuracies: [networks, R] of that.
      whole: [networks] accuracies in [0, 1] of networks trained on all real images.
      counts: random real images of each class, [K], drawn anew for each run.
      on_network: called whenever a network is done; ``trainings`` tells how often.

    Returns:
      By name the arguments of ``scores.label_robust`` and ``scores.augmentation_robust``, [networks, R] each.

    Raises:
      ValueError: if a class has fewer real images than ``counts``.
    """
    draw = mdd.evaluation.random_real
    random = [draw(keys.root(run, "random"), judge.dataset, counts) for run in range(judge.seeds)]
    found = {"synthetic_any": accuracies, "random_any": judge.train_once(random, on_network=on_network)}
    found["synthetic_hard"] = judge.hard.train([synthetic], on_network=on_network) if judge.is_soft else accuracies
    found["real_hard"] = np.broadcast_to(np.array(whole)[:, None], accuracies.shape)
    for name, one in {"augmented": judge.augmented, "plain": judge.plain}.items():
        both = found["synthetic_any"], found["random_any"]
        if one.recipe != judge.recipe:
            both = one.train([synthetic], on_network=on_network), one.train_once(random, on_network=on_network)
        found[f"synthetic_{name}"], found[f"random_{name}"] = both
    return found


def trainings(judge: Judge) -> int:
    """Counts how often ``measure`` calls ``on_network``."""
    others = [one for one in (judge.plain, judge.augmented) if one.recipe != judge.recipe]
    return len(judge.networks) * (1 + judge.is_soft + 2 * len(others))


def lines(networks: Sequence[str], found: Mapping[str, np.ndarray], counts: Sequence[int]) -> list[str]:
    """Writes the scores as a Markdown table, a row for each network and one for their mean.

    Args:
      networks: their labels.
      found: of ``measure``.
      counts: random real images of each class.
    """
    images = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    text = [
        f"DD-Ranking's label-robust (LRS) and augmentation-robust (ARS) scores, mean ± standard deviation over "
        f"{found['random_any'].shape[1]} runs of one score each; accuracies in percent; random: {images} real images "
        "of each class (as many as the set stores), new ones in every run. Last epoch, no search of the step size. "
        "Of percent: what the tool's formula gives if percent are put in, as its release 0.2.0 does.",
        "",
        "| network | all real, hard | set, hard | set | random | LRS | of percent | set, plain | random, plain | ARS | "
        "of percent |",
        "|---" * 11 + "|",
    ]
    every: dict[str, list[scores.Scores]] = {"LRS": [], "ARS": []}
    for place, network in enumerate(networks):
        own = {name: values[place] for name, values in found.items()}
        if lost := int(np.isnan(np.stack(list(own.values()))).sum()):
            text.append(f"| {network} | diverged ({lost} accuracies) |{' . |' * 9}")
            continue
        percent = {name: f"{100 * values.mean():.1f}" for name, values in own.items()}
        first = [percent[name] for name in ("real_hard", "synthetic_hard", "synthetic_any", "random_any")]
        second = [percent[name] for name in ("synthetic_plain", "random_plain")]
        told = {}
        for name, one in _scores(own).items():
            every[name].append(one)
            told[name] = [_told(one.score), f"{one.of_percent.mean():.4g}"]
        text.append(_row(network, first, told["LRS"], second, told["ARS"]))
    if len(every["LRS"]) == len(networks) > 1:
        lrs, ars = (np.mean([one.score for one in each], axis=0) for each in every.values())
        text.append(_row("mean", ["."] * 4, [_told(lrs), "."], ["."] * 2, [_told(ars), "."]))
    return text


def _scores(own: Mapping[str, np.ndarray]) -> dict[str, scores.Scores]:
    return {
        "LRS": scores.label_robust(
            real_hard=own["real_hard"],
            synthetic_hard=own["synthetic_hard"],
            synthetic_any=own["synthetic_any"],
            random_any=own["random_any"],
        ),
        "ARS": scores.augmentation_robust(
            synthetic_augmented=own["synthetic_augmented"],
            random_augmented=own["random_augmented"],
            synthetic_plain=own["synthetic_plain"],
            random_plain=own["random_plain"],
        ),
    }


def _row(network: str, *cells: list[str]) -> str:
    return f"| {' | '.join([network, *(cell for part in cells for cell in part)])} |"


def _told(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{spread}"
