"""Files as the programs of DC's, MTT's and IDC's lines and DD-Ranking's users write them, by torch.save alone."""

import dataclasses

import numpy as np
import pytest
from peer_data import LABELS, MEAN, NAMES, ORDER, STD, images, ours, real

from metadd_jax import exchange, structs
from metadd_jax.exchange import ddranking

torch = pytest.importorskip("torch")


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.tensor(value) if isinstance(value, np.ndarray) else value, path)
    return path


def settle(place, **options):
    (peer,) = exchange.load_peer(place)
    return exchange.settle(peer, real(whitened=options.get("space") == "zca"), **options)


def test_each_run_of_a_file_of_dc_is_a_set(tmp_path):
    runs = [images(), images()]
    data = [[torch.tensor(run), torch.tensor(LABELS)] for run in runs]
    accuracies = {"ConvNet": [np.float64(0.5)] * 3}
    save(tmp_path / "res_DM_X_ConvNet_2ipc.pt", {"data": data, "accs_all_exps": accuracies})
    peers = exchange.load_peer(tmp_path / "res_DM_X_ConvNet_2ipc.pt")
    assert [peer.format for peer in peers] == ["dc", "dc"]
    for peer, run in zip(peers, runs, strict=True):
        synthetic, facts = exchange.settle(peer, real(), space="standardised")
        np.testing.assert_array_equal(synthetic.images, ours(run))
        np.testing.assert_array_equal(synthetic.labels, LABELS[ORDER])
        assert facts["constants"] == "caller" and facts["value_space"] == "standardised"


def test_the_one_pair_of_datadam_is_a_set(tmp_path):
    one = images()
    save(tmp_path / "syn_data.pt", {"data": [torch.tensor(one), torch.tensor(LABELS)]})
    synthetic, _ = settle(tmp_path / "syn_data.pt", space="standardised")
    np.testing.assert_array_equal(synthetic.images, ours(one))


def test_nobody_guesses_the_value_space(tmp_path):
    save(tmp_path / "images_best.pt", images())
    save(tmp_path / "labels_best.pt", LABELS)
    with pytest.raises(
        ValueError, match=r"does not say how its numbers were scaled .*--space standardised, zca, zca_frepo or pix"
    ):
        settle(tmp_path / "images_best.pt")
    with pytest.raises(ValueError, match="--space normal is unknown; use pixels, standardised, zca"):
        settle(tmp_path / "images_best.pt", space="normal")


@pytest.mark.parametrize("space", ["standardised", "zca"])
def test_mtts_tensors_are_taken_as_they_are_in_training_space(tmp_path, space):
    one = images()
    save(tmp_path / "images_best.pt", torch.tensor(one, requires_grad=True))
    save(tmp_path / "labels_best.pt", LABELS)
    synthetic, facts = settle(tmp_path, space=space)
    np.testing.assert_array_equal(synthetic.images, ours(one))
    assert facts["value_space"] == space and synthetic.learning_rate is None
    assert ("zca_inverse" in facts) == (space == "zca")
    told, _ = settle(tmp_path, space=space, learning_rate=0.03)
    assert float(told.learning_rate) == pytest.approx(0.03)


def test_pixels_are_standardised_by_the_data(tmp_path):
    """The same pixels by NumPy alone: as they are, and from the constants of ImageNet."""
    unit = np.random.default_rng(3).uniform(size=(6, 3, 4, 6)).astype(np.float32)
    wanted = (ours(unit) - np.array(MEAN)) / np.array(STD)
    save(tmp_path / "labels_best.pt", LABELS)
    save(tmp_path / "images_best.pt", unit)
    np.testing.assert_allclose(settle(tmp_path, space="pixels")[0].images, wanted, rtol=1e-5, atol=1e-6)
    imagenet = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)[..., None, None]
    save(tmp_path / "images_best.pt", (unit - imagenet[0]) / imagenet[1])
    synthetic, _ = settle(tmp_path, space="standardised:imagenet")
    np.testing.assert_allclose(synthetic.images, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="--space standardised:imagenett is unknown"):
        settle(tmp_path, space="standardised:imagenett")


