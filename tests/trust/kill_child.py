"""What ``test_killed`` starts and kills: the distillation of one member of the contract suite, in its own process."""

import os
import pathlib
import sys

import jax
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "distillers"))
import members
from orbax.checkpoint import v1  # noqa: F401  # imported once, in the process that all others are forked from

from metadd_jax import distillers, storage

STEPS = 40


def distil(name, folder, begun):
    """Distils with a checkpoint at every update, tells when it begins, and keeps the images when it ends.

    Args:
      name: of the member.
      folder: of the run.
      begun: a connection, to which the step is sent that it goes on from, once everything is compiled.
    """
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    storage.cache_compilations(folder.parent / "programs")
    dataset = members.tiny()
    method, tx = members.make(name, members.auxiliaries(dataset), dataset)
    config = distillers.RunConfig(steps=STEPS, chunk=1, save_every=1, device_mode="jit")
    chunks = distillers.compile_chunks(method, tx, config)
    first = True

    def tell(done, metrics):
        nonlocal first
        if first:
            begun.send(done)
            first = False

    state = distillers.distil(0, method, tx, dataset, config, directory=folder, chunk_of=chunks, on_chunk=tell)
    images = np.asarray(method.synthetic(state).images)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.synthetic)]
    np.savez(folder / "end.npz", images, *leaves)
