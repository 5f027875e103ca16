"""Ranges: what they hold, at their ends, at NaN and in float32; and every record of settings that declares them."""

import dataclasses
import inspect
import math
from typing import Annotated

import numpy as np
import pytest

from metadd_jax import distillers, features, invariant, ranges
from metadd_jax.ranges import Each, OneOf, Ordered, Real, Whole
from metadd_jax.training import recipes

RECORDS = {
    features.CamConfig: {},
    invariant.InvariantConfig: {},
    distillers.RunConfig: {"steps": 1},
    recipes.Recipe: {"epochs": 2},
    **{type(distillers.get(name)): {} for name in distillers.names()},
}


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        (Whole(1), [1, 7, np.int64(3)], [0, -1, 1.0, math.nan, "1", None]),
        (Whole(0, 3), [0, 3], [-1, 4]),
        (Real(), [-1.0, 0, 3e38], [math.nan, math.inf, -math.inf, 1e39, 10**400, "x", None, [1.0]]),
        (Real(0), [0.0, 1e-50], [-1e-30]),
        (Real(0, above=True), [1e-45, 1], [0, 1e-50, -0.0]),
        (Real(0, 1, below=True), [0, 0.999], [1, 1.5, 1 - 1e-12]),
        (Real(0, 1), [1], [1.0001]),
        (OneOf(("a", "b")), ["a"], ["", "c", None, 1]),
        (Each(Whole(1)), [(), (1, 2), [3]], [(1, 0), (0.5,), 1, "1", None]),
        (Ordered(), [(0, 4), (2, 2), [-4, 4]], [(4, 0), (0,), (0, 1, 2), (0.5, 1), 3, "ab"]),
    ],
)
def test_what_a_range_holds(rule, inside, outside):
    assert [value for value in inside if not rule.holds(value)] == []
    assert [value for value in [*outside, *rule.outside()] if rule.holds(value)] == []


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: Annotated[float, Real(0)] = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    count: Annotated[int | None, Whole(1)] = None
    inner: Inner = Inner()
    free: str = ""


def test_a_record_is_checked_with_what_is_inside_it_and_the_message_spells_the_field():
    ranges.check(Outer())
    with pytest.raises(ValueError, match=r"^count=0 must be a whole number, at least 1, or None$"):
        ranges.check(Outer(count=0))
    with pytest.raises(ValueError, match=r"^<inner\.rate>=nan must be a finite float32 number, at least 0$"):
        ranges.check(Outer(inner=Inner(math.nan)), spell=lambda path: f"<{path}>")


def test_a_word_that_is_nearly_right_is_named():
    with pytest.raises(ValueError, match=r"init='reel' must be one of real, noise \(did you mean 'real'\?\)"):
        ranges.require("init", "reel", OneOf(("real", "noise")))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_setting_of_a_record_has_a_range_that_it_refuses_to_leave(record):
    fields = {field.name: field for field in dataclasses.fields(record)}
    free = {name for name, field in fields.items() if field.type == "bool"} | {"cam"}
    declared = ranges.of(record)
    assert set(declared) == set(fields) - free
    for name, rule in declared.items():
        for value in rule.outside():
            with pytest.raises(ValueError, match=rf"^{name}=.* must be "):
                record(**(RECORDS[record] | {name: value}))


FACTORIES = {
    distillers.trajectory_optimiser: {"image_lr": 1.0, "lr_lr": 1e-5, "lr_teacher": 0.01},
    distillers.recover_optimiser: {"learning_rate": 0.1, "steps": 3, "mean": [0.5], "std": [0.5]},
}


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_no_factory_takes_a_number_that_means_nothing(factory):
    given = FACTORIES[factory]
    factory(**given)
    kinds = {"int": [-1, 0.5], "float": [math.nan, math.inf, -1.0], "int | None": [-1, 0]}
    tried = 0
    for name, parameter in inspect.signature(factory).parameters.items():
        for value in kinds.get(parameter.annotation, []):
            with pytest.raises(ValueError, match=f"{name}.* must be "):
                factory(**(given | {name: value}))
            tried += 1
    assert tried
