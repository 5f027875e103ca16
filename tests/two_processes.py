"""What ``test_hosts`` lets two processes of two devices do together, and one process of four alone.

python tests/two_processes.py FOLDER HOST:PORT PROCESS [methods]

With "methods" it is two updates by every method of the contract suite, otherwise all else that is done together.
"""

import pathlib
import sys

import jax
import numpy as np
import optax

sys.path.append(str(pathlib.Path(__file__).parent / "distillers"))
import members

from metadd_jax import distillers, evaluation, parallel, training
from metadd_jax.evaluation.judging import train_and_test


def job(folder):
    """Everything that several processes share, as arrays by name; its files go to ``folder``."""
    dataset, net = members.tiny(), members.make_net("mlp:width=8")
    made = {}
    method, tx = distillers.dm(net, ipc=2, batch_size=8, augmentation="flip"), optax.sgd(0.1, momentum=0.5)
    for mode, pool in (("pmap", None), ("sharded", 8)):
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


def methods(mode):
    """The images of every member of the contract suite after two updates, by name."""
    dataset = members.tiny()
    auxiliaries = members.auxiliaries(dataset)
    config = distillers.RunConfig(steps=2, chunk=2, device_mode=mode)
    made = {}
    for name in members.MEMBERS:
        if "batch norm" in name and mode == "pmap":
            continue  # refused: its statistics are those of one batch
        method, tx = members.make(name, auxiliaries, dataset)
        made[name] = np.asarray(method.synthetic(distillers.distil(0, method, tx, dataset, config)).images)
    return made


def main(folder, coordinator, process, what="job"):
    jax.config.update("jax_num_cpu_devices", 2)
    parallel.initialize(coordinator=coordinator, num_processes=2, process_id=int(process))
    assert jax.local_device_count() == 2 and parallel.device_count() == 4
    folder = pathlib.Path(folder)
    if what == "methods":
        for mode in ("pmap", "sharded"):
            np.savez(folder / f"{mode}{process}.npz", **methods(mode))
        return
    np.savez(folder / f"process{process}.npz", **job(folder))
    parallel.require_agreement({"same": np.arange(3)}, text="same")
    try:
        parallel.require_agreement({"own": np.full(2, jax.process_index())})
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
