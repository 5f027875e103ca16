"""The PyTorch program beside the benchmark computes what the library computes: same weights, same images, no draw."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import augment, distillers, keys, training, transforms, zoo

torch = pytest.importorskip("torch")
import torch_augment  # noqa: E402
import torch_networks  # noqa: E402
import torch_reference  # noqa: E402

K, IPC, REAL, SIDE = 3, 2, 5, 8
SPEC = "convnet:width=4,depth=1"
NET = zoo.parse(SPEC, K, (SIDE, SIDE, 1))
# A network, the images' side, and the Linear layer that sees a flattened map with that map's channels.
NETWORKS = [
    ("mlp", 8, {"fc1": 3}),
    ("lenet", 16, {"fc1": 16}),
    ("convnet:width=4", 8, {"head": 4}),
    ("convnet_bn:width=4,depth=1", 8, {"head": 4}),
    ("alexnet:width=8", 8, {"head": 12}),
    ("vgg11:width=4", 32, {}),
    ("resnet18_bn:width=4", 8, {}),
    ("resnet50:width=4", 16, {}),
    ("googlenet:width=8", 8, {}),
    ("vit:width=12,depth=2", 8, {}),
    ("swin_t:width=6,depths=2-1", 7, {}),
]
NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def random_variables(net, seed=0):
    """Weights with scales and biases that are not 1 and 0."""
    rng = np.random.default_rng(seed)
    drawn = jax.device_get(net.init(jax.random.key(seed)))
    return jax.tree.map(lambda x: x + np.float32(0.1) * rng.random(x.shape, np.float32), drawn)


def module_of(spec, net, variables, flattened):
    """The PyTorch network with the zoo's weights, every one of them."""
    module = torch_networks.create(spec, net.num_classes, net.image_shape)
    state = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *layers, name = (part.key for part in path)
        array = np.asarray(leaf)
        if name == "kernel" and layers[-1] in flattened:
            array = array.reshape(-1, flattened[layers[-1]], array.shape[1]).swapaxes(0, 1).reshape(array.shape)
        if name == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        state[".".join([*layers, NAMES.get(name, name)])] = torch.tensor(array.copy())
    module.load_state_dict(state)
    return module


def channels_first(images):
    return torch.tensor(np.moveaxis(np.asarray(images), -1, -3).copy())


