"""A release is whole: wheel and sdist hold what they must, and the base works without the libraries of the command."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement

import metadd_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def files_under(folder):
    """Its files as texts relative to the root, without what running leaves."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts and path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The names within the wheel (of the files of the sdist) and within the sdist, and the wheel's metadata."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("release")
    tree = place / "tree"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info", ".git", ".venv", "runs", "build", "dist", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=leave)
    call = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"

    def build(what, folder):
        words = [sys.executable, "-c", call, what, place]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    build("build_sdist", tree)
    (packed,) = place.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        # Python 3.11 has filters from its fourth patch on, and Debian's is the second.
        archive.extractall(place, **{"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        names = {name.partition("/")[2] for name in archive.getnames()}
    build("build_wheel", place / packed.name.removesuffix(".tar.gz"))
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        texts = archive.read(metadata).decode(), archive.read(entries).decode()
        return set(archive.namelist()), names, *texts


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built):
    wheel, _, metadata, entries = built
    of_the_package = files_under("metadd_jax")
    assert {name for name in wheel if ".dist-info/" not in name} == of_the_package
    # What the code reads beside its modules, by the calls that read it.
    sources = "\n".join(path.read_text() for path in (ROOT / "metadd_jax").rglob("*.py"))
    read = re.findall(r'importlib\.resources\.files\("([\w.]+)"\)\.joinpath\("([^"]+)"\)', sources)
    assert ("metadd_jax.job", "report.html") in read
    assert sources.count("importlib.resources.files(") == len(read)
    assert {f"{package.replace('.', '/')}/{name}" for package, name in read} <= wheel
    assert "metadd_jax/py.typed" in wheel
    assert "metadd = metadd_jax.cli:main" in entries
    assert f"\nVersion: {metadd_jax.__version__}\n" in metadata
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.M)) == set(EXTRAS)


def test_the_source_distribution_builds_tests_and_documents_itself(built):
    sdist = built[1]
    for folder in ("metadd_jax", "tests", "experiments", "docs", ".ci"):
        assert files_under(folder) <= sdist, folder
    single = "pyproject.toml README.md CHANGELOG.md CONTRIBUTING.md LICENSE CITATION.cff Dockerfile constraints.txt"
    single += " requirements.txt requirements-test.txt .github/workflows/ci.yml .pre-commit-config.yaml"
    assert set(single.split()) <= sdist
    assert not [name for name in sdist if "__pycache__" in name or name.startswith("runs/")]


def test_one_version_everywhere():
    assert PROJECT["version"] == metadd_jax.__version__
    assert f"\nversion: {metadd_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first[1] == metadd_jax.__version__


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_tested_versions_lie_within_the_ranges():
    held = {name.lower().replace("_", "-"): version for name, version in pins().items()}
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS["experiments"], *EXTRAS["test"])]
    for one in wanted:
        name = one.name.lower().replace("_", "-")
        assert name in held, f"constraints.txt does not say {name}"
        assert held[name] in one.specifier, f"{one} does not allow {held[name]}"


def test_the_image_copies_what_is_there_and_runs_as_no_root():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert steps[0][0] == "FROM"
    copied = [words.split()[:-1] for word, words in steps if word == "COPY"]
    assert copied and all((ROOT / name).exists() for names in copied for name in names)
    # setuptools reads these from pyproject.toml, so that without them the build in the image would end.
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "metadd_jax", "constraints.txt"}
    assert needed <= {name for names in copied for name in names}
    assert [words for word, words in steps if word == "USER"] == ["metadd"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', "\n".join(lines))
    assert set(extras.split(",")) <= set(EXTRAS)


BASE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)

sys.meta_path.insert(0, Absent())
import jax, numpy as np, optax
import metadd_jax as mdd
from metadd_jax import cli, pictures

rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 2
np.savez(sys.argv[1], images=images, labels=labels, test_images=images, test_labels=labels)
dataset = mdd.data.load(sys.argv[1], cache_dir=sys.argv[1] + "-cache")
net = mdd.zoo.parse("mlp:width=8", 2, dataset.image_shape)
method = mdd.distillers.dm(net, ipc=1, batch_size=4, augmentation="none")
tx = optax.sgd(1.0)
state = mdd.distillers.init_state(jax.random.key(0), method, tx, dataset)
state, metrics = jax.jit(mdd.distillers.make_update(method, tx))(state, dataset.train, method.frozen)
assert np.isfinite(float(metrics["loss"])) and method.synthetic(state).images.shape == (2, 8, 8, 1)

def refusal(call, *args):
    try:
        call(*args)
    except ValueError as error:
        return str(error)

for said in (
    refusal(mdd.evaluation.kmeans_real, 0, dataset, 1),
    refusal(lambda: pictures.curves("loss.png", {{"dm": ([0, 1], [1.0, 2.0])}}, ylabel="loss")),
    refusal(cli.run, ["export", "set.npz", "--out", "x.npz"]),
    refusal(cli.run, ["distill", "smoke"]),
):
    assert said and said.endswith("run: pip install 'metadd_jax[experiments]'"), said
cli.run([])
"""


def test_the_base_alone_distils_arrays_and_names_the_extra_for_the_rest(tmp_path):
    absent = {"tensorflow_datasets", "importlib_resources", "tyro", "matplotlib", "jinja2", "sklearn", "mlxtend"}
    absent |= {"safetensors", "torch", "tensorboardX", "wandb", "submitit", "pytest"}
    names = {re.split("[><=]", text)[0] for text in EXTRAS["experiments"]}
    assert {name.replace("scikit-learn", "sklearn").replace("-", "_") for name in names} <= absent
    code = textwrap.dedent(BASE.format(absent=absent))
    words = [sys.executable, "-c", code, str(tmp_path / "own.npz")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage: metadd COMMAND" in done.stdout


def test_the_installed_package_says_the_version_of_its_source():
    """Where it is installed from this folder (editable, or the wheel of it); of another checkout nothing is asked."""
    try:
        found = importlib.metadata.distribution("metadd_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("metadd_jax is on the path and not installed")
    if str(ROOT) not in str(found.read_text("direct_url.json")):
        pytest.skip("another checkout is installed")
    assert found.version == metadd_jax.__version__
