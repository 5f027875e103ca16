"""Four CPU devices and quick compilation for every test; helpers that several test files share."""

import gc
import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Compiling is most of what these tests do. The first about halves it, the others halve it again: each kernel is emitted
# in the old and plain way, and a program is one module of LLVM's in place of dozens.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for the scripts that tests start
jax.config.update("jax_disable_most_optimizations", True)
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 12):  # XLA ends the process at a flag that it does not know
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
jax.config.update("jax_num_cpu_devices", 4)
# Tracing makes millions of small objects, among which there is little garbage, and notes where each operation was said.
gc.set_threshold(200_000, 50, 100)
jax.config.update("jax_traceback_in_locations_limit", 0)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def programs_are_given_back():
    """Each program that JAX keeps holds dozens of the 65,530 memory maps of a process; beyond them LLVM crashes."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.clear_caches()
    _keep_programs_in(before)  # a fixture of a whole module may have run a job, too


@pytest.fixture(autouse=True)
def programs_are_kept_by_no_test_for_the_next():
    """A job that runs in this process turns JAX's cache of programs on; left on, writing to it has crashed a worker."""
    before = jax.config.jax_compilation_cache_dir
    yield
    _keep_programs_in(before)


def _keep_programs_in(folder):
    if jax.config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
