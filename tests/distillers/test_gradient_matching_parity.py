"""Two outer steps of DC and the inner training between them, as PyTorch computes them in float64.

The PyTorch program is written from the facts of the method alone. Its results are stored below, so that the
comparison also runs without PyTorch; with it, the stored numbers are checked too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import distillers, zoo

K, IPC, REAL, SIDE, WIDTH, INNER = 3, 2, 5, 8, 4, 2
NET = zoo.parse(f"convnet:width={WIDTH},depth=2", K, (SIDE, SIDE, 1))
# By PyTorch 2.13: losses of both steps; the images' gradient at each, its norm and three pixels; trained biases.
STORED = {
    "losses": [19.60371776, 19.208836247],
    "gradients": [
        [1.940388983, 0.11644387, -0.091838933, 0.127213479],
        [1.910010313, 0.127480278, -0.096060027, 0.117809033],
    ],
    "trained_head_bias": [0.026393102, -0.085343867, -0.230798204],
}


def draws():
    """Weights (Flax layout), real and synthetic images: RandomState's stream is frozen."""
    rng = np.random.RandomState(7)

    def uniform(*shape, bound):
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    params = {}
    for layer, channels in (("1", 1), ("2", WIDTH)):
        bound = (9 * channels) ** -0.5
        params[f"conv{layer}"] = {
            "kernel": uniform(3, 3, channels, WIDTH, bound=bound),
            "bias": uniform(WIDTH, bound=bound),
        }
        params[f"norm{layer}"] = {"scale": 1 + uniform(WIDTH, bound=0.2), "bias": uniform(WIDTH, bound=0.2)}
    features = WIDTH * (SIDE // 4) ** 2
    params["head"] = {"kernel": uniform(features, K, bound=features**-0.5), "bias": uniform(K, bound=features**-0.5)}
    real = rng.normal(size=(K, REAL, SIDE, SIDE, 1)).astype(np.float32) + np.arange(K)[:, None, None, None, None] / 2
    return params, real.astype(np.float32), rng.normal(size=(K * IPC, SIDE, SIDE, 1)).astype(np.float32)


def summary(losses, gradients, head):
    """What is stored and compared."""
    pixels = [(1, 3, 4, 0), (2, 0, 0, 0), (5, 7, 2, 0)]
    rows = [[np.linalg.norm(gradient), *(gradient[pixel] for pixel in pixels)] for gradient in gradients]
    return {"losses": list(losses), "gradients": rows, "trained_head_bias": list(head)}


@pytest.fixture(scope="module")
def ours():
    """The same by the library: matching, image update, inner training, matching."""
    params, real, images = draws()
    assert jax.tree.map(np.shape, params) == jax.tree.map(jnp.shape, NET.init(jax.random.key(0))["params"])
    method, tx = distillers.dc(NET, ipc=IPC, outer=2, inner=INNER), optax.sgd(0.1, momentum=0.5)
    batch = {"images": real, "weights": np.ones((K, REAL), np.float32), "mean": np.zeros(1), "std": np.ones(1)}
    synthetic, aux = {"images": jnp.asarray(images)}, {"network": {"params": jax.tree.map(jnp.asarray, params)}}
    opt_state = tx.init(synthetic)
    slope_of = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    losses, gradients = [], []
    for step in range(2):
        if step:
            aux = jax.jit(method.refresh)(jax.random.key(step), synthetic, aux, jnp.int32(step), ())
        (loss, (aux, _)), slope = slope_of(jax.random.key(step), synthetic, aux, batch, ())
        updates, opt_state = tx.update(slope, opt_state)
        synthetic = optax.apply_updates(synthetic, updates)
        losses.append(float(loss))
        gradients.append(np.asarray(slope["images"]))
    return {"losses": losses, "gradients": gradients, "params": aux["network"]["params"], "images": synthetic["images"]}


def close(a, b):
    """Within 1e-4 of the largest value (measured: 5e-7)."""
    return np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-4 * np.abs(np.asarray(b)).max()


def test_the_library_repeats_the_stored_numbers(ours):
    seen = summary(ours["losses"], ours["gradients"], ours["params"]["head"]["bias"])
    for name, expected in STORED.items():
        assert close(seen[name], expected), (name, seen[name])


def torch_network(torch, params):
    """The ConvNet in PyTorch's layout, float64."""

    def tensor(array):
        return torch.tensor(np.ascontiguousarray(array), dtype=torch.float64)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential()
            for channels in (1, WIDTH):
                self.blocks.append(torch.nn.Conv2d(channels, WIDTH, 3, padding=1))
                self.blocks.append(torch.nn.GroupNorm(WIDTH, WIDTH))
                self.blocks.append(torch.nn.ReLU())
                self.blocks.append(torch.nn.AvgPool2d(2))
            self.head = torch.nn.Linear(WIDTH * (SIDE // 4) ** 2, K)

        def forward(self, x):
            return self.head(self.blocks(x).flatten(1))

    net = Net().double()
    with torch.no_grad():
        for layer in (1, 2):
            conv, norm = net.blocks[4 * layer - 4], net.blocks[4 * layer - 3]
            conv.weight.copy_(tensor(params[f"conv{layer}"]["kernel"].transpose(3, 2, 0, 1)))
            conv.bias.copy_(tensor(params[f"conv{layer}"]["bias"]))
            norm.weight.copy_(tensor(params[f"norm{layer}"]["scale"]))
            norm.bias.copy_(tensor(params[f"norm{layer}"]["bias"]))
        spatial = params["head"]["kernel"].reshape(SIDE // 4, SIDE // 4, WIDTH, K)
        net.head.weight.copy_(tensor(spatial.transpose(3, 2, 0, 1).reshape(K, -1)))
        net.head.bias.copy_(tensor(params["head"]["bias"]))

    return net


def row_distance(a, b):
    total = 0
    for u, v in zip(a, b, strict=True):
        if u.dim() > 1:
            dot, norms = (u * v).flatten(1).sum(1), u.flatten(1).norm(dim=1) * v.flatten(1).norm(dim=1)
            total = total + (1 - dot / (norms + 1e-6)).sum()
    return total


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    params, real, images = draws()
    net, real, x = torch_network(torch, params), torch.tensor(real).double(), torch.tensor(images).double()
    real, x = real.permute(0, 1, 4, 2, 3), x.permute(0, 3, 1, 2).contiguous().requires_grad_()
    labels = torch.arange(K).repeat_interleave(IPC)
    entropy, weights = torch.nn.CrossEntropyLoss(), list(net.parameters())
    of_images = torch.optim.SGD([x], lr=0.1, momentum=0.5)
    losses, gradients = [], []
    for step in range(2):
        if step:
            of_net = torch.optim.SGD(weights, lr=0.01)
            for _ in range(INNER):
                of_net.zero_grad()
                entropy(net(x.detach()), labels).backward()
                of_net.step()
        loss = 0
        for c in range(K):
            target = torch.autograd.grad(entropy(net(real[c]), torch.full((REAL,), c)), weights)
            own = entropy(net(x[c * IPC : (c + 1) * IPC]), torch.full((IPC,), c))
            loss = loss + row_distance(
                [t.detach() for t in target], torch.autograd.grad(own, weights, create_graph=True)
            )
        of_images.zero_grad()
        loss.backward()
        of_images.step()
        losses.append(loss.item())
        gradients.append(x.grad.numpy().transpose(0, 2, 3, 1).copy())
    return {
        "losses": losses,
        "gradients": gradients,
        "head_bias": net.head.bias.detach().numpy(),
        "conv2_kernel": net.blocks[4].weight.detach().numpy().transpose(2, 3, 1, 0),
        "images": x.detach().numpy().transpose(0, 2, 3, 1),
    }


def test_the_library_computes_what_pytorch_computes(ours, theirs):
    assert close(ours["losses"], theirs["losses"])
    for step in range(2):
        assert close(ours["gradients"][step], theirs["gradients"][step])
    assert close(ours["images"], theirs["images"])
    assert close(ours["params"]["conv2"]["kernel"], theirs["conv2_kernel"])
    assert close(ours["params"]["head"]["bias"], theirs["head_bias"])
    # The inner training moves the weights by 2 %: the comparison sees it.
    assert not close(draws()[0]["conv2"]["kernel"], theirs["conv2_kernel"])


def test_the_stored_numbers_are_pytorchs(theirs):
    for name, expected in summary(theirs["losses"], theirs["gradients"], theirs["head_bias"]).items():
        np.testing.assert_allclose(STORED[name], expected, rtol=1e-5)