def deviation(ours, theirs):
    """The largest difference, as a share of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return np.abs(ours - theirs).max() / np.abs(ours).max()


@pytest.mark.parametrize(("spec", "side", "flattened"), NETWORKS, ids=lambda value: str(value).partition(":")[0])
def test_the_networks_are_the_zoos(spec, side, flattened):
    net = zoo.parse(spec, K, (side, side, 3))
    variables = random_variables(net)
    images = np.random.default_rng(1).standard_normal((2, side, side, 3), np.float32)
    module = module_of(spec, net, variables, flattened).eval()
    assert deviation(jax.jit(net.apply)(variables, images)[0], module(channels_first(images)).detach()) < 1e-4


@pytest.mark.parametrize("spec", ["resnet18_bn_ap", "convnet:norm=layer", "vit:norm=batch"])
def test_a_network_without_a_pytorch_form_is_not_measured(spec):
    settings = {"kind": "train", "network": spec, "num_classes": 10, "image_shape": (32, 32, 3), "torch_device": "cpu"}
    assert torch_reference.measure(types.SimpleNamespace(**settings)) is None


def test_nor_is_a_step_that_draws_such_a_network():
    settings = {"kind": "dm", "backbone": "convnet:compute=bfloat16", "num_classes": 2, "image_shape": (8, 8, 3)}
    settings |= {"size": 1, "batch_size": 1, "augmentation": "none", "torch_device": "cpu", "repeats": 1}
    assert torch_reference.measure(types.SimpleNamespace(**settings)) is None


@pytest.fixture(scope="module")
def images():
    """Real images [K, REAL, ...] and a set [K * IPC, ...]."""
    rng = np.random.default_rng(2)
    real = (
        rng.standard_normal((K, REAL, SIDE, SIDE, 1), np.float32)
        + np.arange(K, dtype=np.float32)[:, None, None, None, None]
    )
    return real, rng.standard_normal((K * IPC, SIDE, SIDE, 1), np.float32)


def compare(method, key, synthetic, aux, batch, frozen, theirs, own):
    """Loss and gradient to the images; ``own`` are the images in PyTorch."""
    slope_of = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    (loss, _), gradient = slope_of(key, synthetic, aux, batch, frozen)
    theirs.backward()
    assert deviation(loss, theirs.detach()) < 1e-4
    assert deviation(np.moveaxis(np.asarray(gradient["images"]), -1, 1), own.grad) < 1e-3
    return gradient


def real_batch(real):
    return {"images": jnp.asarray(real), "weights": jnp.ones((K, REAL)), "mean": jnp.zeros(1), "std": jnp.ones(1)}


def test_dm_is_the_librarys(key, images):
    real, own = images
    module = module_of(SPEC, NET, NET.init(keys.named(key, "network")), {"head": 4})  # the network that dm draws
    theirs = channels_first(own).requires_grad_()
    loss = torch_reference.dm_loss(module, channels_first(real), theirs.split(IPC), [lambda x: x] * K)
    method = distillers.dm(NET, ipc=IPC, batch_size=REAL, augmentation="none")
    compare(method, key, {"images": jnp.asarray(own)}, (), real_batch(real), (), loss, theirs)


def test_dc_is_the_librarys(key, images):
    real, own = images
    variables = random_variables(NET)
    module, theirs = module_of(SPEC, NET, variables, {"head": 4}), channels_first(own).requires_grad_()
    loss = torch_reference.dc_loss(module, channels_first(real), theirs.split(IPC))
    method = distillers.dc(NET, ipc=IPC, batch_size=REAL)
    compare(method, key, {"images": jnp.asarray(own)}, {"network": variables}, real_batch(real), (), loss, theirs)


def test_mtt_is_the_librarys(key, images):
    own = images[1]
    snapshots = [random_variables(NET, seed)["params"] for seed in range(2)]
    start, target = (
        torch_reference._flatten(module_of(SPEC, NET, {"params": params}, {"head": 4})) for params in snapshots
    )
    theirs, rate = channels_first(own).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    labels, views = torch.arange(K).repeat_interleave(IPC), [lambda x: x] * 3
    net = torch_networks.create(SPEC, K, NET.image_shape)
    loss = torch_reference.mtt_loss(net, start, target, theirs, labels, rate, views)
    experts = jnp.stack([training.trajectories.flatten(params) for params in snapshots])[None]
    settings = {"syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 1, "raw_lr": True, "augmentation": "none"}
    method = distillers.mtt(NET, experts, ipc=IPC, **settings)
    synthetic = {"images": jnp.asarray(own), "lr": jnp.float32(0.1)}
    aux = {"expert": jnp.int32(0), "start": jnp.int32(0)}
    gradient = compare(method, key, synthetic, aux, (), method.frozen, loss, theirs)
    assert deviation(gradient["lr"], rate.grad) < 1e-3


def test_datm_is_the_librarys(key, images):
    """MTT's student on labels that are trained: their gradient too."""
    own = images[1]
    snapshots = [random_variables(NET, seed)["params"] for seed in range(2)]
    start, target = (
        torch_reference._flatten(module_of(SPEC, NET, {"params": params}, {"head": 4})) for params in snapshots
    )
    label_logits = np.random.default_rng(5).standard_normal((K * IPC, K), np.float32)
    theirs, soft = channels_first(own).requires_grad_(), torch.tensor(label_logits, requires_grad=True)
    net = torch_networks.create(SPEC, K, NET.image_shape)
    views = [lambda x: x] * 3
    loss = torch_reference.mtt_loss(net, start, target, theirs, soft.softmax(1), torch.tensor(0.1), views)
    experts = jnp.stack([training.trajectories.flatten(params) for params in snapshots])[None]
    settings = {"syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 1, "raw_lr": True, "augmentation": "none"}
    method = distillers.datm(NET, experts, ipc=IPC, threshold=1e9, **settings)
    synthetic = {"images": jnp.asarray(own), "lr": jnp.float32(0.1), "label_logits": jnp.asarray(label_logits)}
    aux = {"expert": jnp.int32(0), "start": jnp.int32(0)}
    gradient = compare(method, key, synthetic, aux, (), method.frozen, loss, theirs)
    assert deviation(gradient["label_logits"], soft.grad) < 1e-3


def test_ncfm_is_the_librarys(key, images):
    real, own = images
    ends = [random_variables(NET, seed) for seed in range(2)]
    pool = jnp.stack([training.trajectories.flatten(variables["params"]) for variables in ends])[None]
    settings = distillers.NCFM(batch_size=REAL, frequencies=7, augmentation="none")
    method = distillers.ncfm(NET, pool, ipc=IPC, settings=settings)
    start, final = (module_of(SPEC, NET, variables, {"head": 4}) for variables in ends)
    share, width = 0.25, NET.embedding_size
    first, last = torch_reference._flatten(start), torch_reference._flatten(final)
    torch.nn.utils.vector_to_parameters(torch.lerp(last, first, share), start.parameters())
    drawn = [jax.random.normal(one, (7, width)) for one in jax.random.split(keys.named(key, "frequencies"), K)]
    theirs, views = channels_first(own).requires_grad_(), [lambda x: x] * K
    # A map of 4 x 4 x 4 numbers, channels last or first.
    frequencies = [channels_first(t.reshape(7, 4, 4, 4)).flatten(1) for t in drawn]
    loss = torch_reference.ncfm_loss(start, final, channels_first(real), theirs.split(IPC), views, frequencies)
    aux = {"network": jnp.int32(0), "share": jnp.float32(share)}
    compare(method, key, {"images": jnp.asarray(own)}, aux, real_batch(real), method.frozen, loss, theirs)


def test_rded_chooses_what_the_library_chooses(images):
    """The same boxes of the same images: crops by the library's transform, scores in NumPy."""
    real = images[0]
    variables = random_variables(NET)
    boxes = np.random.default_rng(6).integers([0, 0, 3, 0], [2, 2, 7, 1], (K, REAL, 2, 4))
    boxes[..., 3] = boxes[..., 2]  # squares
    module = module_of(SPEC, NET, variables, {"head": 4})
    found = torch_reference.rded_set(module, channels_first(real), IPC, boxes.tolist())
    for label in range(K):
        own = transforms.Box(*(jnp.asarray(boxes[label, ..., i]) for i in range(4)))
        crops = jax.vmap(lambda x, box: transforms.resized_crop_to(x, box, (SIDE, SIDE)))(real[label], own)
        logits = np.asarray(NET.apply(variables, crops.reshape(-1, SIDE, SIDE, 1))[0], np.float64)
        scores = (np.log(np.exp(logits).sum(1)) - logits[:, label]).reshape(REAL, 2)
        best = np.argsort(scores.min(axis=1))[:IPC]
        expected = np.asarray(crops)[best, scores.argmin(axis=1)[best]]
        assert deviation(expected, np.moveaxis(found[label].numpy(), 1, -1)) < 1e-4


def test_sre2l_is_the_librarys(key):
    spec = "convnet_bn:width=4,depth=2"
    net = zoo.parse(spec, K, (SIDE, SIDE, 1))
    variables, own = random_variables(net), np.random.default_rng(3).standard_normal((K, SIDE, SIDE, 1), np.float32)
    module, theirs = module_of(spec, net, variables, {"head": 4}).eval(), channels_first(own).requires_grad_()
    loss = torch_reference.sre2l_loss(module, theirs, torch.arange(K))
    method = distillers.sre2l(net, variables, ipc=1, crop=False, flip=False, roll=(0, 0))
    compare(method, key, {"images": jnp.asarray(own)}, (), (), method.frozen, loss, theirs)


def test_a_training_step_is_the_librarys(key, images):
    own, labels = images[1], np.repeat(np.arange(K), IPC)
    variables = random_variables(NET)
    module = module_of(SPEC, NET, variables, {"head": 4})
    settings = {"epochs": 2, "momentum": 0.9, "decay": 5e-4, "words": "none"}
    torch_reference.train(module, channels_first(own), torch.tensor(labels), **settings)
    recipe = training.Recipe(epochs=2, batch_size=len(own))
    trained = jax.jit(lambda v, x: training.fit(key, NET, x, jnp.asarray(labels), recipe, shared_key=key, variables=v))
    expected = module_of(SPEC, NET, trained(variables, own), {"head": 4})
    for (name, ours), theirs in zip(expected.named_parameters(), module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("token", torch_augment._OPS)
def test_the_ops_are_the_librarys(monkeypatch, token, count):
    # Every random number is 0.3, from which both sides know the parameters.
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.full(shape, 0.3))
    x = np.random.default_rng(4).standard_normal((5, SIDE, SIDE, 3), np.float32)
    stretch = 1 / 1.2 + 0.3 * (1.2 - 1 / 1.2)
    expected = {
        "color": lambda: augment.contrast(augment.saturation(augment.brightness(x, -0.2), 0.6), 0.8),
        "flip": lambda: x[:, :, ::-1],
        "crop": lambda: augment.crop(x, -1, -1),
        "cutout": lambda: augment.cutout(x, 2, 2, (4, 4)),
        "scale": lambda: augment.scale(x, stretch, stretch),
        "rotate": lambda: augment.rotate(x, math.radians(-6)),
    }[token]()
    seen = torch_augment.draw(token, count, "cpu")(channels_first(x))
    assert deviation(expected, np.moveaxis(seen.numpy(), 1, -1)) < 1e-4