def test_what_mtt_turns_back_from_whitening_is_pixels(tmp_path):
    unit = np.random.default_rng(3).uniform(size=(6, 3, 4, 6)).astype(np.float32)
    save(tmp_path / "images_zca_5000.pt", unit)
    save(tmp_path / "labels_5000.pt", LABELS)
    (peer,) = exchange.load_peer(tmp_path / "images_zca_5000.pt")
    assert peer.space == "pixels" and "turned back into pixels" in peer.notes[0]
    synthetic, _ = exchange.settle(peer, real())
    np.testing.assert_allclose(synthetic.images, (ours(unit) - MEAN) / STD, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"holds pixels in \[0, 1\] by its format, not zca; leave --space out"):
        settle(tmp_path / "images_zca_5000.pt", space="zca")


def test_datms_logits_and_step_size_come_with_their_images(tmp_path):
    logits = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32) * 3
    one = images()
    save(tmp_path / "images_best.pt", one)
    save(tmp_path / "labels_best.pt", logits)
    save(tmp_path / "lr_best.pt", torch.tensor(0.0163))
    synthetic, _ = settle(tmp_path, space="zca")
    wanted = torch.softmax(torch.tensor(logits), dim=1).numpy()
    order = np.argsort(logits.argmax(axis=1), kind="stable")
    np.testing.assert_allclose(synthetic.soft_labels, wanted[order], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(synthetic.images, np.moveaxis(one, 1, -1)[order])
    assert float(synthetic.learning_rate) == pytest.approx(0.0163)
    hard, _ = settle(tmp_path, space="zca", labels="hard")
    assert hard.soft_labels is None and hard.labels.tolist() == logits.argmax(axis=1)[order].tolist()


def test_teslas_probabilities_are_not_flattened(tmp_path):
    soft = np.random.default_rng(1).dirichlet([1, 1, 1], 6).astype(np.float32)
    save(tmp_path / "images_best.pt", images())
    save(tmp_path / "labels_best.pt", soft)
    synthetic, _ = settle(tmp_path, space="standardised")
    np.testing.assert_allclose(synthetic.soft_labels, soft[np.argsort(soft.argmax(1), kind="stable")], atol=1e-6)
    # DD-Ranking takes a softmax of whatever is stored.
    for name in ("images", "labels"):
        (tmp_path / f"{name}_best.pt").rename(tmp_path / f"{name}.pt")
    synthetic, _ = settle(tmp_path, space="standardised")
    flat = torch.softmax(torch.tensor(soft), dim=1).numpy()
    np.testing.assert_allclose(synthetic.soft_labels, flat[np.argsort(flat.argmax(1), kind="stable")], atol=1e-6)


def test_a_set_published_in_parts_is_one_set(tmp_path):
    one = images()
    for part in range(3):
        save(tmp_path / f"images_best_{part}.pt", one[2 * part : 2 * part + 2])
    save(tmp_path / "labels_best.pt", LABELS)
    synthetic, _ = settle(tmp_path, space="standardised")
    np.testing.assert_array_equal(synthetic.images, ours(one))


def test_idcs_packed_set_is_told_and_ours_says_its_factor(tmp_path):
    save(tmp_path / "data.pt", [torch.rand(3, 3, 4, 6), torch.tensor([0, 1, 2])])
    (peer,) = exchange.load_peer(tmp_path / "data.pt")
    assert (peer.format, peer.packed, peer.factor, peer.space) == ("idc", True, None, "pixels")
    (tmp_path / "facts.json").write_text('{"value_space": "standardised", "images_of_a_stored_one": 4}')
    (peer,) = exchange.load_peer(tmp_path)
    assert peer.factor == 2


def test_a_tensor_dataset_is_read(tmp_path):
    one = images()
    save(tmp_path / "set.pt", torch.utils.data.TensorDataset(torch.tensor(one), torch.tensor(LABELS)))
    synthetic, _ = settle(tmp_path / "set.pt", space="standardised")
    np.testing.assert_array_equal(synthetic.images, ours(one))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"conv.weight": torch.zeros(3)}}, "looks like the weights of a network"),
        ({"module.conv.weight": torch.zeros(3)}, "looks like the weights of a network"),
        ([[[torch.zeros(3)]]], "MTT's replay buffer"),
        ([torch.zeros(2, 4), [True], None, 0.5, None, torch.zeros(2, 3)], "a batch of SRe2L's stored labels"),
        ({"data": 3}, "no data list"),
        ({"data": [[torch.zeros(2, 3, 4, 6)]]}, "no data list"),
        ({"data": [[torch.zeros(2, 3, 4, 6), torch.zeros(3)]]}, r"images \(2, 3, 4, 6\) and labels \(3,\)"),
        ([torch.zeros(2, 3, 4, 6)], "images without labels"),
        ({"data": [[torch.zeros(1, 1, 1, 1).expand(9000, 3, 64, 64), torch.zeros(9000)]]}, "claims a tensor"),
        (3, "a int; give the file"),
    ],
)
def test_what_is_no_set_is_told_in_one_line(tmp_path, content, words):
    save(tmp_path / "file.pt", content)
    with pytest.raises(ValueError, match=words) as told:
        exchange.load_peer(tmp_path / "file.pt")
    assert "\n" not in str(told.value)


