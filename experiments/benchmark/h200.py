"""An NVIDIA H200 that is not there: XLA compiles for it all the same, so what its programs launch can be counted.

JAX's CUDA plugin has to be installed, no driver and no GPU. Without a GPU to try them on XLA takes its first choice of
each library's algorithms, and no time can be measured.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import numpy as np

# JAX computes on the CPU; and the compiler's own matrix products need a GPU that chooses their tiles.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
# What XLA asks of a device before it compiles for it, as a text of its GpuTargetConfigProto.
_CARD = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""


def require() -> None:
    """Checks that JAX can compile for CUDA.

    Raises:
      ValueError: if its plugin is not installed.
    """
    if importlib.util.find_spec("jax_plugins") is None or not any(map(importlib.util.find_spec, _PLUGINS)):
        raise ValueError('--ways h200 needs JAX\'s CUDA plugin, but no GPU; run: pip install "jax[cuda12]"')


def place(arguments: Any) -> Any:
    """Returns shapes in place of arrays, as arguments on the H200: what is lowered with them is compiled for it."""
    from jax.experimental import topologies

    device = topologies.get_topology_desc("h200", "cuda", target_config=_CARD, topology="1x1x1").devices
    whole = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(device), ("h200",)), jax.sharding.PartitionSpec())

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    return jax.tree.map(shape, arguments)
