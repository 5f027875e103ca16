"""docs/cams.md says where each network's map is taken and how fine it is: held to the code."""

import pathlib

import pytest

from metadd_jax import zoo

DOC = pathlib.Path(__file__).parents[1] / "docs" / "cams.md"
SHAPES = ((28, 28, 1), (32, 32, 3), (64, 64, 3), (224, 224, 3))
# The rows of the table, and the networks whose maps are as large as theirs.
LIKE = {
    "lenet": (),
    "convnet": ("convnet_bn",),
    "alexnet": ("alexnet_bn",),
    "vgg11": ("vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    "resnet18": ("resnet34", "resnet50", "resnet101", "resnet18_bn"),
    "resnet18_ap": ("resnet18_bn_ap",),
    "googlenet": (),
    "vit": (),
    "vit_b_16": ("vit_ti_16", "vit_s_16"),
    "swin_t": ("swin_s", "swin_b"),
}


def sides(name: str) -> list[tuple[int, int]]:
    return [zoo.create(name, 10, shape).map_shape[:2] for shape in SHAPES]


@pytest.mark.parametrize("name", LIKE)
def test_the_resolutions_are_those_of_the_code(name):
    found = sides(name)
    assert min(min(size) for size in found) >= 4
    row = f"| {name} | " + " | ".join(f"{height}x{width}" for height, width in found) + " |"
    assert row in DOC.read_text(), f"docs/cams.md should have: {row}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), [(name, row) for row, names in LIKE.items() for name in names])
def test_the_others_are_like_their_row(name, row):
    # At ImageNet geometry alexnet_bn and resnet18_bn stay the field's networks, so 224 is left out.
    assert sides(name)[:3] == sides(row)[:3]


def test_every_network_with_a_map_has_a_row():
    assert {*LIKE, *(name for names in LIKE.values() for name in names), "mlp"} == set(zoo.names())
