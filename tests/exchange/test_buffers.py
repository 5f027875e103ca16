"""Replay buffers as MTT's buffer.py leaves them: lists of the parameters of PyTorch's own layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import distillers, exchange, zoo
from metadd_jax.training.trajectories import unflatten

torch = pytest.importorskip("torch")
NET = zoo.create("convnet", 3, (8, 8, 2), width=6, depth=2)


class Theirs(torch.nn.Module):
    """The ConvNet of the DC family, by PyTorch's layers."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        blocks = []
        for inputs in (2, 6):
            norm = torch.nn.GroupNorm(6, 6, affine=True)
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
            blocks += [torch.nn.Conv2d(inputs, 6, 3, padding=1), norm, torch.nn.ReLU(), torch.nn.AvgPool2d(2, 2)]
        self.features = torch.nn.Sequential(*blocks)
        self.classifier = torch.nn.Linear(6 * 2 * 2, 3)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))

    def snapshot(self):
        return [parameter.detach().clone() for parameter in self.parameters()]


def expert(seed, epochs=3):
    """The network and its snapshots, that move as if it trained."""
    net, snapshots = Theirs(seed), []
    for _ in range(epochs + 1):
        snapshots.append(net.snapshot())
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    for parameter, value in zip(net.parameters(), snapshots[-1], strict=True):
        parameter.data = value
    return net, snapshots


@pytest.fixture
def buffers(tmp_path):
    made = [expert(seed) for seed in range(5)]
    for number, part in ((0, made[:2]), (2, made[2:4]), (10, made[4:])):  # as text 10 comes before 2
        torch.save([snapshots for _, snapshots in part], tmp_path / f"replay_buffer_{number}.pt")
    return tmp_path, [net for net, _ in made]


def test_an_expert_gives_the_logits_that_pytorch_gives(buffers):
    place, nets = buffers
    x = torch.randn(4, 2, 8, 8)
    read = exchange.load_buffers(place, NET, experts=5, snapshots=2, last=True)
    assert read.shape == (5, 3, NET.num_params()) and read.dtype == np.float32
    for number, net in enumerate(nets):
        logits = jax.jit(NET.apply)(
            {"params": unflatten(NET, jnp.asarray(read[number, -1]))}, jnp.asarray(x.permute(0, 2, 3, 1))
        )
        logits = logits[0] if isinstance(logits, tuple) else logits
        np.testing.assert_allclose(logits, net(x).detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(exchange.load_buffers(place, NET, experts=2, snapshots=2), read[:2, :2])


@pytest.mark.parametrize(
    ("net", "asked", "words"),
    [
        (NET, {"experts": 6, "snapshots": 1}, "holds 5 experts, and 6 are wanted"),
        (NET, {"experts": 1, "snapshots": 5}, r"has 4 snapshots, and 5 are wanted; lower max_start_epoch"),
        (zoo.create("convnet", 3, (8, 8, 2), width=5, depth=2), {}, r"first \(6, 2, 3, 3\) and not \(5, 2, 3, 3\)"),
        (zoo.create("convnet", 4, (8, 8, 2), width=6, depth=2), {}, r"first \(3, 24\) and not \(4, 24\)"),
        (
            zoo.create("convnet", 3, (8, 8, 2), width=6, depth=2, norm="none"),
            {},
            r"first \(6,\) and not \(6, 6, 3, 3\)",
        ),
        (zoo.create("mlp", 3, (8, 8, 2)), {}, "is no ConvNet"),
    ],
)
def test_buffers_of_something_else_are_refused(buffers, net, asked, words):
    with pytest.raises(ValueError, match=words) as told:
        exchange.load_buffers(buffers[0], net, **{"experts": 1, "snapshots": 1, **asked})
    assert "\n" not in str(told.value)


def test_what_is_no_buffer_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"holds no replay_buffer_0\.pt"):
        exchange.load_buffers(tmp_path, NET, experts=1, snapshots=1)
    torch.save({"data": 1}, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match="is no list of trajectories"):
        exchange.load_buffers(tmp_path, NET, experts=1, snapshots=1)
    broken = expert(0)[1]
    broken[0][0][:] = float("nan")
    torch.save([broken], tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match="weights that are not finite"):
        exchange.load_buffers(tmp_path, NET, experts=1, snapshots=1)


def test_mtt_takes_them_in_place_of_experts_of_its_own(buffers, tmp_path):
    settings = distillers.MTT(
        experts=3,
        max_start_epoch=2,
        expert_epochs=1,
        epochs=1,
        syn_steps=2,
        buffers=str(buffers[0]),
        augmentation="none",
    )
    settings.check_prepare()  # one epoch would be too short for experts of our own
    assert settings.cached(NET, None, tmp_path) == [] and settings.prepare_flops(1.0, 10) == {}
    given = settings.prepare(NET, None, None, tmp_path, progress=lambda *_: None)
    assert given.shape == (3, 3, NET.num_params())
    assert settings.make(NET, (1, 1, 1), given).name == "mtt"
    assert "replay" not in settings.describe() and str(buffers[0]) in settings.describe()
