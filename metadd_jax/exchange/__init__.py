"""Distilled sets for the rest of the world: NumPy files, PNG folders and PyTorch files, out and in."""

from metadd_jax.exchange.arrays import export_npz, is_set_file, load_npz
from metadd_jax.exchange.belongs import check_belongs
from metadd_jax.exchange.buffers import buffer_files, load_buffers
from metadd_jax.exchange.checks import check_set
from metadd_jax.exchange.latents import export_latents, load_latents
from metadd_jax.exchange.packages import export_pictures, export_regression, export_safetensors, export_webdataset
from metadd_jax.exchange.peer import Peer, settle, space_of
from metadd_jax.exchange.peer_records import export_array_record
from metadd_jax.exchange.peers import load_peer
from metadd_jax.exchange.pixels import export_png_folder, to_pixels, to_value_space, value_space
from metadd_jax.exchange.pytorch import export_torch, load_torch
from metadd_jax.exchange.tensors import (
    cells_first,
    export_packed,
    export_tensor_dataset,
    export_tensors,
    load_packed,
)

__all__ = [
    "Peer",
    "buffer_files",
    "cells_first",
    "check_belongs",
    "check_set",
    "export_array_record",
    "export_latents",
    "export_npz",
    "export_packed",
    "export_pictures",
    "export_png_folder",
    "export_regression",
    "export_safetensors",
    "export_tensor_dataset",
    "export_tensors",
    "export_torch",
    "export_webdataset",
    "is_set_file",
    "load_buffers",
    "load_latents",
    "load_npz",
    "load_packed",
    "load_peer",
    "load_torch",
    "settle",
    "space_of",
    "to_pixels",
    "to_value_space",
    "value_space",
]
