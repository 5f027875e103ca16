"""torchvision's weights, without torch: stored logits, names, layouts, files, errors."""

import json
import sys

import jax
import numpy as np
import pytest
import torchvision_reference as reference

from metadd_jax import zoo

LOGITS = json.loads(reference.FILE.read_text())
# Narrow versions of one network per family and table; vit and swin have fixed widths at this geometry.
NARROW = ["alexnet:width=2", "vgg16:width=2", "vgg19_bn:width=2", "resnet34:width=2", "resnet101:width=2"]
NARROW += ["googlenet:width=4", "vit_ti_16", "swin_t"]


def zeros(net):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(net.init, jax.random.key(0)))


def filled(net):
    """A state dict with the arrays of the formula."""
    state = zoo.torchvision.to_state(net, zeros(net))
    return {
        key: value if reference.is_count_or_index(key) else reference.array(key, value.shape)
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def resnet():
    net = zoo.parse("resnet18:width=2", 3, (128, 128, 3))
    return net, filled(net)


def test_logits_are_stored_for_every_network():
    assert set(LOGITS) == set(reference.STORED)


@pytest.mark.parametrize("name", reference.STORED)
def test_logits_are_those_of_torchvision(name):
    """The arrays depend on their keys, so a wrong name, layout or flatten order moves the logits."""
    net = zoo.create(name, reference.CLASSES, (reference.SIDE, reference.SIDE, 3))
    variables = zoo.torchvision.from_state(net, filled(net))
    logits, _ = jax.jit(net.apply)(variables, reference.images(2, reference.SIDE))
    expected = np.array(LOGITS[name])
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("spec", NARROW)
def test_there_and_back_changes_nothing_and_each_key_is_used_once(spec):
    net = zoo.parse(spec, 3, (128, 128, 3))
    state = filled(net)
    variables = zoo.torchvision.from_state(net, state)
    weights = [key for key in state if not reference.is_count_or_index(key)]
    assert len(weights) == len(jax.tree.leaves(variables))
    again = zoo.torchvision.to_state(net, variables)
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value)
        assert again[key].dtype == value.dtype


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("alexnet:width=2", {"features.0.weight": (2, 3, 11, 11), "classifier.1.weight": (128, 8 * 36)}),
        ("vgg16:width=2", {"features.28.bias": (16,), "classifier.0.weight": (128, 16 * 49)}),
        ("vgg19_bn:width=2", {"features.49.weight": (16, 16, 3, 3), "features.50.running_var": (16,)}),
        ("resnet34:width=2", {"conv1.weight": (2, 3, 7, 7), "layer3.5.bn2.bias": (8,), "fc.bias": (3,)}),
        ("resnet101:width=2", {"layer3.22.conv3.weight": (32, 8, 1, 1), "layer1.0.downsample.1.weight": (8,)}),
        ("googlenet:width=4", {"inception4e.branch3.1.conv.weight": (8, 2, 3, 3), "conv3.bn.num_batches_tracked": ()}),
        ("vit_ti_16", {"encoder.layers.encoder_layer_11.self_attention.in_proj_bias": (576,)}),
        ("swin_t", {"features.5.5.attn.relative_position_index": (2401,), "features.6.reduction.weight": (768, 1536)}),
    ],
)
def test_names_and_shapes_are_torchvisions(spec, shapes):
    net = zoo.parse(spec, 3, (128, 128, 3))
    state = zoo.torchvision.to_state(net, zeros(net))
    assert {key: state[key].shape for key in shapes} == shapes


def test_the_linear_layer_behind_a_map_counts_channels_first_there():
    net = zoo.parse("alexnet:width=2", 3, (128, 128, 3))
    state = filled(net)
    kernel = zoo.torchvision.from_state(net, state)["params"]["fc1"]["kernel"]
    weight = state["classifier.1.weight"]
    for channel, row, column, output in [(0, 0, 1, 0), (3, 2, 0, 5), (7, 5, 4, 127)]:
        assert kernel[(row * 6 + column) * 8 + channel, output] == weight[output, channel * 36 + row * 6 + column]


def test_swins_index_is_the_one_of_the_paper():
    net = zoo.create("swin_t", 3, (128, 128, 3))
    index = zoo.torchvision.to_state(net, zeros(net))["features.1.0.attn.relative_position_index"]
    pairs = [(a, b, c, d) for a in range(7) for b in range(7) for c in range(7) for d in range(7)]
    np.testing.assert_array_equal(index, [(a - c + 6) * 13 + b - d + 6 for a, b, c, d in pairs])
    assert index.dtype == np.int64


def test_known_extras_and_old_names_are_read():
    net = zoo.parse("googlenet:width=4", 3, (128, 128, 3))
    state = filled(net)
    heads = {"aux1.conv.conv.weight": np.zeros((1, 1, 1, 1)), "aux2.fc2.bias": np.zeros(3)}
    fewer = {key: value for key, value in state.items() if not reference.is_count_or_index(key)}
    zoo.torchvision.from_state(net, fewer | heads)
    net = zoo.create("vit_ti_16", 3, (128, 128, 3))
    state = filled(net)
    old = {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): state[key] for key in state}
    assert old.keys() != state.keys()
    zoo.torchvision.from_state(net, old)


