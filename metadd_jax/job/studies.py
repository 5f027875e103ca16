"""Studies: grids of distilled sets, said in the options of the main job. A study is data, no code."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import tomllib
from collections.abc import Mapping
from typing import Any

from metadd_jax import ranges, registries
from metadd_jax.job import distill, plugins
from metadd_jax.job.options import DistillConfig
from metadd_jax.job.prepare import BASELINES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A table to be measured: its rows, and how many sets of each.

    Attributes:
      name: of the study, a Python identifier.
      about: what it asks, in one sentence, for ``--help`` and the head of its table.
      rows: name of a row -> the options of ``metadd distill`` that make its set, as one text beside those of
        ``options``. The set of a row is the last that the job would distil of them: "--no-wrapped" gives the base
        method's, "" the one under MetaDD, "--variants paper" the one under that variant. "random" and "kmeans" as
        first word give real images of the same size.
      preset: of ``metadd distill``, where the options start from.
      options: for every row.
      seeds: distillation seeds, 0 to ``seeds`` - 1: so many sets of each row.
      references: rows that every other row with the same labels is compared with.
    """

    name: str
    about: str
    rows: Mapping[str, str]
    preset: str = "cifar10_cpu"
    options: str = ""
    seeds: int = 3
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(f"the study {self.name} has no rows; give name -> options of metadd distill")
        ranges.require("seeds", self.seeds, ranges.Whole(1))
        for reference in self.references:
            self.require_row(reference)

    def require_row(self, row: str) -> None:
        """Raises ValueError, naming the rows that there are, where ``row`` is none of them."""
        if row not in self.rows:
            hint = ranges.nearest(row, self.rows)
            raise ValueError(f"{self.name} has no row {row!r}{hint}; use {', '.join(map(repr, self.rows))}")

    def words(self, row: str) -> list[str]:
        """The options of a row as the words of a command line, and before them the preset."""
        return [self.preset, *shlex.split(self.options), *shlex.split(_options(self.rows[row])[1])]

    def real(self, row: str) -> str | None:
        """Which real images a row consists of, "random" or "kmeans"; None for a distilled set."""
        return _options(self.rows[row])[0]


def _options(text: str) -> tuple[str | None, str]:
    first, _, rest = text.strip().partition(" ")
    return (first, rest) if first in BASELINES else (None, text)


def configs(study: Study, added: list[str]) -> dict[str, DistillConfig]:
    """Reads every row of a study, so that a typo in any of them is told before any work.

    Args:
      study: the study.
      added: further words for every row, the last to be said.

    Returns:
      The options of each row, for the first seed.

    Raises:
      ValueError: naming the row.
    """
    every = {row: [*study.words(row), *added] for row in study.rows}
    # Each once, and not those of the command itself, which are loaded: a class that is made again is another one.
    files = [file for words in every.values() for file in plugins.named(words) if file not in plugins.named(added)]
    plugins.load([f"--plugin={file}" for file in dict.fromkeys(files)])
    found = {}
    for row, words in every.items():
        try:
            config = distill.parsed(words, f"study {study.name}")
            found[row] = dataclasses.replace(config, distill_seeds=1, plan=False, overwrite=False)
        except ValueError as error:
            raise ValueError(f"row {row!r} of the study {study.name}: {error}") from error
    return found


STUDIES: dict[str, Study] = {}


def register(study: Study) -> None:
    """Gives ``metadd study`` a study by its name; call it in a file for ``--plugin``.

    Raises:
      ValueError: if its name is no identifier, or another study has it.
    """
    if STUDIES.get(study.name) != study:  # the same again, as when a file is read twice, is no other
        registries.claim(STUDIES, study.name, study, kind="study", taken=tuple(STUDIES))


def get(name: str) -> Study:
    """Finds a study by its name, or reads one from a TOML file.

    Args:
      name: of a study, or the path of a file that ends in .toml.

    Raises:
      ValueError: if there is none, with the names there are, or the file is none of a study.
    """
    if name.endswith(".toml"):
        return _read(pathlib.Path(name).expanduser())
    if name not in STUDIES:
        hint = ranges.nearest(name, STUDIES)
        raise ValueError(f"unknown study {name!r}{hint}; use {', '.join(STUDIES)}, or a .toml file (docs/studies.md)")
    return STUDIES[name]


def _read(path: pathlib.Path) -> Study:
    try:
        said: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the study {path} ({error.strerror}); check the path") from error
    except ValueError as error:  # of TOML, and of bytes that are no text
        raise ValueError(f"{path} is no TOML file: {' '.join(str(error).split())}") from error
    kinds = {"about": str, "preset": str, "options": str, "seeds": int, "rows": dict, "references": list}
    for name, value in said.items():
        if name not in kinds:
            hint = ranges.nearest(name, kinds)
            raise ValueError(f"{path} says {name!r}{hint}; a study has {', '.join(kinds)}")
        texts = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        if type(value) is not kinds[name] or any(not isinstance(text, str) for text in texts):
            raise ValueError(f"{name} of {path} is {value!r}; docs/studies.md shows what stands there")
    if "rows" not in said:
        raise ValueError(f"{path} has no [rows]; give NAME = OPTIONS of metadd distill")
    said = {name: tuple(value) if name == "references" else value for name, value in said.items()}
    return Study(name=path.stem, **{"about": f"The study of {path.name}."} | said)


