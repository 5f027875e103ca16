"""Write report.html of a run, a study or a comparison of several: one file that opens offline, in any browser.

metadd report runs/mnist5k
metadd report runs/mnist5k runs/paper --out comparison.html
"""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from typing import Annotated

from metadd_jax import files
from metadd_jax.exchange import checks
from metadd_jax.job import parsing, report_facts, report_page
from metadd_jax.job.parsing import Mark

FILE = "report.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Show runs and studies on one page.

    Attributes:
      folders: of runs (finished or not) and studies; several are compared.
      out: the file to write (default: report.html in the folder, of several in the present one).
    """

    folders: Annotated[tuple[str, ...], Mark.POSITIONAL] = ()
    out: str | None = None


def run(arguments: list[str], *, program: str = "metadd report") -> None:
    """Parses the command line and writes.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    config = parsing.parse(ReportConfig, arguments, program=program, description=__doc__)
    if not config.folders:
        raise ValueError(f"no folder to report on; give one of a run or a study: {program} runs/mnist5k")
    folders = [pathlib.Path(folder).expanduser() for folder in config.folders]
    file = (
        pathlib.Path(config.out).expanduser()
        if config.out
        else (folders[0] if len(folders) == 1 else pathlib.Path()) / FILE
    )
    write(folders, file)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")


def write(folders: list[pathlib.Path], file: pathlib.Path) -> None:
    """Writes the report of some folders.

    Args:
      folders: of runs and studies, at least one.
      file: the page; an earlier report there is replaced.

    Raises:
      ValueError: if a folder holds neither, or ``file`` is something else than a report.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file, {file / FILE}")
    checks.refuse_existing(file, overwrite=True, is_ours=report_page.is_report)
    sources = [report_facts.read(folder) for folder in dict.fromkeys(folders)]
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:  # runs/a/dm and runs/b/dm
            source.name = f"{source.folder.parent.name}/{source.folder.name}"
    title = (
        names[0] if len(sources) == 1 else f"{len(sources)} compared: {', '.join(source.name for source in sources)}"
    )
    files.write_text(file, report_page.html(sources, title=title))


def leave(folder: pathlib.Path) -> None:
    """Writes ``report.html`` of a run or study that has ended; one that cannot be written is a warning.

    Args:
      folder: of the run or study.
    """
    try:
        write([folder], folder / FILE)
    except Exception as error:  # whatever it is: a page costs no result
        warnings.warn(f"no {FILE}: {type(error).__name__}: {error}", stacklevel=2)
