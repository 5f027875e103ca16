"""torchvision's networks with weights from a formula, and the logits they gave: stored, for machines without torch.

Every array depends only on its key and shape, so neither weights nor images need storing. Where torch and
torchvision are installed,

    PYTHONPATH=. python tests/zoo/torchvision_reference.py

computes the logits anew and writes them to torchvision_logits.json.
"""

import json
import math
import pathlib
import zlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("torchvision_logits.json")
STORED = ("alexnet", "vgg11_bn", "resnet18", "resnet50", "googlenet", "vit_b_16", "swin_t")
CLASSES, SIDE = 5, 128
BLOCK = 1 << 18  # numbers at a time, which stay in the caches: the largest network has 130 million


def uniform(key, shape):
    """float32 in [0, 1): the index of each number, in C order, plus the key's CRC-32, mixed in 32 bits."""
    made = np.empty(math.prod(shape), np.float32)
    for start in range(0, made.size, BLOCK):
        x = np.arange(start, min(start + BLOCK, made.size), dtype=np.uint32)
        x *= np.uint32(2654435761)
        x += np.uint32(zlib.crc32(key.encode()))
        for shift, factor in ((16, 2246822507), (13, 3266489909)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        np.divide(x >> np.uint32(8), np.float32(2**24), out=made[start : start + BLOCK], dtype=np.float32)
    return made.reshape(shape)


def array(key, shape):
    """Weights and running statistics of sizes that keep the activations near 1, for a key of a state dict."""
    x = uniform(key, shape)
    if len(shape) > 1:  # weights: variance 2 / fan-in
        x *= 2
        x -= 1
        x *= np.float32(math.sqrt(6 / math.prod(shape[1:])))
        return x
    if key.endswith(("bias", "running_mean")):
        return (2 * x - 1) / 5
    return 0.5 + x  # scale of a norm, running variance


def images(batch, side):
    """[B, side, side, 3] in [-2, 2)."""
    return 4 * uniform("images", (batch, side, side, 3)) - 2


def is_count_or_index(key):
    """Whether a key belongs to a buffer that is no weight."""
    return key.endswith(("num_batches_tracked", "relative_position_index"))


def torchvision_network(name, num_classes, side=224, **settings):
    """torchvision's network in evaluation mode, filled by ``array``."""
    import torch

    try:
        import torchvision
    except RuntimeError:  # built for another torch: two operators of its detection networks are missing
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    if name.startswith("vgg"):
        settings["init_weights"] = False
    if name == "googlenet":
        settings |= {"init_weights": False, "aux_logits": False}
    if name.startswith("vit"):
        settings["image_size"] = side
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **settings).eval()
    state = model.state_dict()
    for key, value in state.items():
        if not is_count_or_index(key):
            state[key] = torch.from_numpy(array(key, tuple(value.shape)))
    model.load_state_dict(state)
    return model


def main():
    import torch

    pictures = torch.from_numpy(images(2, SIDE)).permute(0, 3, 1, 2)
    stored = {}
    for name in STORED:
        with torch.no_grad():
            logits = torchvision_network(name, CLASSES, SIDE)(pictures)
        stored[name] = [[float(f"{value:.7g}") for value in row] for row in logits.tolist()]
    FILE.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
