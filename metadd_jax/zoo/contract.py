"""The contract of a network, checked when it is made: a broken one would give a bad number later, and no error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from jax.extend import core

# The collections of variables that a network may have: training, caches and checkpoints know these two and no others.
COLLECTIONS = ("params", "batch_stats")
_DIMENSIONS = {"embedding": 2, "map": 4, "attention": 5, "patch_logits": 4}  # attention [L, B, heads, T, T]


def trace(label: str, module: nn.Module, num_classes: int, image_shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """Traces the module on one image and checks what it returns; nothing is computed or allocated.

    Args:
      label: name of the network in error messages.
      module: see ``Architecture``.
      num_classes: K.
      image_shape: (H, W, C).

    Returns:
      The shapes of the variables and of ``out``.

    Raises:
      ValueError: if the module cannot be called, for evaluation or for training, has no weights or keeps more than
        weights and ``batch_stats``, if its logits are not [B, K], ``out["embedding"]`` not [B, D] or ``out["map"]`` not
        [B, h, w, C], or if the map is not what ``self.perturb("map", ...)`` of the module itself returned, on the way
        to the logits.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        hash(module)  # jit caches programs by it; a field that is a list or an array has no hash
        key = jax.eval_shape(jax.random.key, 0)
        given, variables = jax.eval_shape(lambda k, x: module.init_with_output(k, x, train=False), key, images)
    except TypeError as error:
        raise _broken(label, f"it cannot be called as module(images, train=False): {_first_line(error)}") from error
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
        raise _broken(label, f"it returns {type(given).__name__}; return (logits, out), out a dictionary")
    logits, out = given
    if getattr(logits, "shape", None) != (1, num_classes):
        raise _broken(
            label, f"its logits are {getattr(logits, 'shape', logits)} for 1 image; return [1, {num_classes}]"
        )
    for name, dimensions in _DIMENSIONS.items():
        if name in out and len(out[name].shape) != dimensions:
            raise _broken(label, f'out["{name}"] has the shape {out[name].shape}; it must have {dimensions} dimensions')
    if "embedding" not in out:
        raise _broken(label, 'out["embedding"] is missing; return what the last Linear layer sees')
    foreign = sorted(variables.keys() - {*COLLECTIONS, "perturbations"})
    if foreign or "params" not in variables:
        raise _broken(label, f"it keeps {foreign[0]!r}" if foreign else "it has no weights to train")
    # Only networks of users: this traces again, and the zoo's own are covered by tests.
    if not type(module).__module__.startswith(f"{__package__}."):
        _check_training(label, module, variables, images)
        if "map" in out:
            check_map(label, module, variables, out["map"], images)
    return {name: variables[name] for name in COLLECTIONS if name in variables}, out


def _check_training(label: str, module: nn.Module, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct) -> None:
    """A module that can only be evaluated would be found out after the data is read, deep in a compiled step."""
    try:
        jax.eval_shape(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]), variables, images)
    except errors.InvalidRngError as error:
        raise _broken(label, "it draws random numbers in training, and gets none; leave dropout out") from error
    except (TypeError, errors.FlaxError) as error:
        raise _broken(label, f"it cannot be called as module(images, train=True): {_first_line(error)}") from error


def check_map(
    label: str,
    module: nn.Module,
    variables: Mapping[str, Any],
    made: jax.ShapeDtypeStruct,
    images: jax.ShapeDtypeStruct,
) -> None:
    """Checks that ``out["map"]`` is what ``self.perturb`` returned, and that the logits are computed from it.

    Otherwise the derivative of the logits at the map is zero or belongs to another tensor, and so are all class
    activation maps.

    Args:
      label: name of the network in error messages.
      module: see ``Architecture``.
      variables: shapes of its variables, with the ``perturbations`` that ``self.perturb`` created.
      made: shape of ``out["map"]``, [1, h, w, C].
      images: shape of one image, [1, H, W, C].

    Raises:
      ValueError: if either does not hold.
    """
    shift = variables.get("perturbations", {})
    if set(shift) != {"map"} or getattr(shift["map"], "shape", None) != made.shape:
        raise _broken(
            label, 'out["map"] is not what self.perturb("map", ...) gave, so no class activation map can be made of it'
        )

    def logits(shift: chex.ArrayTree, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return module.apply({**variables, "perturbations": shift}, images, train=False)[0]

    if not _depends(logits, shift, variables, images):
        raise _broken(label, 'its logits do not depend on self.perturb("map", ...); go on with what it returns')


def _depends(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether the result of a function is computed from its first argument."""
    # By following variables through the program, and not by a gradient of zero: that may be zero for one image (a dead
    # ReLU) and not for the next.
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    reached = set(program.invars[: len(jax.tree.leaves(arguments[0]))])

    def hit(values: list) -> bool:
        return any(value in reached for value in values if isinstance(value, core.Var))

    for equation in program.eqns:
        if hit(equation.invars):
            reached.update(equation.outvars)
    return hit(program.outvars)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _broken(label: str, what: str) -> ValueError:
    return ValueError(f"{label} breaks the contract of a network: {what} (see zoo.Architecture)")
