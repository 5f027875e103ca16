"""What every script shares: options from a dataclass, one-line errors, a bar, the platform's facts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def parse(config_type: type, arguments: list[str], *, default: Any = None, program: str, description: str) -> Any:
    """Parses a command line into a frozen dataclass; ``--help`` explains each option."""
    try:
        import tyro
    except ImportError as error:
        raise ValueError("the scripts need tyro; run: pip install -r requirements.txt") from error
    options = {} if default is None else {"default": default}
    return tyro.cli(config_type, args=arguments, prog=program, description=description, **options)


def main(function: Callable[[list[str]], None]) -> None:
    """Runs a script: a user's error is one line on stderr and exit status 1, Ctrl-C is 130."""
    try:
        function(sys.argv[1:])
    except ValueError as error:
        if os.environ.get("METADD_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def bar(total: int, description: str, unit: str) -> Any:
    """A tqdm bar with rate and time left."""
    from tqdm import tqdm

    return tqdm(total=total, desc=f"{description:<24}", unit=unit, dynamic_ncols=True, smoothing=0.1)


def be_silent() -> None:
    """Prints nothing from here on but errors: what all processes but the first do."""
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which ``bar`` does
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, and the machine."""
    import jax

    import metadd_jax

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "metadd_jax": metadd_jax.__version__,
        **found,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
