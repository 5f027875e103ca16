"""Floating-point operations of a function, counted in its traced program, with every loop multiplied out.

XLA's own ``cost_analysis`` counts the body of a loop once, which for a step that goes through ten classes is a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any) -> float:
    """Operations of all matrix products and convolutions of one call, a multiplication and an addition each.

    Of a conditional the dearest branch counts, of a loop of unknown length one round. The zeros around an image count
    like pixels. What is only element-wise (norms, pooling, augmentation) is left out. What the result does not depend
    on is left out too: XLA never runs it.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:  # core.JaxprEqn, whose types say nothing of shapes
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # A dilated image is mostly zeros that nobody multiplies by.
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs / math.prod(params["lhs_dilation"])
    if name == "convolution_product":  # the zoo's own: as many whichever of its three arrays it gives
        sizes, lead = params["geometry"], equation.outvars[0].aval.shape[:-4]
        return 2.0 * math.prod(lead) * math.prod(sizes.shape("result")) * math.prod(sizes.shape("kernel")[:3])
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    rounds = params["length"] if name == "scan" else 1
    return rounds * sum(_count(inner) for value in params.values() for inner in _jaxprs(value))


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    """The programs inside of a parameter of an equation."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return []
