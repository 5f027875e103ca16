"""The works of ``benchmark.py`` as a PyTorch program, as the field writes it: a Python loop over classes and seeds.

Written from the facts of the methods. It imports neither JAX nor tyro, so its memory is PyTorch's own; the settings
come as JSON in its only argument, the measurement goes to stdout as JSON ("null" for a work that it does not have).
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import torch_augment
import torch_networks
from torch_layers import UnknownNetworkError

Step = Callable[[], Any]


def dm_loss(net: nn.Module, real: Sequence, own: Sequence, views: Sequence) -> torch.Tensor:
    """Squared distances of the mean embeddings of real and synthetic images [b, C, H, W] of each class, summed."""
    total = torch.zeros((), device=own[0].device)
    for real_images, images, view in zip(real, own, views, strict=True):
        with torch.no_grad():
            target = net.embed(view(real_images)).mean(dim=0)
        total = total + ((target - net.embed(view(images)).mean(dim=0)) ** 2).sum()
    return total


def dc_loss(net: nn.Module, real: Sequence, own: Sequence) -> torch.Tensor:
    """Row-wise cosine distances of the gradients of real and synthetic images of each class, summed."""
    params = list(net.parameters())
    total = torch.zeros((), device=own[0].device)
    for label, (real_images, images) in enumerate(zip(real, own, strict=True)):
        targets = torch.autograd.grad(_cross_entropy(net, real_images, label), params)
        gradients = torch.autograd.grad(_cross_entropy(net, images, label), params, create_graph=True)
        for target, gradient in zip(targets, gradients, strict=True):
            if gradient.dim() > 1:
                a, b = target.flatten(1), gradient.flatten(1)
                total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def _cross_entropy(net: nn.Module, images: torch.Tensor, label: int) -> torch.Tensor:
    return F.cross_entropy(net(images), torch.full((len(images),), label, device=images.device))


def mtt_loss(
    net: nn.Module,
    start: torch.Tensor,
    target: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    rate: torch.Tensor,
    views: Sequence,
) -> torch.Tensor:
    """How far the student ends from the target: one step a view from ``start`` [P], by the graph of all steps.

    Labels [N], or probabilities [N, K] that have a gradient of their own (DATM).
    """
    theta = start.clone().requires_grad_()
    for view in views:
        order = torch.randperm(len(images), device=images.device)
        logits = functional_call(net, _unflatten(net, theta), (view(images[order]),))
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels[order]), theta, create_graph=True)
        theta = theta - rate * slope
    return ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()


def _unflatten(net: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(net.named_parameters())
    pieces = vector.split([p.numel() for p in named.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}


def ncfm_loss(
    net: nn.Module, final: nn.Module, real: Sequence, own: Sequence, views: Sequence, frequencies: Sequence
) -> torch.Tensor:
    """Distances of the characteristic functions at frequencies [T, D] of each class, times 300, and cross-entropies."""
    total = torch.zeros((), device=own[0].device)
    for label, (real_images, images, view, t) in enumerate(zip(real, own, views, frequencies, strict=True)):
        with torch.no_grad():
            phi_r = _characteristic(net, view(real_images), t)
        phi_s = _characteristic(net, view(images), t)
        amplitude = (phi_r.norm(dim=0) - phi_s.norm(dim=0)) ** 2
        phase = ((phi_r - phi_s) ** 2).sum(0) - amplitude
        total = total + 300 * (0.5 * amplitude + 0.5 * phase.clamp(min=1e-12)).sqrt().mean()
        total = total + _cross_entropy(final, view(images), label)
    return total


def _characteristic(net: nn.Module, images: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    angles = F.normalize(net.embed(images).flatten(1)) @ t.T
    return torch.stack([angles.cos().mean(0), angles.sin().mean(0)])


def rded_set(net: nn.Module, real: Sequence, ipc: int, boxes: Sequence) -> list[torch.Tensor]:
    """Of each class the crops [ipc, C, H, W] that the network is surest of, of an image one: ``boxes`` of its crops."""
    chosen = []
    for label, (images, own) in enumerate(zip(real, boxes, strict=True)):
        size = images.shape[2:]
        # Crop by crop, as torchvision's transform works: the boxes differ in size.
        crops = torch.stack([
            F.interpolate(image[None, :, y : y + h, x : x + w], size, mode="bilinear", antialias=True)[0]
            for image, of_image in zip(images, own, strict=True)
            for y, x, h, w in of_image
        ])  # fmt: skip
        with torch.no_grad():
            entropy = torch.cat([-F.log_softmax(net(part), 1)[:, label] for part in crops.split(100)])
        score, best = entropy.view(len(images), -1).min(dim=1)
        first = score.argsort()[:ipc]
        chosen.append(crops.view(len(images), -1, *crops.shape[1:])[first, best[first]])
    return chosen


def sre2l_loss(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, r_bn: float = 0.01) -> torch.Tensor:
    """Cross-entropy and the distance of the statistics at the input of every batch norm from the running ones."""
    distances = []

    def look(layer: nn.Module, inputs: tuple) -> None:
        (x,) = inputs
        mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        distances.append((variance - layer.running_var).norm() + (mean - layer.running_mean).norm())

    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(look) for layer in norms]
    loss = F.cross_entropy(net(images), labels)
    for hook in hooks:
        hook.remove()
    return loss + r_bn * (10 * distances[0] + sum(distances[1:]))


def train(net: nn.Module, images: Any, labels: Any, *, epochs: int, momentum: float, decay: float, words: str) -> None:
    """SGD at 0.01 in batches of 256 (a smaller set is one batch), each under an augmentation of its own."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum, weight_decay=decay)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), device=images.device).split(256):
            view = torch_augment.draw(words, len(batch), str(images.device))
            loss = F.cross_entropy(net(view(images[batch])), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _dm(p: SimpleNamespace) -> Step:
    images, real = _images(p, p.num_classes * p.size), _real(p)
    optimiser = torch.optim.SGD([images], lr=1.0, momentum=0.5)

    def step() -> None:
        net = _network(p, p.backbone).requires_grad_(False)
        views = [torch_augment.draw(p.augmentation, 1, p.torch_device) for _ in range(p.num_classes)]
        _update(optimiser, dm_loss(net, [_draw(x, p) for x in real], images.split(p.size), views))

    return step


def _dc(p: SimpleNamespace) -> Step:
    images, real, labels = _images(p, p.num_classes * p.size), _real(p), _labels(p, p.num_classes)
    optimiser = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    nets = [_network(p, p.backbone)]

    def step() -> None:
        if p.kind == "dc":
            nets[0] = _network(p, p.backbone)
        else:
            train(nets[0], images.detach(), labels, epochs=p.inner_epochs, momentum=0.0, decay=0.0, words="none")
        _update(optimiser, dc_loss(nets[0], [_draw(x, p) for x in real], images.split(p.size)))

    return step


def _mtt(p: SimpleNamespace) -> Step:
    images, labels, net = _images(p, p.num_classes * p.size), _labels(p, p.num_classes), _network(p, p.backbone)
    start, target = (_flatten(_network(p, p.backbone)) for _ in range(2))
    rate = torch.tensor(0.01, device=p.torch_device, requires_grad=True)
    trained = [{"params": [images], "lr": 100.0}, {"params": [rate], "lr": 1e-5}]
    logits = 10 * F.one_hot(labels, p.num_classes).float()
    if p.kind == "datm":
        trained.append({"params": [logits.requires_grad_()], "lr": 2.0, "momentum": 0.9})
    optimiser = torch.optim.SGD(trained, momentum=0.5)

    def step() -> None:
        views = [torch_augment.draw(p.augmentation, len(images), p.torch_device) for _ in range(p.syn_steps)]
        target_labels = logits.softmax(1) if p.kind == "datm" else labels
        _update(optimiser, mtt_loss(net, start, target, images, target_labels, rate, views))

    return step


def _ncfm(p: SimpleNamespace) -> Step:
    images, real = _images(p, p.num_classes * p.size), _real(p)
    start, final = (_network(p, p.backbone).requires_grad_(False) for _ in range(2))
    first, last = _flatten(start), _flatten(final)
    width = start.embed(images[:1].detach()).flatten(1).shape[1]
    optimiser = torch.optim.AdamW([images], lr=0.001, weight_decay=5e-4)

    def step() -> None:
        nn.utils.vector_to_parameters(torch.lerp(last, first, torch.rand(()).item()), start.parameters())
        draws = ((torch_augment.draw(op, 1, p.torch_device) for op in ("color", "crop", "cutout")) for _ in real)
        views = [_one_after_the_other(*ops) for ops in draws]
        frequencies = [torch.randn(4096, width, device=p.torch_device) for _ in real]
        own = images.split(p.size)
        _update(optimiser, ncfm_loss(start, final, [_draw(x, p) for x in real], own, views, frequencies))

    return step


def _one_after_the_other(*ops: Any) -> Callable:
    def apply(x: torch.Tensor) -> torch.Tensor:
        for op in ops:
            x = op(x)
        return x

    return apply


def _rded(p: SimpleNamespace) -> Step:
    net, real = _network(p, p.teacher).eval(), _real(p)
    side = min(p.image_shape[:2])

    def step() -> list[torch.Tensor]:
        # Squares of 8 to 100 % of the area, five an image.
        sides = (side * torch.empty(p.num_classes, p.batch_size, 5).uniform_(0.08, 1).sqrt()).round().int().clamp(min=1)
        boxes = [
            [[(*torch.randint(0, side - n + 1, (2,)).tolist(), n, n) for n in one] for one in of_class]
            for of_class in sides.tolist()
        ]
        return rded_set(net, [_draw(x, p) for x in real], p.size, boxes)

    return step


def _sre2l(p: SimpleNamespace) -> Step:
    images, labels = _images(p, p.size), torch.arange(p.size, device=p.torch_device)
    teacher = _network(p, p.teacher, classes=p.size).eval().requires_grad_(False)
    optimiser = torch.optim.Adam([images], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1000)

    def step() -> None:
        shifts = torch.randint(0, 5, (2,)).tolist()
        _update(optimiser, sre2l_loss(teacher, images.roll(shifts, dims=(2, 3)), labels))
        schedule.step()
        with torch.no_grad():
            images.clamp_(-2.0, 2.0)

    return step


def _train(p: SimpleNamespace) -> Step:
    net = _network(p, p.network)
    images = torch.randn(p.size, *_channels_first(p), device=p.torch_device)
    labels = torch.randint(0, p.num_classes, (p.size,), device=p.torch_device)
    return lambda: train(net, images, labels, epochs=1, momentum=0.9, decay=5e-4, words="none")


def _evaluate(p: SimpleNamespace) -> Step:
    images, labels = _images(p, p.num_classes * p.size).detach(), _labels(p, p.num_classes)
    test = torch.randn(p.num_classes * p.test_per_class, *_channels_first(p), device=p.torch_device)
    truth = torch.arange(p.num_classes, device=p.torch_device).repeat_interleave(p.test_per_class)

    def step() -> list[float]:
        accuracies = []
        for _ in range(p.eval_seeds):
            net = _network(p, p.network or p.backbone)
            train(net, images, labels, epochs=p.eval_epochs, momentum=0.9, decay=5e-4, words=p.augmentation)
            net.eval()
            with torch.no_grad():
                seen = torch.cat([net(batch).argmax(dim=1) for batch in test.split(250)])
            accuracies.append(float((seen == truth).float().mean()))
        return accuracies

    return step


MAKERS = {"dm": _dm, "dc": _dc, "dc_inner": _dc, "mtt": _mtt, "mtt_kept": _mtt, "sre2l": _sre2l, "train": _train}
MAKERS |= {"datm": _mtt, "ncfm": _ncfm, "rded": _rded, "evaluate": _evaluate, "judge": _evaluate}


def _network(p: SimpleNamespace, spec: str, classes: int = 0) -> nn.Module:
    with torch.device(p.torch_device):
        return torch_networks.create(spec, classes or p.num_classes, p.image_shape)


def _flatten(net: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def _channels_first(p: SimpleNamespace) -> tuple[int, int, int]:
    height, width, channels = p.image_shape
    return channels, height, width


def _images(p: SimpleNamespace, count: int) -> torch.Tensor:
    return torch.randn(count, *_channels_first(p), device=p.torch_device, requires_grad=True)


def _labels(p: SimpleNamespace, classes: int) -> torch.Tensor:
    return torch.arange(classes, device=p.torch_device).repeat_interleave(p.size)


def _real(p: SimpleNamespace) -> list[torch.Tensor]:
    """The real images of each class, as many as the JAX program holds."""
    count = max(p.batch_size, p.size)
    return [torch.randn(count, *_channels_first(p), device=p.torch_device) for _ in range(p.num_classes)]


def _draw(images: torch.Tensor, p: SimpleNamespace) -> torch.Tensor:
    return images[torch.randperm(len(images), device=images.device)[: p.batch_size]]


def _update(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def measure(p: SimpleNamespace) -> dict[str, Any] | None:
    """Seconds of each repeat after one call that is not timed, and the peak of memory; None without such a network."""
    torch.manual_seed(0)
    try:
        step = MAKERS[p.kind](p)
        step()  # not timed; a network that is drawn anew at every step is made here first
    except UnknownNetworkError:
        return None
    seconds, on_gpu = [], p.torch_device != "cpu"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    wait()
    for _ in range(p.repeats):
        start = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - start)
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    return {
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


if __name__ == "__main__":
    print(json.dumps(measure(SimpleNamespace(**json.loads(sys.argv[1])))))
