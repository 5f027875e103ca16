"""SRe2L's recovery through several teachers: CV-DD's vectors, and a PyTorch program of the same facts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from metadd_jax import distillers, training, zoo
from metadd_jax.distillers import committee

SHAPE, CLASSES = (8, 8, 3), 5
SPECS = {"convnet_bn:width=4,depth=2": 0, "convnet_bn:width=6,depth=1": 1}
STILL = {"crop": False, "flip": False, "roll": (1, 1)}
FIRST, *OTHERS = SPECS
MEAN, STD, STEPS = (0.5, 0.4, 0.45), (0.25, 0.2, 0.22), 3
START = np.random.RandomState(1).randn(CLASSES, *SHAPE).astype(np.float32)
STORED = {  # what torch_recovered gave with torch 2.13: losses, sum of |slope|, slope [3, 2, 4], image [1, 5, 6]
    "mean": (
        [3.133607, 2.174160, 1.875713], 6.4454718, [-0.00092269, -0.00609492, 0.00831389],
        [0.04928638, 0.60989094, -0.41255438],
    ),
    "prior": (
        [3.149139, 2.037064, 1.710546], 7.7447939, [-0.00037615, -0.00694029, 0.01143049],
        [0.03565276, 0.62235737, -0.41949749],
    ),
    "round_robin": (
        [3.064891, 2.893248, 2.548806], 2.5618646, [-0.00334067, -0.00235480, -0.00547465],
        [0.35816395, 0.58244389, -1.44711185],
    ),
}  # fmt: skip
WAYS = {
    "mean": {},
    "prior": {"priors": (63.0, 65.3)},
    "round_robin": {},
}


def make_teacher(spec, seed):
    """Weights and statistics from a frozen NumPy stream, so that numbers can be stored."""
    net, rng = zoo.parse(spec, CLASSES, SHAPE), np.random.RandomState(seed)
    leaves, structure = jax.tree.flatten_with_path(jax.eval_shape(net.init, jax.random.key(0)))
    values = [
        (np.exp(rng.randn(*leaf.shape)) if path[-1].key == "var" else rng.randn(*leaf.shape) / 2).astype(np.float32)
        for path, leaf in leaves
    ]
    return net, jax.tree.unflatten(structure, [jnp.asarray(value) for value in values])


@pytest.fixture(scope="module")
def teachers():
    return [make_teacher(spec, seed) for spec, seed in SPECS.items()]


def make(teachers, weighting):
    given = tuple(variables for _, variables in teachers)
    settings = {"committee": tuple(OTHERS), "weighting": weighting, **WAYS[weighting]}
    return distillers.sre2l(teachers[0][0], given, ipc=1, **STILL | settings)


def recovered(method):
    """Losses [STEPS], the first gradient, and the images after STEPS updates."""
    tx = distillers.recover_optimiser(0.25, 4, MEAN, STD)
    images = {"images": jnp.asarray(START)}
    state, losses, slopes = tx.init(images), [], []
    step = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    for number in range(STEPS):
        batch = method.sample(jax.random.key(0), None, jnp.int32(number))
        (value, _), slope = step(jax.random.key(number), images, (), batch, method.frozen)
        losses.append(float(value))
        slopes.append(np.asarray(slope["images"]))
        updates, state = tx.update(slope, state, images)
        images = optax.apply_updates(images, updates)
    return losses, slopes[0], np.asarray(images["images"])


def torch_network(torch, spec, variables, distances):
    """A teacher as PyTorch has it; its batch norms leave their distances in ``distances`` at each pass."""
    params, stats = (jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats"))
    width, depth = (int(word.split("=")[1]) for word in spec.split(":")[1].split(","))
    layers = []
    for index in range(1, depth + 1):
        conv = torch.nn.Conv2d(3 if index == 1 else width, width, 3, padding=1)
        norm = torch.nn.BatchNorm2d(width)
        conv.weight.data = torch.tensor(params[f"conv{index}"]["kernel"].transpose(3, 2, 0, 1).copy())
        conv.bias.data = torch.tensor(params[f"conv{index}"]["bias"])
        norm.weight.data, norm.bias.data = (torch.tensor(params[f"norm{index}"][name]) for name in ("scale", "bias"))
        norm.running_mean, norm.running_var = (torch.tensor(stats[f"norm{index}"][name]) for name in ("mean", "var"))
        layers += [conv, norm, torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    trunk = torch.nn.Sequential(*layers).eval().requires_grad_(False)

    def measure(norm, inputs, _):
        rows = inputs[0].transpose(0, 1).flatten(1)
        distances.append(
            (rows.var(1, unbiased=False) - norm.running_var).norm() + (rows.mean(1) - norm.running_mean).norm()
        )

    for layer in trunk:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(measure)
    kernel, bias = torch.tensor(params["head"]["kernel"]), torch.tensor(params["head"]["bias"])
    return lambda x: trunk(x).permute(0, 2, 3, 1).flatten(1) @ kernel + bias


def torch_recovered(teachers, weighting):
    torch = pytest.importorskip("torch")
    distances = []
    nets = [torch_network(torch, spec, of, distances) for spec, (_, of) in zip(SPECS, teachers, strict=True)]
    low = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1)
    high = torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1)
    x = torch.tensor(START.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
    shares = {"mean": [0.5, 0.5], "prior": torch.softmax(torch.tensor([63.0, 65.3]) / 5, 0).tolist()}
    losses = []
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = 0.25 * 0.5 * (1 + np.cos(np.pi * step / 4))
        seen, total = torch.roll(x, (1, 1), (2, 3)), 0.0
        for number, net in enumerate(nets):
            share = float(step % 2 == number) if weighting == "round_robin" else shares[weighting][number]
            distances.clear()
            entropy = torch.nn.functional.cross_entropy(net(seen), torch.arange(CLASSES))
            total = total + share * (entropy + 0.01 * (10 * distances[0] + sum(distances[1:])))
        adam.zero_grad()
        total.backward()
        losses.append(total.item())
        if step == 0:
            first = x.grad.numpy().transpose(0, 2, 3, 1).copy()
        adam.step()
        with torch.no_grad():
            x.copy_(torch.minimum(torch.maximum(x, low), high))
    return losses, first, x.detach().numpy().transpose(0, 2, 3, 1)


class OneNorm(nn.Module):
    """A batch norm, and the mean over space as logits."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x).mean((1, 2))
        return x, {"embedding": x}


