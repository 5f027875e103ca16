"""What ``test_hosts`` lets two processes of two devices do together, and one process of four alone.

python tests/two_processes.py FOLDER HOST:PORT PROCESS
"""

import pathlib
import sys

import jax
import numpy as np
import optax

from metadd_jax import data, distillers, evaluation, parallel, training, zoo
from metadd_jax.evaluation.cross_architecture import train_and_test

SHAPE = (8, 8, 1)


def tiny():
    """34 images of 3 classes, and 7 to test on."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), (20, 5, 9)))
    images = (rng.integers(0, 120, (len(labels), *SHAPE)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays("tiny", images, labels, images[:7], labels[:7])


def job(folder):
    """Everything that several processes share, as arrays by name; its files go to ``folder``."""
    dataset, net = tiny(), zoo.parse("mlp:width=8", 3, SHAPE)
    made = {}
    method, tx = distillers.dm(net, ipc=2, batch_size=8, augmentation="flip"), optax.sgd(0.1, momentum=0.5)
    for mode, pool in (("pmap", 0), ("sharded", 8)):
        settings = {"chunk": 2, "save_every": 2, "device_mode": mode, "stream_per_class": pool}
        chunks = distillers.compile_chunks(method, tx, distillers.RunConfig(steps=4, **settings))
        for steps in (2, 4):  # the second goes on from the checkpoint of the first
            config = distillers.RunConfig(steps=steps, **settings)
            state = distillers.distil(0, method, tx, dataset, config, directory=folder / mode, chunk_of=chunks)
        made[mode] = method.synthetic(state).images
    recipe = training.expert_training(1, augmentation="flip")
    experts = training.train_experts(folder / "experts", net, dataset, recipe, experts=3, at_once=3)
    made["experts"] = np.stack([experts.read(number, 2) for number in range(3)])
    trained = training.pretrain(net, dataset, training.pretraining(1, augmentation="flip"), cache_dir=folder)
    made["accuracy"] = trained.accuracy
    real = evaluation.random_real(jax.random.key(0), dataset, 2)
    recipe = training.Recipe(epochs=2, batch_size=4)
    made["accuracies"] = train_and_test(jax.random.key(0), [real], net, dataset.test, seeds=3, recipe=recipe)
    return {name: np.asarray(value) for name, value in made.items()}


def main(folder, coordinator, process):
    jax.config.update("jax_num_cpu_devices", 2)
    parallel.initialize(coordinator=coordinator, num_processes=2, process_id=int(process))
    assert jax.local_device_count() == 2 and parallel.device_count() == 4
    folder = pathlib.Path(folder)
    np.savez(folder / f"process{process}.npz", **job(folder))
    parallel.require_agreement({"same": np.arange(3)}, text="same")
    try:
        parallel.require_agreement({"own": np.full(2, jax.process_index())})
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
