"""Studies: grids of distilled sets, said in the options of the main job. A study is data, no code."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import tomllib
from collections.abc import Mapping
from typing import Any

from metadd_jax import ranges, registries
from metadd_jax.data.splits import SPLITS
from metadd_jax.job import distill, plugins, study_rows
from metadd_jax.job.options import DistillConfig
from metadd_jax.job.prepare import REAL

# Settings are chosen on one split and measured on the other with other seeds: no set is both chosen by and measured.
_WORDS_OF_SPLIT = {"test": (), "validation": ("--evaluate-on", "validation", "--first-seed", "100")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A table to be measured: its rows, and how many sets of each.

    Attributes:
      name: of the study, a Python identifier.
      about: what it asks, in one sentence, for ``--help`` and the head of its table.
      rows: name of a row -> the options of ``metadd distill`` that make its set, as one text beside those of
        ``options``. The set of a row is the last that the job would distil of them: "--no-wrapped" gives the base
        method's, "" the one under MetaDD, "--variants paper" the one under that variant. "random", "kmeans" and
        "consensus" as first word give real images of the same size.
      preset: of ``metadd distill``, where the options start from.
      options: for every row.
      seeds: distillation seeds, 0 to ``seeds`` - 1 (on validation images 100 and the following): so many sets of each
        row.
      references: rows that every other row with the same labels is compared with.
      against: row -> the one row that it is compared with in place of ``references``, such as its own base method.
      split: what its sets are judged on: "test", or "validation" (training images held out by ``options``) where
        settings are chosen.
      agreement: whether the table tells too what trained networks agree on in the sets, and whether a gain there goes
        with a gain in accuracy.
    """

    name: str
    about: str
    rows: Mapping[str, str]
    preset: str = "cifar10_cpu"
    options: str = ""
    seeds: int = 3
    references: tuple[str, ...] = ()
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str = "test"
    agreement: bool = False

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(f"the study {self.name} has no rows; give name -> options of metadd distill")
        ranges.require("seeds", self.seeds, ranges.Whole(1))
        ranges.require("split", self.split, ranges.OneOf(SPLITS))
        for row in (*self.references, *self.against, *self.against.values()):
            self.require_row(row)

    def require_row(self, row: str) -> None:
        """Raises ValueError, naming the rows that there are, where ``row`` is none of them."""
        if row not in self.rows:
            hint = ranges.nearest(row, self.rows)
            raise ValueError(f"{self.name} has no row {row!r}{hint}; use {', '.join(map(repr, self.rows))}")

    def words(self, row: str) -> list[str]:
        """The options of a row as the words of a command line, and before them the preset."""
        real, own = _options(self.rows[row])
        # Of real images too the options say which networks were asked.
        chosen = ("--init", "consensus") if real == "consensus" else ()
        return [self.preset, *_WORDS_OF_SPLIT[self.split], *shlex.split(self.options), *shlex.split(own), *chosen]

    def compared(self) -> dict[str, list[str]]:
        """The rows that are compared with each of ``references``, in the order of the table."""
        apart = {*self.against, *self.against.values()} - {*self.references}
        own = [row for row in self.rows if row not in apart]
        return {reference: [row for row in own if row != reference] for reference in self.references}

    def real(self, row: str) -> str | None:
        """Which real images a row consists of, of ``prepare.REAL``; None for a distilled set."""
        return _options(self.rows[row])[0]


def _options(text: str) -> tuple[str | None, str]:
    first, _, rest = text.strip().partition(" ")
    return (first, rest) if first in REAL else (None, text)


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
            if not config.wrapped:
                # One set for all studies, whatever their loss would be; agreement is still seen by their maps.
                config = dataclasses.replace(
                    config, metadd=dataclasses.replace(DistillConfig().metadd, cam=config.metadd.cam)
                )
            found[row] = dataclasses.replace(config, distill_seeds=1, plan=False, overwrite=False)
        except ValueError as error:
            raise ValueError(f"row {row!r} of the study {study.name}: {error}") from error
    return found


STUDIES = {name: Study(name=name, **said) for name, said in study_rows.STUDIES.items()}


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
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot read the study {path}: it is no file; check the path")
    try:
        said: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the study {path} ({error.strerror}); check the path") from error
    except ValueError as error:  # of TOML, and of bytes that are no text
        raise ValueError(f"{path} is no TOML file: {' '.join(str(error).split())}") from error
    kinds = {
        "about": str, "preset": str, "options": str, "seeds": int, "rows": dict, "references": list, "against": dict,
        "split": str, "agreement": bool,
    }  # fmt: skip
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
    lines = [
        f"{name}: {study.about} {len(study.rows)} rows, {study.seeds} seeds"
        f"{', on held-out training images' if study.split == 'validation' else ''}."
        for name, study in STUDIES.items()
    ]
    return "\n".join(f"    {line}" for line in lines)  # indented, as --help keeps such lines apart