def listing() -> str:
    """The studies in a few lines, with their rows and sets."""
    lines = [f"{name}: {study.about} {len(study.rows)} rows, {study.seeds} seeds." for name, study in STUDIES.items()]
    return "\n".join(f"    {line}" for line in lines)  # indented, as --help keeps such lines apart


# Learning rates where pixels have another meaning: the published ones, but NCFM's, whose 20,000 steps of 0.001 are 200
# of 0.01 here. None was chosen on images of the table.
STUDIES["competitors"] = Study(
    name="competitors",
    about="MetaDD beside its competitors and controls over DM (CIFAR-10, 10 images per class, CPU size).",
    options="--eval-labels hard",
    rows={
        "random": "random --no-wrapped",
        "k-means": "kmeans --no-wrapped",
        "DM": "--no-wrapped",
        "DM from k-means": "--no-wrapped --init kmeans",
        "DM + MetaDD (ours)": "",
        "DM from k-means + MetaDD (ours)": "--init kmeans",
        "DM + CE only": "--metadd.pos 0 --metadd.var 0",
        "DM + MetaDD (paper)": "--variants paper",
        "DM + GLaD-style, untrained StyleGAN3-type": "--no-wrapped --parameterisation stylegan --image-lr 10",
        "DM + GLaD-style, StyleGAN3-type trained by us": "--no-wrapped --parameterisation stylegan:weights=trained "
        "--image-lr 10",
        "DM + GLaD-style, untrained decoder": "--no-wrapped --parameterisation decoder:weights=random",
        "DM + GLaD-style, decoder trained by us": "--no-wrapped --parameterisation decoder",
        "DM + ModelPool": "--no-wrapped --pool convnets",
        "DM over two backbones": "--no-wrapped --matched vgg11:width=8",
        "DM, packed 2, as stored (40 images)": "--no-wrapped --parameterisation factor2",
        "DM, packed 2, as images (12, 3 stored)": "--no-wrapped --parameterisation factor2 --ipc 3",
        "DM, 40 images": "--no-wrapped --ipc 40",
        "NCFM": "--no-wrapped --method ncfm --batch-size 64 --frequencies 1024 --experts 4 --epochs 5 --image-lr 0.01",
        "RDED": "--no-wrapped --method rded --steps 1",
    },
    references=("DM", "DM from k-means"),
)
STUDIES["competitors_dc"] = Study(
    name="competitors_dc",
    about="MetaDD beside its competitors and controls over DC (CIFAR-10, 10 images per class, CPU size).",
    # DC's 50 inner steps of 10 rounds would take ten times as long; 60 steps from real images were measured before.
    options="--eval-labels hard --method dc --image-lr 0.1 --steps 60 --chunk 20 --dc.inner 10 --metadd.subset 20 "
    "--init random",
    rows={
        "random": "random --no-wrapped",
        "k-means": "kmeans --no-wrapped",
        "DC": "--no-wrapped",
        "DC from k-means": "--no-wrapped --init kmeans",
        "DC + MetaDD (ours)": "",
        "DC + CE only": "--metadd.pos 0 --metadd.var 0",
        "DC + MetaDD (paper)": "--variants paper",
        "DC + GLaD-style, decoder trained by us": "--no-wrapped --parameterisation decoder",
        "DC + ModelPool": "--no-wrapped --pool convnets",
    },
    references=("DC",),
)
STUDIES["soft"] = Study(
    name="soft",
    about="Sets under the labels of one teacher, real images among them (CIFAR-10, 10 images per class, CPU size).",
    options="--no-wrapped --backbone resnet18_bn:width=8 --seen vgg11_bn:width=8 --unseen convnet:width=32 lenet mlp "
    "--eval-labels teacher:resnet18_bn:width=8",
    rows={
        "random": "random",
        "k-means": "kmeans",
        "RDED": "--method rded --steps 1",
        "SRe2L": "--method sre2l --steps 300 --image-lr 0.25 --sre2l.squeeze short",
        # Three teachers pass in every update, or one in turn: 300 passes in each of the three rows.
        "SRe2L, groups of 10": "--method sre2l --steps 300 --image-lr 0.25 --sre2l.squeeze short --sre2l.group-ipc 10 "
        "--sre2l.r-bn 1",
        "SRe2L, groups of 10, mean of 3": "--method sre2l --steps 100 --image-lr 0.25 --sre2l.squeeze short "
        "--sre2l.group-ipc 10 --sre2l.r-bn 1 --sre2l.committee vgg11_bn:width=8 convnet_bn:width=32",
        "SRe2L, groups of 10, 3 in turn": "--method sre2l --steps 300 --image-lr 0.25 --sre2l.squeeze short "
        "--sre2l.group-ipc 10 --sre2l.r-bn 1 --sre2l.committee vgg11_bn:width=8 convnet_bn:width=32 "
        "--sre2l.weighting round_robin",
    },
    references=("random",),
)
