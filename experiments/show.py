"""Draw a distilled set; with networks (trained on the real data, from the cache) also what they see in it.

python experiments/show.py runs/mnist5k/dm/seed0 --out pictures --networks vgg11:width=8 lenet
"""

from __future__ import annotations

import dataclasses
import pathlib

import command
import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Pictures of a distilled set.

    Attributes:
      file: synthetic.npz, or the folder that holds it.
      out: folder for synthetic.png and maps.png.
      networks: networks whose activation maps are drawn; they are pre-trained on the real data if need be.
      epochs: of that pre-training.
      data_dir: where prepared TFDS data lies.
      cache_dir: where trained networks are kept (default: ~/.cache/metadd_jax).
    """

    file: tyro.conf.Positional[str]
    out: str = "pictures"
    networks: tuple[str, ...] = ()
    epochs: int = 5
    data_dir: str | None = None
    cache_dir: str | None = None


def run(arguments: list[str]) -> None:
    """Parses the command line and draws."""
    config = command.parse(ShowConfig, arguments, program="show.py", description=__doc__)

    import common
    import numpy as np

    import metadd_jax as mdd
    from metadd_jax import files, pictures

    common.check_names(config.networks)
    synthetic, metadata = common.load_set(config.file)
    folder = pathlib.Path(files.require_writable(config.out))
    scale = {key: np.asarray(metadata[key], np.float32) for key in ("mean", "std")}
    names = metadata["class_names"]
    pictures.grid(folder / "synthetic.png", synthetic.images, synthetic.labels, class_names=names, **scale)
    print(f"wrote {folder / 'synthetic.png'}")
    if not config.networks:
        return
    cache = common.open_cache(config.cache_dir)
    dataset = mdd.data.load(metadata["dataset"], data_dir=config.data_dir, cache_dir=config.cache_dir)
    common.check_same_space(metadata, dataset)
    nets = common.networks(config.networks, dataset)
    recipe = mdd.training.pretraining(config.epochs)
    auxiliaries = []
    with command.bar(len(nets), "pretrain", "net") as progress:
        for net in nets:
            trained = mdd.training.pretrain(net, dataset, recipe, cache_dir=cache)
            auxiliaries.append(mdd.distillers.freeze(net, trained.variables, dataset))
            progress.update()
    first = np.unique(np.asarray(synthetic.labels), return_index=True)[1]
    images, labels = synthetic.images[first], synthetic.labels[first]
    stack = mdd.evaluation.map_stack(images, labels, auxiliaries)
    labels_of = [net.label for net in nets]
    pictures.maps(folder / "maps.png", images, labels, stack, class_names=names, network_names=labels_of, **scale)
    print(f"wrote {folder / 'maps.png'}")


if __name__ == "__main__":
    command.main(run)
