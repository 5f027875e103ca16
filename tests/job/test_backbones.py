"""The networks that distil, as options: what is drawn, what is told of it, every mistake in one line."""

import dataclasses

import numpy as np
import pytest

from metadd_jax import data, zoo
from metadd_jax.distillers import networks
from metadd_jax.job import backbones, options, plan

COUNTS = (1,) * 3
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def dataset():
    images, labels = np.arange(6 * 64, dtype=np.uint8).reshape(6, *SHAPE), np.arange(6) % 3
    return data.from_arrays("tiny", images, labels, images, labels)


def config(**settings):
    return options.DistillConfig(backbone="convnet:width=4,depth=2", **settings)


def drawn(dataset, **settings):
    asked = config(**settings)
    backbones.check(asked)
    backbone = zoo.parse(asked.backbone, 3, SHAPE)
    return asked, backbone, backbones.draw_from(asked, backbone, dataset, COUNTS)


def test_the_backbone_alone_is_itself(dataset):
    asked, backbone, found = drawn(dataset)
    assert found == (backbone,) and backbones.facts(found, asked) == {} and not backbones.describe(found, asked)


def test_a_pool_warms_up_over_half_of_its_draws_at_most(dataset):
    asked, backbone, (pool,) = drawn(dataset, pool=("mlp:width=4",), steps=30)
    assert pool == networks.beside(backbone, [zoo.parse("mlp:width=4", 3, SHAPE)], main=0.9, warmup=15)
    assert backbones.facts((pool,), asked)["pool"] == {
        "networks": ["convnet:width=4,depth=2", "mlp:width=4"],
        "probabilities": pytest.approx([0.9, 0.1]),
        "warmup": 15,
    }
    assert backbones.describe((pool,), asked).endswith(
        "with probability 0.9, else mlp:width=4, the first 15 draws the backbone"
    )
    assert drawn(dataset, pool=("mlp:width=4",), steps=5000)[2][0].warmup == 500
    assert drawn(dataset, pool=("mlp:width=4",), pool_main=0.5, pool_warmup=0)[2][0].probabilities == (0.5, 0.5)
    # DC draws a network in ``outer`` steps alone.
    dc = config(pool=("mlp:width=4",), steps=30).with_method("dc")
    dc = dataclasses.replace(dc, own=dataclasses.replace(dc.own, outer=5))
    assert backbones.draw_from(dc, backbone, dataset, COUNTS)[0].warmup == 3


def test_convnets_stand_for_all_combinations(dataset):
    _, backbone, (pool,) = drawn(dataset, pool=("convnets:norm=instance+batch,width=4+8",), pool_main=0.2)
    assert pool.nets[0] == backbone and [net.count for net in pool.nets[1:]] == [16, 16]
    assert pool.probabilities == pytest.approx((0.2, 0.4, 0.4))


def test_matched_networks_stand_beside_the_backbone_or_its_pool(dataset):
    asked, backbone, found = drawn(dataset, pool=("convnets",), matched=("mlp:width=4",), balance="sum")
    assert [networks.as_networks(one).nets[0].label for one in found] == [backbone.label, "mlp:width=4"]
    method = backbones.make(asked, asked.own, found, COUNTS, None)
    assert method.name == "dm+pool+matched" and len(method.frozen) == 2
    assert backbones.facts(found, asked)["matched"] == ["mlp:width=4"]
    assert backbones.describe(found, asked).endswith(", matched together with mlp:width=4 (sum)")


def test_networks_that_distil_are_counted_and_not_unseen(dataset):
    _, _, found = drawn(dataset, pool=("mlp:width=4",), pool_main=0.75, matched=("mlp:width=6",))
    every = backbones.members(found)
    assert [net.label for net in every] == ["convnet:width=4,depth=2", "mlp:width=4", "mlp:width=6"]
    main, other, beside = map(plan.forward_flops, every)
    assert backbones.forward_flops(found, plan.forward_flops) == pytest.approx(0.75 * main + 0.25 * other + beside)
    backbones.check_unseen(found, [zoo.parse("mlp:width=8", 3, SHAPE)])
    for net in every[1:]:
        with pytest.raises(ValueError, match=rf"^{net.label} distils .* so it is not unseen"):
            backbones.check_unseen(found, [net])
    _, _, found = drawn(dataset, pool=("convnets",))
    with pytest.raises(ValueError, match=r"norm=batch.* distils"):
        backbones.check_unseen(found, [zoo.parse("convnet:width=4,depth=2,norm=batch", 3, SHAPE)])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pool_main": 0.5}, "--pool-main 0.5 is of a pool"),
        ({"pool_warmup": 0}, "--pool-warmup 0 is of a pool"),
        ({"balance": "sum"}, "--balance sum is of several networks"),
        ({"pool": ("mlp",), "pool_warmup": 200}, "--pool-warmup 200 leaves nothing to the pool: 200 steps draw 200"),
        ({"pool": ("mlp", "mlp")}, "listed twice in --backbone and --pool"),
        ({"matched": ("convnet:width=4,depth=2",)}, "listed twice in --backbone and --matched"),
        ({"pool": ("mpl",)}, "unknown network 'mpl'"),
        ({"pool": ("convnets", "mlp")}, "convnets stands alone"),
        ({"pool": ("convnets:width=4+x",)}, r"cannot read 'width=4\+x' in --pool"),
        ({"pool": ("convnets:size=4",)}, "cannot read 'size=4' in --pool"),
        ({"pool": ("convnets:norm=instanc",)}, "norm=instanc; choose one of"),
    ],
)
def test_a_mistake_is_one_line(dataset, settings, text):
    with pytest.raises(ValueError, match=text):
        drawn(dataset, **settings)


def test_methods_that_draw_no_networks_take_none():
    for method in ("mtt", "sre2l"):
        with pytest.raises(ValueError, match=rf"--pool goes with methods that draw .*dm, dc, dsa.*, not with {method}"):
            backbones.check(config(pool=("mlp",)).with_method(method))
