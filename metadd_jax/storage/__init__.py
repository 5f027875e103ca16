"""What a run leaves on the disk: checkpoints (Orbax), metrics (JSON lines), and the lock while it is at work."""

from metadd_jax.storage.checkpoint import Checkpointer, restore, restore_tree, save, save_tree
from metadd_jax.storage.lock import LOCK, HeldError, Lock, waiting
from metadd_jax.storage.metrics import JsonLines, NoMetrics, TensorBoard, WeightsAndBiases
from metadd_jax.storage.programs import cache_compilations

__all__ = [
    "LOCK",
    "Checkpointer",
    "HeldError",
    "JsonLines",
    "Lock",
    "NoMetrics",
    "TensorBoard",
    "WeightsAndBiases",
    "cache_compilations",
    "restore",
    "restore_tree",
    "save",
    "save_tree",
    "waiting",
]
