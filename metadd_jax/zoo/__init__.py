"""The architecture zoo: networks by name, as pure functions of their variables (docs/zoo.md).

>>> net = create("convnet", num_classes=10, image_shape=(32, 32, 3))
>>> variables = net.init(jax.random.key(0))
>>> logits, out = net.apply(variables, images)
"""

from metadd_jax.zoo import torchvision
from metadd_jax.zoo.architecture import Architecture
from metadd_jax.zoo.layers import SizeError
from metadd_jax.zoo.preprocess import Preprocess
from metadd_jax.zoo.registry import check, create, names, parse, register
from metadd_jax.zoo.statistics import NormInput, batch_norm_inputs
from metadd_jax.zoo.switched import Variants, variants

__all__ = [
    "Architecture",
    "NormInput",
    "Preprocess",
    "SizeError",
    "Variants",
    "batch_norm_inputs",
    "check",
    "create",
    "names",
    "parse",
    "register",
    "torchvision",
    "variants",
]
