"""Golden parameter counts of the field's networks (shared/reference/base_methods.md 1.0.4)."""

import jax
import pytest

from metadd_jax import zoo
from metadd_jax.zoo import architecture

GREY, SMALL, TINY, MEDIUM, LARGE = (28, 28, 1), (32, 32, 3), (64, 64, 3), (128, 128, 3), (224, 224, 3)

COUNTS = [
    ("mlp", 10, SMALL, 411_146),
    ("mlp", 10, GREY, 118_282),
    ("lenet", 10, SMALL, 62_006),
    ("lenet", 10, GREY, 61_706),
    ("alexnet", 10, SMALL, 1_872_202),
    ("alexnet", 10, GREY, 1_865_802),
    ("alexnet_bn", 10, SMALL, 1_874_122),
    ("vgg11", 10, SMALL, 9_231_114),
    ("vgg11", 10, GREY, 9_229_962),
    ("vgg11_bn", 10, SMALL, 9_231_114),
    ("resnet18", 10, SMALL, 11_173_962),
    ("resnet18", 10, GREY, 11_172_810),
    ("resnet18_bn", 10, SMALL, 11_173_962),
    ("resnet18_ap", 10, SMALL, 11_250_762),
    ("resnet18_ap", 10, GREY, 11_213_770),
    ("resnet18_bn_ap", 10, SMALL, 11_250_762),
    ("resnet18_bn_ap", 10, GREY, 11_213_770),
    ("resnet34", 10, SMALL, 21_282_122),
    ("resnet50", 10, SMALL, 23_520_842),
    ("resnet50:norm=batch", 10, SMALL, 23_520_842),
    ("convnet", 10, SMALL, 320_010),
    ("convnet", 10, GREY, 317_706),
    ("convnet", 100, SMALL, 504_420),
    ("convnet", 200, TINY, 857_160),
    ("convnet", 10, MEDIUM, 615_690),
    ("convnet_bn", 10, SMALL, 320_010),
    ("convnet:norm=layer", 10, SMALL, 663_306),
    ("convnet:norm=group", 10, SMALL, 320_010),
    ("convnet:norm=none", 10, SMALL, 319_242),
    ("convnet:pooling=none", 10, SMALL, 1_610_250),
    ("convnet:width=32", 10, SMALL, 24_714),
    ("convnet:width=256", 10, SMALL, 1_229_834),
    ("convnet:depth=1", 10, SMALL, 331_530),
    ("convnet:depth=2", 10, SMALL, 233_610),
    ("convnet:depth=4", 10, SMALL, 452_490),
    # torchvision's
    ("alexnet", 1000, LARGE, 61_100_840),
    ("vgg11", 1000, LARGE, 132_863_336),
    ("vgg11_bn", 1000, LARGE, 132_868_840),
    ("vgg13", 1000, LARGE, 133_047_848),
    ("vgg16", 1000, LARGE, 138_357_544),
    ("vgg16_bn", 1000, LARGE, 138_365_992),
    ("vgg19", 1000, LARGE, 143_667_240),
    ("vgg19_bn", 1000, LARGE, 143_678_248),
    ("resnet18", 1000, LARGE, 11_689_512),
    ("resnet18", 1000, MEDIUM, 11_689_512),
    ("resnet34", 1000, LARGE, 21_797_672),
    ("resnet50", 1000, LARGE, 25_557_032),
    ("resnet101", 1000, LARGE, 44_549_160),
    ("googlenet", 1000, LARGE, 6_624_904),
]

EMBEDDINGS = [
    ("mlp", SMALL, 128),
    ("lenet", GREY, 84),
    ("alexnet", SMALL, 3072),
    ("vgg11", SMALL, 512),
    ("vgg11", GREY, 512),
    ("resnet18", SMALL, 512),
    ("resnet18_ap", SMALL, 8192),
    ("resnet18_ap", GREY, 4608),
    ("convnet", SMALL, 2048),
    ("convnet", GREY, 2048),
    ("convnet", TINY, 2048),
    ("convnet", MEDIUM, 2048),
    ("vit", SMALL, 192),
    ("googlenet", SMALL, 1024),
    ("resnet50", SMALL, 2048),
    ("alexnet", LARGE, 4096),
    ("vgg16_bn", LARGE, 4096),
    ("resnet101", LARGE, 2048),
    ("googlenet", LARGE, 1024),
]


@pytest.mark.parametrize(("spec", "num_classes", "image_shape", "count"), COUNTS)
def test_parameter_counts_are_the_golden_ones(spec, num_classes, image_shape, count):
    assert zoo.parse(spec, num_classes, image_shape).num_params() == count


@pytest.mark.parametrize(("name", "image_shape", "size"), EMBEDDINGS)
def test_embedding_sizes(name, image_shape, size):
    _, out = architecture.shapes(zoo.create(name, 10, image_shape))
    assert out["embedding"].shape == (1, size)


def test_vit_count_in_closed_form():
    # patches + class token + positions + blocks (norms, qkv, projection, two layers) + norm + head
    width, hidden, tokens = 192, 384, 65
    block = 4 * width + 3 * width * (width + 1) + width * (width + 1) + hidden * (width + 1) + width * (hidden + 1)
    count = (4 * 4 * 3 + 1) * width + width + tokens * width + 6 * block + 2 * width + 10 * (width + 1)
    assert zoo.create("vit", 10, SMALL).num_params() == count


def test_convnet_d3_has_14_tensors():
    variables = jax.eval_shape(zoo.create("convnet", 10, SMALL).init, jax.random.key(0))
    assert set(variables) == {"params"}
    assert len(jax.tree.leaves(variables)) == 14


@pytest.mark.parametrize(("name", "convolutions"), [("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_deeper_small_vggs_add_convolutions_to_vgg11s_structure(name, convolutions):
    # Three channels, then the widths of the stages; each further convolution keeps its stage's width.
    stages = {10: (2, 2, 2, 2, 2), 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}[convolutions]
    widths = [width for width, count in zip((64, 128, 256, 512, 512), stages, strict=True) for _ in range(count)]
    count = sum((9 * a + 1) * b + 2 * b for a, b in zip([3, *widths], widths, strict=False)) + 513 * 10
    assert zoo.create(name, 10, SMALL).num_params() == count


def test_small_googlenet_is_torchvisions_but_for_the_stem():
    def parts(image_shape):
        variables = jax.eval_shape(zoo.create("googlenet", 10, image_shape).init, jax.random.key(0))
        return variables["params"]

    small, large = parts(SMALL), parts(LARGE)
    assert small["stem1"]["conv"]["kernel"].shape == (3, 3, 3, 192)
    stems = {"stem1", "stem2", "stem3"}
    assert {name: small[name] for name in small if name not in stems} == {
        name: large[name] for name in large if name not in stems
    }
