"""Command lines: short names, whose an option is, the page of --help, what a typo is told."""

import dataclasses
from typing import Annotated

import pytest

from metadd_jax import distillers
from metadd_jax.job import distill, options, parsing, presets
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import OneOf, Real, Text, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A method's own.

    Attributes:
      rate: how fast.
      raw: as it is.
      depth, width: how large it is,
        in layers and units.
    """

    rate: Annotated[float, Real(0)] = 0.5
    raw: bool = False
    depth: Annotated[int | None, Whole(1)] = None
    width: Annotated[int | None, Whole(1)] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """A command.

    Attributes:
      file: what to read.
      kind: which one.
      names: several.
      depth: of the command itself.
      own: the method's.
      hidden: not on the command line.
    """

    file: Annotated[str, Text("the test"), Mark.POSITIONAL]
    kind: Annotated[str, OneOf(("apple", "pear"))] = "pear"
    names: tuple[str, ...] = ("a",)
    more: Annotated[tuple[str, ...], Mark.REPEATED] = ()
    depth: int = 7
    own: Inner = Inner()
    hidden: Inner = Inner(rate=3.0)


LAYOUT = parsing.Layout(
    prefixes={"own": "fast"},
    short="own",
    foreign={"slow.speed": "slow, and the method is fast", "speed": "slow, and the method is fast"},
    groups={"those of fast": ("own",), "what": ("kind", "names")},
    first=frozenset({"kind", "own.rate", "own.depth", "own.width"}),
)


def read(*words, **more):
    return parsing.parse(Outer, list(words), program="metadd fast", description="Does it.", layout=LAYOUT, **more)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x"], Outer(file="x")),
        (["x", "--names", "b", "c"], Outer(file="x", names=("b", "c"))),
        (["x", "--more", "b", "--more", "c"], Outer(file="x", more=("b", "c"))),
        (["x", "--fast.rate", "2", "--fast.no-raw"], Outer(file="x", own=Inner(rate=2.0))),
        (["x", "--rate=2", "--raw"], Outer(file="x", own=Inner(rate=2.0, raw=True))),  # short for the method's own
        (
            ["x", "--depth", "3", "--fast.depth", "4"],
            Outer(file="x", depth=3, own=Inner(depth=4)),
        ),
        (["x", "--width", "None"], Outer(file="x")),
    ],
)
def test_what_is_written_is_read(words, expected):
    assert read(*words) == expected


def test_defaults_are_those_that_are_given_and_a_hidden_record_stays():
    default = Outer(file="x", own=Inner(width=9), hidden=Inner(rate=8.0))
    assert read("y", "--raw", default=default) == dataclasses.replace(default, file="y", own=Inner(width=9, raw=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x", "--kimd", "pear"], "unknown option --kimd; did you mean --kind?"),
        (["x", "--kind", "peer"], "--kind='peer' must be one of apple, pear (did you mean 'pear'?)"),
        (["x", "--speed", "3"], "--speed is an option of slow, and the method is fast; leave it out, or"),
        (["x", "--slow.speed=3"], "--slow.speed is an option of slow, and the method is fast; leave it out, or"),
        (["x", "--hidden.rate", "3"], "unknown option --hidden.rate; --help lists the options"),
        (["x", "--rate", "-1"], "--fast.rate=-1.0 must be a finite float32 number, at least 0"),
        (["x", "--width", "0"], "--fast.width=0 must be a whole number, at least 1, or None"),
        (["x", "--width", "many"], "--fast.width: 'many' is no {None}|INT; --help lists the options"),
        (["x", "--raw", "False"], "--fast.raw is a switch and takes no False; write --NAME or --no-NAME"),
        (["x", "--depth"], "Missing value for argument '--depth'"),
        (["x", "y"], "Unrecognized options: y; --help lists the options"),
        ([], "missing: FILE (required); --help lists the options"),
    ],
)
def test_what_cannot_be_read_is_one_line(words, said, capsys):
    with pytest.raises(ValueError) as found:
        read(*words)
    assert said in str(found.value) and "\n" not in str(found.value)
    assert capsys.readouterr() == ("", "")


def page(*words, run=read):
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 0


def test_help_shows_the_first_options_in_their_groups_and_help_all_every_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page("--help")
    assert capsys.readouterr().out.splitlines() == [
        "usage: metadd fast FILE [--option value ...]",
        "",
        "Does it.",
        "",
        "  FILE                        what to read.",
        "",
        "those of fast:",
        "  --fast.rate X               how fast. [0.5]",
        "  --fast.depth N              how large it is, in layers and units. [None]",
        "  --fast.width N              likewise. [None]",
        "",
        "what:",
        "  --kind {apple,pear}         which one. [pear]",
        "",
        "4 further options: --help-all shows every one.",
    ]
    page("x", "--help-all")
    text = capsys.readouterr().out
    assert "--fast.[no-]raw " in text and "--names TEXT ... " in text and "options:\n  --more TEXT" in text
    assert "further" not in text


def test_every_option_of_the_main_job_has_a_place_and_a_text():
    names = [name for group in options.GROUPS.values() for name in group]
    records = {"metadd", "own"}
    assert sorted(names) == sorted({field.name for field in dataclasses.fields(options.DistillConfig)} - records)
    assert {name for name in options.FIRST if "." not in name} <= set(names)
    for method in distillers.names():
        config = presets.preset("mnist5k").with_method(method)
        found = parsing._options(options.DistillConfig, config, distill._layout(method))
        assert [option.name for option in found if not option.text] == []


@pytest.mark.parametrize("method", distillers.names())
def test_the_help_of_the_main_job_fits_two_screens_and_shows_the_own_options_of_a_method_alone(
    method, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")
    page(["--method", method, "--help"], run=distill.run)
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 108  # two screens
    for group in {distillers.get(name).group for name in distillers.names()}:
        assert (f"--{group}." in text) == (group == distillers.get(method).group)


def test_a_short_name_and_the_option_of_another_method_in_the_main_job():
    def read(*words):
        return distill._parsed(list(words), "distill.py")

    assert read("--method", "mtt", "--syn-steps", "7") == read("--method=mtt", "--mtt.syn_steps=7")
    assert read("dsa/cifar10/10", "--inner", "3").own.inner == 3
    with pytest.raises(
        ValueError, match=r"^--syn-steps is an option of mtt, tesla, tesla_code, datm and datm_tesla, and the meth"
    ):
        read("--syn-steps", "7")
    with pytest.raises(ValueError, match=r"^--method='dn' must be one of ncfm, .*did you mean 'dm'"):
        read("--method", "dn", "--syn-steps", "7")


def test_auto_is_the_word_for_what_a_method_leaves_to_the_data_or_the_machine():
    def own(*words):
        return distill._parsed(list(words), "distill.py").own

    assert own("dm/cifar10/10", "--class-batch", "3").class_batch == 3
    said = own("smoke", "--augmentation", "auto", "--init=auto", "--dm.class-batch", "auto", "--micro-batch", "None")
    assert said == distillers.DM(batch_size=8, class_batch=None)
    assert own("smoke", "--method", "dc", "--augmentation", "flip", "--init", "real") == distillers.DC(
        batch_size=8, augmentation="flip", init="real"
    )
    with pytest.raises(ValueError, match="'auto'"):  # what has no automatic value: the error says what was written
        own("smoke", "--batch-size", "auto")
