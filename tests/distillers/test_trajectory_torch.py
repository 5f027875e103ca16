"""One MTT step, and two updates of DATM, against a PyTorch program written from the facts and the numbers it once gave.

ConvNet of one block with 3 channels, 8x8x2 images, 2 classes with 2 images each, N = 3 steps on all images, no
augmentation. Weights and images are sines, so that the stored numbers need no random generator.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import distillers, structs, zoo
from metadd_jax.distillers.contract import LABELS as LOGITS
from metadd_jax.training.trajectories import flatten

NET = zoo.parse("convnet:width=3,depth=1", 2, (8, 8, 2))
SHAPES = {
    "conv1": {"kernel": (3, 3, 2, 3), "bias": (3,)},
    "norm1": {"scale": (3,), "bias": (3,)},
    "head": {"kernel": (48, 2), "bias": (2,)},
}
ALPHA = 0.5
# Printed by ``torch_step`` of this file (torch 2.13, float32).
STORED = {
    "loss": 8.748757,
    "alpha": 63.51449,
    "norm": 4.218518,
    "images": np.array(
        [-0.003825, 0.0526736, 0.0592631, -0.2131389, 0.0885294, 0.0622703, -0.0426339, 0.2525147, -0.2821668]
    ),
}


def wave(shape, phase, size=0.5):
    return (size * np.sin(1.7 * np.arange(np.prod(shape)) + phase)).reshape(shape).astype(np.float32)


def weights(phase):
    """Parameters in the layout of this library."""
    tree = {
        layer: {name: wave(shape, phase + 3 * i + j) for j, (name, shape) in enumerate(sorted(leaves.items()))}
        for i, (layer, leaves) in enumerate(sorted(SHAPES.items()))
    }
    tree["norm1"]["scale"] += 1
    return tree


START, TARGET = weights(0.0), jax.tree.map(lambda a, b: a + 0.1 * b, weights(0.0), weights(1.0))
IMAGES = wave((4, 8, 8, 2), 0.3, size=1.5)
LABELS = np.array([0, 0, 1, 1])


def our_step():
    """(loss, gradient of alpha, gradient of the images [4, 8, 8, 2])."""
    experts = np.stack([flatten(START), flatten(TARGET)])[None]
    method = distillers.mtt(
        NET, experts, ipc=2, syn_steps=3, expert_epochs=1, max_start_epoch=1, augmentation="none", raw_lr=True
    )
    synthetic = {"images": jnp.asarray(IMAGES), "lr": jnp.float32(ALPHA)}
    aux = {"expert": jnp.int32(0), "start": jnp.int32(0)}

    def loss(synthetic):
        return method.loss(jax.random.key(0), synthetic, aux, (), method.frozen)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(synthetic)
    return float(value), float(gradient["lr"]), np.asarray(gradient["images"])


def torch_program():
    """PyTorch, our weights in its layout, the network of its own layers, and (images, targets, alpha) -> MTT's loss."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def turned(tree):
        """Parameters in PyTorch's layout: OIHW kernels, and a classifier that reads channels first."""
        head = tree["head"]["kernel"].reshape(4, 4, 3, 2).transpose(3, 2, 0, 1).reshape(2, 48)
        arrays = [
            tree["conv1"]["kernel"].transpose(3, 2, 0, 1), tree["conv1"]["bias"],
            tree["norm1"]["scale"], tree["norm1"]["bias"], head, tree["head"]["bias"],
        ]  # fmt: skip
        return [torch.tensor(np.ascontiguousarray(array)) for array in arrays]

    def network(params, x):
        kernel, bias, scale, shift, head, head_bias = params
        x = F.conv2d(x, kernel, bias, padding=1)
        x = F.avg_pool2d(torch.relu(F.group_norm(x, 3, scale, shift, eps=1e-5)), 2)
        return F.linear(x.flatten(1), head, head_bias)

    def matched(images, targets, alpha):
        start, target = turned(START), turned(TARGET)
        params = [p.clone().requires_grad_(True) for p in start]
        for _ in range(3):
            cost = F.cross_entropy(network(params, images), targets())
            slopes = torch.autograd.grad(cost, params, create_graph=True)
            params = [p - alpha * slope for p, slope in zip(params, slopes, strict=True)]
        far = sum(((p - t) ** 2).sum() for p, t in zip(params, target, strict=True))
        near = sum(((p - t) ** 2).sum() for p, t in zip(start, target, strict=True))
        return far / near

    return torch, turned, network, matched


def torch_step():
    """The same by PyTorch's own layers, layouts and automatic differentiation."""
    torch, _, _, matched = torch_program()
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2), requires_grad=True)
    alpha = torch.tensor(ALPHA, requires_grad=True)
    loss = matched(images, lambda: torch.tensor(LABELS), alpha)
    loss.backward()
    return loss.item(), alpha.grad.item(), images.grad.numpy().transpose(0, 2, 3, 1)


