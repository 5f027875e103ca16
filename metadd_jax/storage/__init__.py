"""What a run leaves on the disk: checkpoints (Orbax) and metrics (JSON lines)."""

from metadd_jax.storage.checkpoint import Checkpointer, restore, restore_tree, save, save_tree
from metadd_jax.storage.metrics import JsonLines, NoMetrics, TensorBoard

__all__ = [
    "Checkpointer",
    "JsonLines",
    "NoMetrics",
    "TensorBoard",
    "restore",
    "restore_tree",
    "save",
    "save_tree",
]
