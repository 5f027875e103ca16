"""Four CPU devices and quick compilation for every test; helpers that several test files share."""

import os

import jax
import pytest

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for the scripts that tests start
jax.config.update("jax_num_cpu_devices", 4)
# About halves the compile time, which is most of what these tests do.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def key():
    return jax.random.key(0)