def picked(images):
    return np.asarray(images).ravel()[::61]


def test_the_numbers_that_pytorch_gave():
    loss, alpha, images = our_step()
    assert loss == pytest.approx(STORED["loss"], rel=1e-4)
    assert alpha == pytest.approx(STORED["alpha"], rel=1e-3)
    np.testing.assert_allclose(picked(images), STORED["images"], rtol=1e-3, atol=1e-3 * np.abs(STORED["images"]).max())
    assert np.linalg.norm(images) == pytest.approx(STORED["norm"], rel=1e-3)


def test_pytorch_agrees():
    ours, theirs = our_step(), torch_step()
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-3)
    error = np.linalg.norm(ours[2] - theirs[2]) / np.linalg.norm(theirs[2])
    print(f"\nrelative error of the images' gradient {error:.1e}")
    assert error < 1e-3


IMAGE_LR, LABEL_LR, LR_LR = 0.02, 0.3, 1e-4
FIRST_LOGITS = wave((4, 2), 0.9, size=2.0)
# Printed by ``torch_updates`` of this file (torch 2.13, float32).
STORED_DATM = {
    "losses": [9.1239443, 7.4629903],
    "logits": [0.4781668, 2.1194904, -2.2676804, -0.1234826, 1.4533535, 0.5725338, -2.1164126, 0.5903267],
    "alpha": 0.48796034,
    "moved": 0.06392661,
}


@functools.cache  # compiled once for both tests
def our_updates():
    """(losses of two updates, logits, alpha, images) after two updates of DATM and its optimiser."""
    experts = np.stack([flatten(START), flatten(TARGET)])[None]
    record = distillers.DATM(
        syn_steps=3, expert_epochs=1, max_start_epoch=1, augmentation="none", raw_lr=True, threshold=100.0,
        lr_labels=LABEL_LR, lr_lr=LR_LR,
    )  # fmt: skip
    method, tx = record.make(NET, (2, 2), experts), record.optimiser(IMAGE_LR, 0.5, 2, None)
    synthetic = {"images": jnp.asarray(IMAGES), "lr": jnp.float32(ALPHA), LOGITS: jnp.asarray(FIRST_LOGITS)}
    aux = {"order_key": jax.random.key(1), "expert": jnp.int32(0), "start": jnp.int32(0)}
    state = structs.DistillState(jnp.int32(0), synthetic, tx.init(synthetic), aux, jax.random.key(2))
    update, losses = jax.jit(distillers.make_update(method, tx)), []
    for _ in range(2):
        state, metrics = update(state, None, method.frozen)
        losses.append(float(metrics["loss"]))
    made = state.synthetic
    return losses, np.asarray(made[LOGITS]), float(made["lr"]), np.asarray(made["images"])


def torch_updates():
    """The same by PyTorch, with three of its optimisers."""
    torch, _, _, matched = torch_program()
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2), requires_grad=True)
    alpha, logits = torch.tensor(ALPHA, requires_grad=True), torch.tensor(FIRST_LOGITS, requires_grad=True)
    optimisers = [
        torch.optim.SGD([images], lr=IMAGE_LR, momentum=0.5), torch.optim.SGD([alpha], lr=LR_LR, momentum=0.5),
        torch.optim.SGD([logits], lr=LABEL_LR, momentum=0.9),
    ]  # fmt: skip
    losses = []
    for _ in range(2):
        for one in optimisers:
            one.zero_grad()
        loss = matched(images, lambda: torch.softmax(logits, dim=1), alpha)
        loss.backward()
        for one in optimisers:
            one.step()
        losses.append(loss.item())
    return losses, logits.detach().numpy(), alpha.item(), images.detach().numpy().transpose(0, 2, 3, 1)


def test_the_updates_of_datm_that_pytorch_gave():
    losses, logits, alpha, images = our_updates()
    np.testing.assert_allclose(losses, STORED_DATM["losses"], rtol=1e-4)
    np.testing.assert_allclose(logits.ravel(), STORED_DATM["logits"], rtol=1e-4, atol=1e-4)
    assert alpha == pytest.approx(STORED_DATM["alpha"], rel=1e-5)
    assert np.linalg.norm(images - IMAGES) == pytest.approx(STORED_DATM["moved"], rel=1e-3)


def test_pytorch_agrees_on_datm():
    ours, theirs = our_updates(), torch_updates()
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5)
    errors = []
    for own, other, start in ((ours[1], theirs[1], FIRST_LOGITS), (ours[3], theirs[3], IMAGES)):
        # Of the way and not of the place, which the start would make look alike.
        errors.append(np.linalg.norm(own - other) / np.linalg.norm(other - start))
    print(f"\nrelative error of the way of labels {errors[0]:.1e}, images {errors[1]:.1e}")
    assert max(errors) < 1e-3