def test_the_wrong_format_is_refused_by_the_right_one(tmp_path):
    save(tmp_path / "images_best.pt", images())
    save(tmp_path / "labels_best.pt", LABELS)
    for format, words in {"dc": "format mtt, not dc", "images": "PyTorch file, not images"}.items():
        with pytest.raises(ValueError, match=words):
            exchange.load_peer(tmp_path / "images_best.pt", format=format)
    with pytest.raises(ValueError, match="format='kip'"):
        exchange.load_peer(tmp_path / "images_best.pt", format="kip")
    (tmp_path / "labels_best.pt").unlink()
    with pytest.raises(ValueError, match=r"no file at .*labels_best\.pt"):
        exchange.load_peer(tmp_path)


def test_other_images_or_classes_than_the_datas_are_refused(tmp_path):
    save(tmp_path / "images_best.pt", images()[:, :, :, :5])
    save(tmp_path / "labels_best.pt", LABELS)
    with pytest.raises(ValueError, match=r"holds images \(4, 5, 3\), but pets has \(4, 6, 3\)"):
        settle(tmp_path, space="standardised")
    save(tmp_path / "images_best.pt", images())
    save(tmp_path / "labels_best.pt", LABELS + 1)
    with pytest.raises(ValueError, match="labels 1 to 3 but 3 class names"):
        settle(tmp_path, space="standardised")
    save(tmp_path / "labels_best.pt", np.zeros((6, 4), np.float32))
    with pytest.raises(ValueError, match="labels of 4 classes, but pets has 3"):
        settle(tmp_path, space="standardised")


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    import zipfile

    save(tmp_path / "set.pt", {"data": [[torch.zeros(100, 3, 32, 32), torch.zeros(100)]]})
    with (
        zipfile.ZipFile(tmp_path / "set.pt") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for info in archive.infolist():
            bomb.writestr(info.filename, archive.read(info))
    with pytest.raises(ValueError, match=r"bomb\.pt claims 1,2\d\d,\d\d\d bytes and holds"):
        exchange.load_peer(tmp_path / "bomb.pt")


@pytest.mark.parametrize("whitened", [False, True])
def test_our_files_for_the_peers_say_themselves_what_they_are(tmp_path, whitened):
    data = real(whitened=whitened)
    soft = np.eye(3, dtype=np.float32) * 0.9 + 0.1 / 3 if whitened else None
    rng = np.random.default_rng(5)
    made = exchange.settle(
        exchange.Peer(
            source=tmp_path, format="npz", images=rng.normal(size=(3, 4, 6, 3)).astype(np.float32), labels=np.arange(3)
        ),
        data,
        space="zca" if whitened else "standardised",
        learning_rate=0.02,
    )[0]
    made = dataclasses.replace(made, soft_labels=soft)
    facts = {**exchange.value_space(data), "class_names": NAMES}
    exchange.export_torch(tmp_path / "dc.pt", made, facts)
    exchange.export_tensors(tmp_path / "mtt", made, facts)
    exchange.export_tensors(tmp_path / "ddr", made, facts, names="ddranking")
    assert {file.name for file in (tmp_path / "ddr").glob("*.pt")} == {"images.pt", "labels.pt", "lr.pt"}
    for place in ("dc.pt", "mtt", "ddr"):
        (peer,) = exchange.load_peer(tmp_path / place)
        again, said = exchange.settle(peer, data)  # nobody has to say the value space
        np.testing.assert_array_equal(again.images, made.images)
        assert float(again.learning_rate) == pytest.approx(0.02)
        if whitened:
            np.testing.assert_allclose(again.soft_labels, made.soft_labels, rtol=1e-5, atol=1e-7)
        assert exchange.check_belongs(said, data) is None


def test_dd_ranking_gets_a_configuration_where_it_knows_the_data():
    """Its names and constants as its loader has them; of other data, or other constants, none."""
    cifar = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010], "value_space": "standardised"}
    facts = {**cifar, "class_names": ["a", "b"], "dataset": "cifar100_mtt"}
    made = structs.SyntheticSet(images=np.zeros((4, 32, 32, 3), np.float32), labels=np.array([0, 0, 1, 1]))
    found = ddranking.config(made, facts)
    assert (found["dataset"], found["ipc"], found["model_name"]) == ("CIFAR100", 2, "ConvNet-3")
    assert "soft_label_mode" not in found and found["use_zca"] is False
    soft = dataclasses.replace(made, soft_labels=np.full((4, 2), 0.5, np.float32))
    assert ddranking.config(soft, facts)["soft_label_criterion"] == "sce"
    assert ddranking.config(made, facts | {"value_space": "zca"})["use_zca"] is True
    assert ddranking.config(made, facts | {"dataset": "imagenette"}) is None  # ImageNet's constants are others
    assert ddranking.config(made, facts | {"dataset": "cifar100"}) is None
    assert ddranking.config(made, facts | {"std": [0.247, 0.2435, 0.2616]}) is None
    assert ddranking.config(dataclasses.replace(made, labels=np.array([0, 0, 0, 1])), facts) is None


