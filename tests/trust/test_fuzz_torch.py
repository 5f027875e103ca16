"""Fuzz of the readers of PyTorch's files: sets of every peer, expert trajectories, weights of networks."""

import io
import pickle
import zipfile

import hostile
import jax
import numpy as np
import pytest
from fuzz_sets import IMAGES, LABELS, fit, judged
from hypothesis import given
from hypothesis import strategies as st

from metadd_jax import zoo
from metadd_jax.exchange import buffers

torch = pytest.importorskip("torch")
THEIRS = np.moveaxis(IMAGES, -1, 1).copy()


class Canary:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def saved(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def contents(folder):
    """What is pickled in place of a set: code, views of terabytes, sparse tensors, lists in themselves."""
    itself = []
    itself.append(itself)
    images, labels = torch.tensor(THEIRS), torch.tensor(LABELS)
    one = torch.zeros(1)
    tensors = [
        one.expand(2**40),
        one.expand(6, 3, 2**20, 2**20),
        torch.zeros(6, 4, 6, 3).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(6, 3, 4, 6, dtype=torch.bfloat16),
        torch.full((6, 3, 4, 6), torch.nan),
        torch.zeros(0, 3, 4, 6),
        one,
        torch.zeros(6, 3, 4, 6, dtype=torch.bool),
        torch.zeros(6, 3, 4, 6, device="meta"),
        torch.tensor(2**62),
        torch.zeros(6, 3, 4, 6, dtype=torch.uint8),
        torch.full((6,), -1),
        torch.full((6,), 2**40),
        torch.zeros(6, 3) + torch.inf,
        torch.quantize_per_tensor(torch.zeros(6, 3, 4, 6), 0.1, 0, torch.quint8),
        torch.zeros(6, 3, 4, 6, dtype=torch.float8_e4m3fn),
    ]
    odd = [
        None,
        3,
        "text",
        [],
        {},
        itself,
        (),
        float("nan"),
        {"data": None},
        Canary(folder / "canary"),
        np.float64(1),
        10**400,
    ]
    sets = [[images, labels], [labels, images], [images], [images, labels, one]]
    return [*tensors, *odd, *sets]


def zipped_anew(content, number, steps):
    """The archive with one member damaged, and right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as new:
        infos = archive.infolist()
        for place, info in enumerate(infos):
            held = archive.read(info)
            new.writestr(info.filename, hostile.damaged(held, steps) if place == number % len(infos) else held)
    return stream.getvalue()


CHANGE = st.one_of(
    hostile.DAMAGE,
    st.tuples(st.just("member"), st.integers(0, 9), hostile.DAMAGE),
    st.tuples(
        st.just("content"),
        st.integers(0, 40),
        st.integers(0, 40),
        st.sampled_from(["data", "pair", "bare", "dict", "list"]),
    ),
    st.tuples(st.just("old"), hostile.DAMAGE),
)


def changed(whole, value, change, folder):
    if change[0] == "member":
        return zipped_anew(whole, *change[1:])
    if change[0] == "old":
        return hostile.damaged(saved(value, _use_new_zipfile_serialization=False), change[1])
    if change[0] == "content":
        every = contents(folder)
        a, b = (every[number % len(every)] for number in change[1:3])
        made = {
            "data": {"data": [[a, b]]},
            "pair": {"data": [a, b]},
            "bare": a,
            "dict": {"images": a, "labels": b},
            "list": [a, b],
        }
        return saved(made[change[3]])
    return hostile.damaged(whole, change)


SETS = {
    "DC": (
        "res.pt",
        {"data": [[torch.tensor(THEIRS), torch.tensor(LABELS)]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}},
    ),
    "MTT": ("images_best.pt", torch.tensor(THEIRS)),
    "MTT, labels": ("labels_best.pt", torch.tensor(LABELS)),
    "MTT, step size": ("lr_best.pt", torch.tensor(0.1)),
    "TensorDataset": ("set.pt", torch.utils.data.TensorDataset(torch.tensor(THEIRS), torch.tensor(LABELS))),
    "IDC": ("data.pt", [torch.tensor(THEIRS), torch.tensor(LABELS)]),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_set_of_pytorch_is_fit_or_refused(tmp_path, real, kind):
    name, value = SETS[kind]
    folder = tmp_path / "set"
    folder.mkdir()
    if kind.startswith("MTT"):
        (folder / "images_best.pt").write_bytes(saved(torch.tensor(THEIRS)))
        (folder / "labels_best.pt").write_bytes(saved(torch.tensor(LABELS)))
    whole, place = saved(value), folder if kind.startswith("MTT") else folder / name

    @given(CHANGE)
    @hostile.cases(20)
    def fuzz(change):
        (folder / name).write_bytes(changed(whole, value, change, tmp_path))
        found = hostile.read(f"PyTorch: {kind}", judged(real), place, root=tmp_path, says=("the set",))
        fit(found)

    fuzz()
    assert not (tmp_path / "canary").exists()


def test_expert_trajectories_are_finite_or_refused(tmp_path):
    net = zoo.parse("convnet:width=2,depth=1", 3, (4, 4, 1))
    layers = [(2, 1, 3, 3), (2,), (2,), (2,), (3, 8), (3,)]
    value = [[[torch.randn(shape) for shape in layers] for _ in range(3)]]
    whole, file = saved(value), tmp_path / "replay_buffer_0.pt"
    file.write_bytes(whole)
    assert buffers.load_buffers(file, net, experts=1, snapshots=2).shape == (1, 2, net.num_params())

    @given(CHANGE)
    @hostile.cases(20)
    def fuzz(change):
        file.write_bytes(changed(whole, value, change, tmp_path))
        read = lambda file: buffers.load_buffers(file, net, experts=1, snapshots=2)  # noqa: E731
        found = hostile.read("PyTorch: MTT's experts", read, file, root=tmp_path)
        assert isinstance(found, Exception) or np.isfinite(found).all()

    fuzz()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_network_are_finite_or_refused(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    net, file = zoo.parse("resnet18:width=1", 3, (128, 128, 3)), tmp_path / f"net{suffix}"
    zoo.torchvision.dump(net, net.init(jax.random.key(0)), tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    value = None if suffix == ".safetensors" else torch.load(tmp_path / f"whole{suffix}", weights_only=True)

    @given(CHANGE, st.integers(0, 40))
    @hostile.cases(15)
    def fuzz(change, number):
        if suffix == ".safetensors" or change[0] in ("pair", "content"):
            content = hostile.damaged(whole, change) if isinstance(change[0], tuple) else None
            if content is None and value is not None:
                every = contents(tmp_path)
                content = saved({**value, "conv1.weight": every[number % len(every)]})
            file.write_bytes(content or whole[: 100 * number])
        else:
            file.write_bytes(changed(whole, value, change, tmp_path))
        read = lambda file: zoo.torchvision.load(net, file)  # noqa: E731
        found = hostile.read(f"weights of a network: {suffix}", read, file, root=tmp_path, says=(net.label,))
        assert isinstance(found, Exception) or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))

    fuzz()
    assert not (tmp_path / "canary").exists()


def test_a_pickle_of_another_name_is_not_loaded(tmp_path):
    """What is no archive of PyTorch's may be a pickle, under each name by which one is opened."""
    for name in ("res.pt", "images_best.pt", "set.pth", "data.pt"):
        file = tmp_path / name
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file.write_bytes(pickle.dumps({"data": [Canary(tmp_path / "canary")]}, protocol=protocol))
            hostile.read("PyTorch: bare pickles", judged(None), file, root=tmp_path)
        file.unlink()
    assert not (tmp_path / "canary").exists()