def test_faults_of_a_state_dict_are_told_in_one_line(resnet):
    net, state = resnet
    bad = {key: value for key, value in state.items() if not key.startswith("layer4.1.bn")}
    bad |= {"fc.weight": np.zeros((1000, 16)), "aux1.fc.bias": np.zeros(3)}
    with pytest.raises(ValueError, match=r"\Aresnet18:width=2: .*\Z") as caught:
        zoo.torchvision.from_state(net, bad)
    text = str(caught.value)
    assert "8 keys missing (layer4.1.bn" in text and ", ...)" in text
    assert "1 keys unknown (aux1.fc.bias)" in text
    assert "1 keys of another shape (fc.weight (1000, 16) and not (3, 16))" in text
    assert text.endswith("with 3 classes")


@pytest.mark.parametrize(
    ("spec", "side", "message"),
    [
        ("resnet18:width=2", 32, "for 32x32 images is not torchvision's network; create it for at least 128 pixels"),
        ("resnet18:width=2,geometry=small", 128, "geometry=small,width=2 for 128x128 images is not torchvision's"),
        ("convnet:width=2", 128, "convnet:width=2 has no counterpart in torchvision"),
        ("resnet18_ap:width=2", 128, "resnet18_ap:width=2 has no counterpart in torchvision"),
    ],
)
def test_networks_that_are_not_torchvisions_are_refused(spec, side, message):
    net = zoo.parse(spec, 3, (side, side, 3))
    for convert in (lambda: zoo.torchvision.from_state(net, {}), lambda: zoo.torchvision.to_state(net, {})):
        with pytest.raises(ValueError, match=r"\A.*\Z") as caught:
            convert()
        assert message in str(caught.value)


def test_variables_of_another_network_are_refused(resnet):
    net, state = resnet
    variables = zoo.torchvision.from_state(net, state)
    with pytest.raises(ValueError, match=r"batch_stats\.stage1_block1\.norm1\.mean must have shape \(2,\), not \(\)"):
        zoo.torchvision.to_state(net, {"params": variables["params"]})
    wider = zoo.parse("resnet18:width=4", 3, (128, 128, 3))
    with pytest.raises(ValueError, match=r"must have shape \(4,\), not \(2,\); give the variables of this network"):
        zoo.torchvision.to_state(wider, variables)


def test_safetensors_go_both_ways(resnet, tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    net, state = resnet
    variables = zoo.torchvision.from_state(net, state)
    file = tmp_path / "weights.safetensors"
    zoo.torchvision.dump(net, variables, file)
    written = numpy_files.load_file(file)
    assert written.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(written[key], value)
    again = zoo.torchvision.load(net, file)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, variables))
    with pytest.raises(ValueError, match="exists already; choose another path or move it away"):
        zoo.torchvision.dump(net, variables, file)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"weights\.safetensors holds no state dict of arrays \(.*\); export it again"):
        zoo.torchvision.load(net, file)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(("suffix", "library"), [(".safetensors", "safetensors.numpy"), (".pth", "torch")])
def test_a_missing_library_or_file_is_told(resnet, tmp_path, monkeypatch, suffix, library):
    net, _ = resnet
    file, held = tmp_path / f"weights{suffix}", tmp_path / f"held{suffix}"
    held.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, library, None)
    for use in (lambda: zoo.torchvision.load(net, held), lambda: zoo.torchvision.dump(net, {}, file)):
        with pytest.raises(ValueError, match=rf"needs {library.split('.')[0]}; run: pip install"):
            use()
    with pytest.raises(ValueError, match="there is no file"):  # before the library is asked for
        zoo.torchvision.load(net, file)


def test_other_suffixes_are_refused(resnet, tmp_path):
    with pytest.raises(ValueError, match=r"its name must end in \.safetensors, \.pth or \.pt"):
        zoo.torchvision.load(resnet[0], tmp_path / "weights.npz")


@pytest.mark.parametrize("around", ["model", "state_dict", "module.", "both"])
def test_the_files_of_training_programs_are_read(resnet, tmp_path, around):
    """RDED's and SRe2L's teachers, DataParallel's networks: the same weights with something around them."""
    torch = pytest.importorskip("torch")
    net, state = resnet
    content = {key: torch.tensor(value) for key, value in state.items()}
    if around in ("module.", "both"):
        content = {f"module.{key}": value for key, value in content.items()}
    if around != "module.":
        name = "state_dict" if around == "both" else around
        content = {"epoch": 3, name: content, "optimizer": {"state": {}}, "best_acc1": torch.tensor(0.5)}
    torch.save(content, tmp_path / "checkpoint.pth")
    read, wanted = zoo.torchvision.load(net, tmp_path / "checkpoint.pth"), zoo.torchvision.from_state(net, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), read, wanted))
