"""IDC: a whole step against PyTorch, its optimiser against the published loop over classes, its way on real images."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest
from test_trajectory_torch import START, torch_program, wave

from metadd_jax import distillers, structs, zoo
from metadd_jax.distillers import real_training

KEY = jax.random.key(0)
NET = zoo.parse("convnet:width=3,depth=1", 2, (8, 8, 2))
# Printed by ``torch_step`` of this file (torch 2.13, float32).
STORED = {
    "loss": 0.4424722,
    "moved": [0.6465507, 1.6582112],  # of class 0 after its turn and that of class 1, of class 1 after its own
    "kernel": np.array([0.4210442, 0.1639055, -0.1632302, -0.4209414, -0.4979551, -0.3620800, -0.0712672, 0.2497883]),
}


def plain(**settings):
    """Everything that is drawn is switched off: a class gives all of its images, in one batch."""
    settings = {"batch_size": 6, "real_images": 12, "augmentation": "none", "real_augmentation": "none"} | settings
    return distillers.IDC(cutmix=0.0, **settings)


def real():
    """12 images of two classes, whose pixels are sines."""
    pixels = jnp.asarray(np.rint(127 + 100 * wave((12, 8, 8, 2), 0.7, size=1.0)).astype(np.uint8))
    train = structs.ImageArrays(
        images=pixels, labels=jnp.repeat(jnp.arange(2), 6), offsets=jnp.array([0, 6]), counts=jnp.array([6, 6]),
        mean=jnp.array([0.5, 0.4]), std=jnp.array([0.25, 0.2]), max_count=6,
    )  # fmt: skip
    return structs.Dataset("waves", train, train, None, ("a", "b"), "")


@functools.cache  # compiled once for both tests
def our_step():
    """(loss, images after the update [4, 8, 8, 2], the network's kernel after its epoch on real images)."""
    dataset, record = real(), plain()
    method, tx = record.make(NET, (2, 2)), record.optimiser(0.05, 0.5, 1, dataset)
    synthetic = {"images": jnp.asarray(wave((4, 8, 8, 2), 0.3, size=0.5))}
    aux = {"network": {"params": jax.tree.map(jnp.asarray, START)}}
    state = structs.DistillState(jnp.int32(1), synthetic, tx.init(synthetic), aux, KEY)  # 1: the network is not new
    state, metrics = jax.jit(distillers.make_update(method, tx))(state, dataset.train, ())
    return (
        float(metrics["loss"]),
        np.asarray(state.synthetic["images"]),
        np.asarray(state.aux["network"]["params"]["conv1"]["kernel"]),
    )


def torch_step():
    """The same by PyTorch: after each class its optimiser steps in pixels of [0, 1]; then one batch of real images."""
    torch, turned, network, _ = torch_program()
    F, dataset = torch.nn.functional, real()
    mean, std = (torch.tensor(np.asarray(x)).reshape(1, 2, 1, 1) for x in (dataset.train.mean, dataset.train.std))
    pixels = torch.tensor(np.asarray(dataset.train.images, np.float32).transpose(0, 3, 1, 2)) / 255
    labels = torch.tensor(np.asarray(dataset.train.labels, np.int64))
    first = torch.tensor(wave((4, 8, 8, 2), 0.3, size=0.5).transpose(0, 3, 1, 2)) * std + mean
    own = first.clone().requires_grad_(True)
    optimiser = torch.optim.SGD([own], lr=0.05, momentum=0.5)
    params, loss = [p.requires_grad_(True) for p in turned(START)], 0.0
    for label in (0, 1):
        target = torch.full((6,), label)
        cost = F.cross_entropy(network(params, (pixels[labels == label] - mean) / std), target)
        there = torch.autograd.grad(cost, params)
        cost = F.cross_entropy(network(params, (own[2 * label : 2 * label + 2] - mean) / std), target[:2])
        here = torch.autograd.grad(cost, params, create_graph=True)
        distance = sum(((a - b) ** 2).sum() for a, b in zip(there, here, strict=True) if a.dim() == 4)
        optimiser.zero_grad()
        distance.backward()
        optimiser.step()
        loss += distance.item()
    trained = torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4)
    trained.zero_grad()
    F.cross_entropy(network(params, (pixels - mean) / std), labels).backward()
    trained.step()
    images = ((own - mean) / std).detach().numpy().transpose(0, 2, 3, 1)
    return loss, images, params[0].detach().numpy().transpose(2, 3, 1, 0)


def test_the_numbers_that_pytorch_gave():
    loss, images, kernel = our_step()
    assert loss == pytest.approx(STORED["loss"], rel=1e-4)
    moved = images - wave((4, 8, 8, 2), 0.3, size=0.5)
    # A step here lasts from a class's turn to its next, so class 1 has half a step of its momentum before it.
    assert [np.linalg.norm(moved[:2]), np.linalg.norm(moved[2:]) / 1.5] == pytest.approx(STORED["moved"], rel=1e-3)
    np.testing.assert_allclose(kernel.ravel()[::7], STORED["kernel"], rtol=1e-4, atol=1e-6)


