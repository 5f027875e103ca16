"""Four CPU devices and quick compilation for every test; helpers that several test files share."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for the scripts that tests start
jax.config.update("jax_num_cpu_devices", 4)
# About halves the compile time, which is most of what these tests do.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def programs_are_kept_by_no_test_for_the_next():
    """A job that runs in this process turns JAX's cache of programs on; left on, writing to it has crashed a worker."""
    before = jax.config.jax_compilation_cache_dir
    yield
    if jax.config.jax_compilation_cache_dir != before:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
