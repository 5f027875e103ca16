"""Accelerators that are not there: XLA compiles for them all the same, so what their programs hold can be counted.

JAX's plugin for them has to be installed, no driver and no device. Without one to try them on XLA takes its first
choice of each library's algorithms, and no time can be measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

import jax
import numpy as np

# What XLA asks of a GPU before it compiles for it, as a text of its GpuTargetConfigProto.
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
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that XLA can compile for.

    Attributes:
      backend: what JAX calls its kind.
      platform: what JAX calls its plugin.
      extra: of JAX's package, which installs the plugin.
      modules: one of them is there if the plugin is.
      topology: how JAX's plugin makes one of them.
      environment: what must be set before JAX starts.
      is_counted: whether a kernel is what its programs start, and their loops say how often: not those of a TPU.
    """

    backend: str
    platform: str
    extra: str
    modules: tuple[str, ...]
    topology: dict[str, str]
    environment: dict[str, str]
    is_counted: bool = True


DEVICES = {
    "h200": Device(
        "gpu", "cuda", "cuda12", ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"),
        {"topology_name": "h200", "target_config": _CARD, "topology": "1x1x1"},
        # Its own matrix products need a GPU that chooses their tiles.
        {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"},
    ),
    "v5e": Device(
        "tpu", "tpu", "tpu", ("libtpu",), {"topology_name": "v5e:2x2x1"},
        {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},  # nothing asks for a device, nor locks one
        is_counted=False,
    ),
}  # fmt: skip


def prepare(ways: str) -> None:
    """Makes what this process and its children start of JAX a CPU's, beside which they can compile for the device.

    Args:
      ways: of ``DEVICES``.

    Raises:
      ValueError: if JAX's plugin for it is not installed.
    """
    device = DEVICES[ways]
    if not any(map(_is_there, device.modules)):
        raise ValueError(f'--ways {ways} needs JAX\'s plugin, but no device; run: pip install "jax[{device.extra}]"')
    for name, value in {"JAX_PLATFORMS": "cpu", **device.environment}.items():
        kept = f"{os.environ.get(name, '')} " if name == "XLA_FLAGS" else ""  # such as where to dump programs
        os.environ[name] = kept + value


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def place(arguments: Any, ways: str) -> Any:
    """Returns shapes in place of arrays, on a device of ``DEVICES``: what is lowered with them is compiled for it."""
    from jax.experimental import topologies

    device = DEVICES[ways]
    devices = topologies.get_topology_desc(platform=device.platform, **device.topology).devices
    whole = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices[:1]), ("one",)), jax.sharding.PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), arguments)