def test_pytorch_agrees():
    ours, theirs = our_step(), torch_step()
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-4, atol=1e-6)
    start = wave((4, 8, 8, 2), 0.3, size=0.5)
    # A step here lasts from a class's turn to its next: class 1 moves by half a step that PyTorch has still to do.
    scale = np.array([1, 1, 1.5, 1.5])[:, None, None, None]
    error = np.linalg.norm(ours[1] - start - scale * (theirs[1] - start)) / np.linalg.norm(theirs[1] - start)
    print(f"\nrelative error of the images' way {error:.1e}")
    assert error < 1e-3


def test_the_optimiser_is_a_step_after_each_class():
    """Against the published loop in NumPy, in pixels of [0, 1], looked at when a class's turn comes again."""
    classes, sweeps, mean, std = 3, 6, np.array([0.5, 0.4]), np.array([0.25, 0.2])
    slopes = np.random.default_rng(0).normal(size=(sweeps, classes, 2, 2, 2))  # dL/dp of each turn, an image a class
    pixels, momenta, seen = np.full((classes, 2, 2, 2), 0.5), np.zeros((classes, 2, 2, 2)), []
    for sweep in range(sweeps):
        for turn in range(classes):
            if turn == 0 and sweep:
                seen.append(pixels[0].copy())
            gradient = np.zeros_like(pixels)
            gradient[turn] = slopes[sweep, turn]
            momenta = 0.5 * momenta + gradient
            pixels = pixels - 1e-3 * momenta
    tx = distillers.idc_optimiser(1e-3, mean, std, classes=classes, momentum=0.5, every=1000)
    ours = {"images": jnp.asarray((np.full((classes, 2, 2, 2), 0.5) - mean) / std)}
    state = tx.init(ours)
    for sweep in range(sweeps - 1):
        updates, state = tx.update({"images": jnp.asarray(slopes[sweep] * std)}, state, ours)  # dL/dx = dL/dp std
        ours = {"images": ours["images"] + updates["images"]}
        np.testing.assert_allclose(ours["images"][0] * std + mean, seen[sweep], rtol=1e-5)


def test_pixels_are_clamped_with_every_new_network_and_latents_are_left_alone():
    mean, std = np.array([0.5, 0.4]), np.array([0.25, 0.2])
    tx = distillers.idc_optimiser(1.0, mean, std, classes=10, every=2)
    params = {"images": jnp.full((1, 2, 2, 2), 1.5), "latents": jnp.full((3, 5), 9.0)}
    gradient, state = jax.tree.map(lambda x: -jnp.ones_like(x), params), tx.init(params)
    for step in (1, 2):
        updates, state = tx.update(gradient, state, params)
        params = {name: params[name] + updates[name] for name in params}
        inside = np.asarray(params["images"] * std + mean)
        assert (inside.max() > 1.1) == (step == 1)
    np.testing.assert_allclose(inside, 1, rtol=1e-6)
    assert float(params["latents"].min()) > 9 + 3.9  # two steps of (1 - m^10) / (1 - m), with hardly a momentum


def test_the_network_trains_on_real_images_and_is_new_after_its_steps(tiny):
    method, tx = members.idc(None, tiny)
    state = distillers.init_state(KEY, method, tx, tiny)
    update, kernels = jax.jit(distillers.make_update(method, tx)), []
    for _ in range(6):
        state, _ = update(state, tiny.train, method.frozen)
        kernels.append(np.asarray(state.aux["network"]["params"]["conv1"]["kernel"]))
    steps = [np.abs(b - a).max() for a, b in itertools.pairwise(kernels)]
    assert min(steps) > 0
    assert steps[2] > 5 * max(steps[:2] + steps[3:])  # the fourth step has another network
    # It trains on what is real: other images of the set change nothing of it.
    fresh = distillers.init_state(KEY, method, tx, tiny)
    white = fresh.replace(synthetic={"images": jnp.ones_like(fresh.synthetic["images"])})
    after = [update(one, tiny.train, method.frozen)[0].aux["network"] for one in (fresh, white)]
    jax.tree.map(np.testing.assert_array_equal, *after)


def test_a_large_class_is_seen_by_a_random_subset():
    own = jnp.arange(2 * 5.0).reshape(2, 5, 1, 1, 1)
    counts = (5, 2)  # the last three of class 1 fill it up
    draws = [real_training._subset(jax.random.key(seed), own, None, counts, 3) for seed in range(30)]
    first = np.array([np.sort(images[0].ravel()) for images, _ in draws])
    assert all(len(set(row)) == 3 for row in first) and set(first.ravel()) == set(range(5))
    for images, share in draws:
        assert set(np.asarray(images[1, :2]).ravel()) == {5, 6}
        np.testing.assert_allclose(share, [[1 / 3] * 3, [1 / 2, 1 / 2, 0]])
    same, share = real_training._subset(KEY, own, None, counts, 5)
    assert same is own and share is None


@pytest.mark.parametrize(
    ("spec", "words"), [("convnet_bn:width=4,depth=1", "has batch norm"), ("mlp:width=4", "has no convolution")]
)
def test_networks_that_cannot_serve_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        distillers.idc(members.make_net(spec), ipc=2)


def test_whitened_images_have_no_bounds():
    with pytest.raises(ValueError, match="idc keeps pixels between 0 and 1"):
        distillers.IDC().check_pixels(zca=True)
    assert dataclasses.replace(distillers.IDC(), most=2).flops(1.0, (3, 1)) == 3 * 2 * 64 + 9 * 3 + 3 * 2000