def test_the_statistics_of_one_norm_are_cv_dds():
    """Channels [1, 2, 3, 6] and [0, 0, 2, 2] against mean (2, 1) and variance (4, 2) (newer_methods.md 12.6)."""
    net = zoo.Architecture("one", "one", OneNorm(), 2, (1, 2, 2))
    given = net.init(jax.random.key(0))
    given["batch_stats"] = {"norm": {"mean": jnp.array([2.0, 1.0]), "var": jnp.array([4.0, 2.0])}}
    images = jnp.array([[[[1.0, 0.0], [2.0, 0.0]]], [[[3.0, 2.0], [6.0, 2.0]]]])
    method = distillers.sre2l(net, given, ipc=1, first_multiplier=1.0, **STILL)
    _, (_, metrics) = jax.jit(method.loss)(jax.random.key(0), {"images": images}, (), (), given)
    assert float(metrics["statistics"]) == pytest.approx(2.118034, abs=1e-5)


def test_the_weights_of_two_teachers_are_cv_dds():
    vectors = [((63, 65.3), 0.386986), ((68.5, 67.6), 0.544879), ((64, 51.6), 0.922728), ((56.4, 42.3), 0.943747)]
    for priors, first in vectors:
        np.testing.assert_allclose(committee.weights("prior", priors, 2), (first, 1 - first), atol=1e-6)
    assert committee.weights("mean", (), 4) == (0.25,) * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "round_robin"}, "the backbone is alone; name others by committee"),
        ({"committee": OTHERS, "weighting": "prior"}, "weighting=prior needs priors"),
        ({"committee": OTHERS, "priors": (1.0, 2.0)}, "weighting=mean has no use for priors"),
        ({"committee": OTHERS, "weighting": "prior", "priors": (1.0,)}, "1 numbers for 2 teachers"),
        ({"committee": OTHERS, "weights": "w.pth"}, r"weights=w\.pth are of the backbone alone"),
        ({"committee": (FIRST,)}, "has a network twice"),
        ({"committee": ("mlp:width=4",)}, "mlp:width=4 has no batch-norm statistics"),
        ({"committee": ("lenett",)}, "lenett"),
        ({"committee": (*OTHERS, "convnet_bn:width=8,depth=1")}, "3 teachers need as many variables"),
    ],
)
def test_committees_that_cannot_work_are_refused(teachers, settings, message):
    given = tuple(variables for _, variables in teachers)
    settings = {**settings, "committee": tuple(settings.get("committee", ()))}
    with pytest.raises(ValueError, match=message):
        distillers.sre2l(teachers[0][0], given, ipc=1, **settings)


def test_the_others_are_trained_as_the_backbone_is(teachers, monkeypatch):
    asked = []

    def pretrain(net, dataset, recipe, **how):
        asked.append((net.label, recipe, how["split"]))
        return training.Trained(net, {"of": net.label}, 0.5, False)

    monkeypatch.setattr(training, "pretrain", pretrain)
    settings, backbone = distillers.SqueezeRecover(committee=tuple(OTHERS)), teachers[0][0]
    recipe = training.sre2l_squeeze("cifar")
    trained = training.Trained(backbone, {"of": "backbone"}, 0.9, False, "validation", recipe)
    given = settings.prepare(backbone, None, trained, None, progress=lambda *told: None)
    assert given == ({"of": "backbone"}, {"of": OTHERS[0]}) and asked == [(OTHERS[0], recipe, "validation")]
    with pytest.raises(ValueError, match="come from a file"):
        settings.prepare(backbone, None, trained._replace(recipe=None), None, progress=lambda *told: None)
    assert distillers.SqueezeRecover().prepare(backbone, None, trained, None, progress=None) == {"of": "backbone"}


def test_a_plan_counts_every_teacher_or_one_in_turn(teachers):
    backbone = teachers[0][0]
    for weighting, share in (("mean", 1.0), ("round_robin", 0.5)):
        passes = distillers.SqueezeRecover(committee=tuple(OTHERS), weighting=weighting).passes(backbone)
        assert [(net.label, times) for net, times in passes] == [(spec, share) for spec in SPECS]
    assert distillers.SqueezeRecover().passes(backbone) == ((backbone, 1.0),)


@pytest.mark.parametrize("weighting", WAYS)
def test_recovery_through_two_teachers_is_that_of_pytorch(teachers, weighting):
    own, other = recovered(make(teachers, weighting)), torch_recovered(teachers, weighting)
    for mine, theirs in zip(own, other, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("weighting", WAYS)
def test_recovery_through_two_teachers_gives_the_stored_numbers_of_pytorch(teachers, weighting):
    losses, slope, images = recovered(make(teachers, weighting))
    expected = STORED[weighting]
    np.testing.assert_allclose(losses, expected[0], rtol=1e-4)
    assert np.abs(slope).sum() == pytest.approx(expected[1], rel=1e-3)
    np.testing.assert_allclose(slope[3, 2, 4], expected[2], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(images[1, 5, 6], expected[3], rtol=1e-3)
