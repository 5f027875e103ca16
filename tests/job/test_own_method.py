"""A base method of one's own in the main job: one file with one registering line, by its name on the command line."""

import json
import sys

import pytest

from metadd_jax import distillers, storage
from metadd_jax.job import distill

METHOD = '''
import dataclasses
from typing import Annotated, ClassVar

import metadd_jax as mdd
from metadd_jax.distillers import class_images
from metadd_jax.ranges import Real


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrink(mdd.distillers.Method):
    """Pulls all images towards zero.

    Attributes:
      pull: how strongly.
    """

    group: ClassVar[str] = "shrink"
    pull: Annotated[float, Real(0)] = 1.0

    def make(self, net, counts, given=None, *, repeat=False):
        def init(key, dataset):
            return class_images.initial(key, dataset, net, counts=counts, init=self.start, repeat=repeat), ()

        def loss(key, synthetic, aux, batch, frozen, *, axis_name=None):
            return self.pull * (synthetic["images"] ** 2).sum() / 2, (aux, {})

        return mdd.distillers.Distiller(
            name="shrink",
            init=init,
            sample=lambda key, data, step, *, axis_name=None: (),
            loss=loss,
            refresh=lambda key, synthetic, aux, step, frozen: aux,
            decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        )


mdd.distillers.register("shrink", Shrink)
'''
TINY = [
    "smoke", "--backbone", "mlp:width=8", "--no-wrapped", "--seen", "--unseen", "mlp:width=4", "--distill-seeds", "1",
    "--train-per-class", "20", "--train-seeds", "1", "--eval-epochs", "1", "--steps", "2", "--method", "shrink",
    "--pretrain-augmentation", "none", "--eval-augmentation", "none",
]  # fmt: skip


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setenv("METADD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)  # JAX's own is this process's
    plugin = tmp_path / "my_methods.py"
    plugin.write_text(METHOD)
    yield [*TINY, "--plugin", str(plugin), "--run-dir", str(tmp_path / "run")]
    distillers.registry._METHODS.pop("shrink", None)
    sys.modules.pop("metadd_plugin_my_methods", None)


def test_it_runs_and_keeps_its_settings(words, tmp_path, capsys):
    distill.run([*words, "--shrink.pull", "0.5"])
    printed = capsys.readouterr().out
    assert "shrink: 2 steps, pull 0.5, from random real images, backbone mlp:width=8" in printed
    held = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (held["method"], held["own"]) == ("shrink", {"init": None, "pull": 0.5})
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert {row["set"] for row in rows} == {"shrink", "random", "kmeans"}
    with pytest.raises(ValueError, match=r"holds another run \(own\.pull was 0\.5, now 1\.0\)"):
        distill.run(words)


def test_what_its_record_refuses_is_one_line(words):
    with pytest.raises(ValueError, match=r"^--shrink\.pull=-1\.0 must be a finite float32 number, at least 0"):
        distill.run([*words, "--pull", "-1"])
    with pytest.raises(
        ValueError, match=r"^--batch-size is an option of ncfm, dm, dc, dsa and idc, and the method is shrink"
    ):
        distill.run([*words, "--batch-size", "3"])
