"""The zoo at ImageNet geometry against torchvision itself; skipped where torch or torchvision is missing.

All of it, with the table of the largest deviations: pytest -m "slow or not slow" on this file.

Gradients are compared in float64. In float32 they jump where rounding puts one ReLU or max pool on the other side of
its kink, in either library: by up to 5e-2 of the largest value. The table has the float32 deviation too.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_reference as reference

from metadd_jax import zoo

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

CLASSES = 10
# Below 224 pixels AlexNet and VGG average their last map up to the size that their head wants.
QUICK = [
    ("alexnet", 128),
    ("resnet18", 160),
    ("vgg11_bn", 128),
    ("googlenet:transform_input=True", 160),
]
SLOW = [
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "googlenet", "vit_b_16", "swin_t", "swin_s", "swin_b"),
]
CASES = [*QUICK, *(pytest.param(name, 224, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module")
def table(request):
    """Rows of deviations; printed when the file's last test has run."""
    rows = []
    yield rows
    lines = [
        "",
        "| network | side | logits | input gradient, float64 | input gradient, float32 |",
        "|---|---|---|---|---|",
    ]
    for name, side, *deviations in rows:
        lines.append(f"| {name} | {side} | " + " | ".join(f"{value:.1e}" for value in deviations) + " |")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def deviation(ours, theirs):
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def build(spec, side):
    """Both networks with the same weights."""
    net = zoo.parse(spec, CLASSES, (side, side, 3))
    settings = {"transform_input": True} if "transform_input" in spec else {}
    model = reference.torchvision_network(net.name, CLASSES, side, **settings)
    variables = zoo.torchvision.from_state(net, {key: value.numpy() for key, value in model.state_dict().items()})
    return net, variables, model


def theirs(model, images, weights):
    """Logits, and the gradient in the images of their sum weighted by ``weights``; in the type of the images."""
    model = model.to(torch.from_numpy(images).dtype)
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    logits = model(pictures)
    (logits * torch.from_numpy(weights)).sum().backward()
    return logits.detach().numpy(), pictures.grad.permute(0, 2, 3, 1).numpy()


def ours(net, variables, images, weights):
    def score(images, variables):
        logits, _ = net.apply(variables, images)
        return (logits * weights).sum(), logits

    gradient, logits = jax.jit(jax.grad(score, has_aux=True))(images, variables)
    return logits, gradient


@pytest.mark.parametrize(("spec", "side"), CASES)
def test_logits_and_input_gradients_equal(spec, side, table):
    net, variables, model = build(spec, side)
    images, weights = reference.images(2, side), reference.uniform("weights", (2, CLASSES)) - np.float32(0.5)
    expected_logits, expected_gradient = theirs(model, images, weights)
    logits, gradient = ours(net, variables, images, weights)
    with jax.enable_x64(True):
        double = [np.asarray(array, np.float64) for array in (images, weights)]
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        exact_logits, exact_gradient = theirs(model, *double)
        logits64, gradient64 = ours(net, variables, *double)
        assert gradient64.dtype == jnp.float64
    row = deviation(logits, expected_logits), deviation(gradient64, exact_gradient)
    table.append((net.label, side, *row, deviation(gradient, expected_gradient)))
    assert np.std(exact_logits, axis=0).max() > 1e-3 * np.abs(exact_logits).max()  # images are told apart
    assert deviation(logits64, exact_logits) < 1e-6
    assert row[0] < 1e-3
    assert row[1] < 1e-6


@pytest.mark.parametrize("name", ["resnet18", pytest.param("googlenet", marks=pytest.mark.slow)])
def test_training_equals_but_for_the_bias_of_the_running_variance(name):
    """PyTorch adds the unbiased variance of the batch, Flax (and so this library) the biased one."""
    net, variables, model = build(name, 128)
    images = reference.images(4, 128)
    before = {key: value.clone().numpy() for key, value in model.state_dict().items()}
    counts = {}
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, key=key: counts.update({key: inputs[0].numel() // inputs[0].shape[1]})
            )
    model.train()
    model.dropout = torch.nn.Identity()  # of googlenet
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    after = {key: value.numpy() for key, value in model.state_dict().items()}
    logits, _, statistics = jax.jit(net.apply_train)(variables, images)
    assert deviation(logits, expected) < 1e-3
    state = zoo.torchvision.to_state(net, {"params": variables["params"], "batch_stats": statistics})
    assert len(counts) > 10
    for layer, count in counts.items():
        mean, variance = f"{layer}.running_mean", f"{layer}.running_var"
        np.testing.assert_allclose(state[mean], after[mean], rtol=1e-3, atol=1e-3 * np.abs(after[mean]).max())
        added = (after[variance] - 0.9 * before[variance]) * (count - 1) / count
        np.testing.assert_allclose(state[variance], 0.9 * before[variance] + added, rtol=2e-3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_go_both_ways(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    net, variables, model = build("resnet18", 224)
    file = tmp_path / f"weights{suffix}"
    zoo.torchvision.dump(net, variables, file)
    if suffix == ".pth":
        state = torch.load(file, weights_only=True)
    else:
        import safetensors.torch

        state = safetensors.torch.load_file(file)
    expected = model.state_dict()
    model.load_state_dict(state, strict=True)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    again = zoo.torchvision.load(net, file)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, variables))


def test_googlenets_auxiliary_heads_are_ignored():
    import torchvision

    state = torchvision.models.googlenet(weights=None, num_classes=CLASSES, init_weights=False).state_dict()
    assert any(key.startswith("aux1.") for key in state)
    net = zoo.create("googlenet", CLASSES, (224, 224, 3))
    variables = zoo.torchvision.from_state(net, {key: value.numpy() for key, value in state.items()})
    written = set(zoo.torchvision.to_state(net, variables))
    assert written == {key for key in state if not key.startswith("aux")}