def test_files_of_pytorch_before_its_archives_are_read(tmp_path):
    one = images()
    content = {"data": [[torch.tensor(one), torch.tensor(LABELS)]], "accs_all_exps": {}}
    torch.save(content, tmp_path / "res.pt", _use_new_zipfile_serialization=False)
    synthetic, _ = settle(tmp_path / "res.pt", space="standardised")
    np.testing.assert_array_equal(synthetic.images, ours(one))
    file = tmp_path / "res.pt"
    whole = file.read_bytes()
    for length in (0, 10, 300, len(whole) - 100):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"res\.pt") as told:
            exchange.load_peer(file)
        assert "\n" not in str(told.value)


def test_labels_of_no_columns_are_refused(tmp_path):
    save(tmp_path / "images_best.pt", images())
    torch.save([[] for _ in LABELS], tmp_path / "labels_best.pt")
    with pytest.raises(ValueError, match="has labels of 0 classes"):
        settle(tmp_path / "images_best.pt", space="standardised")


@pytest.mark.parametrize("name", ["images_best.pt", "labels_best.pt"])
def test_one_number_in_place_of_a_tensor_is_refused(tmp_path, name):
    save(tmp_path / "images_best.pt", images())
    save(tmp_path / "labels_best.pt", LABELS)
    torch.save(torch.tensor(3), tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} holds one number where a tensor belongs"):
        settle(tmp_path / "images_best.pt", space="standardised")


def test_labels_of_parts_of_several_shapes_are_refused(tmp_path):
    for part in (0, 1):
        save(tmp_path / f"images_best_{part}.pt", images())
        save(tmp_path / f"labels_best_{part}.pt", LABELS if part else np.eye(len(NAMES), dtype=np.float32)[LABELS])
    with pytest.raises(ValueError, match=r"labels_best_0\.pt and its further parts hold labels of several shapes"):
        settle(tmp_path / "images_best_0.pt", space="standardised")


@pytest.mark.parametrize("tensors", [None, (), 3])
def test_a_dataset_without_its_tensors_is_refused(tmp_path, tensors):
    damaged = torch.utils.data.TensorDataset(torch.tensor(images()), torch.tensor(LABELS))
    if tensors is None:
        del damaged.tensors
    else:
        damaged.tensors = tensors
    torch.save(damaged, tmp_path / "set.pt")
    with pytest.raises(ValueError, match=r"set\.pt is a TensorDataset of 0 tensors"):
        settle(tmp_path / "set.pt", space="standardised")


@pytest.mark.parametrize("pixel", [np.nan, np.inf, 3e38])
@pytest.mark.filterwarnings("error")
def test_pixels_that_are_or_become_infinite_are_refused(tmp_path, pixel):
    one = images()
    one[0, 0, 0, 0] = pixel
    torch.save([torch.tensor(one), torch.tensor(LABELS)], tmp_path / "data.pt")
    (peer,) = exchange.load_peer(tmp_path / "data.pt")
    with pytest.raises(ValueError, match=r"data\.pt has 1 pixels that are NaN or infinite"):
        exchange.settle(dataclasses.replace(peer, packed=False), real())
    wanted = "to 3e.38, mean" if np.isfinite(pixel) else "has 1 pixels that are NaN or infinite"
    with pytest.raises(ValueError, match=wanted):  # also where nobody says how the numbers were scaled
        exchange.space_of(dataclasses.replace(peer, space=None), None)
