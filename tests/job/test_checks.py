"""Every option of the main job is refused outside its range, in one line, before the run's folder is taken."""

import collections
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import costs
from metadd_jax import data, distillers, files, parallel, ranges, storage
from metadd_jax.job import checks, common, distill, evaluate, options, prepare, pretrain, show
from settings import BenchmarkConfig

TINY = [
    "smoke", "--backbone", "convnet:width=4,depth=1", "--seen", "convnet:width=4,depth=2", "convnet:width=6,depth=1",
    "--unseen", "mlp:width=8", "--steps", "2", "--distill-seeds", "1", "--eval-epochs", "2",
]  # fmt: skip
# What else must be said for the option to count, and text that something refuses, with what it says.
TEXTS = {
    "dataset": ("no_such_set", "no_such_set"),
    "data_dir": ("/nowhere", "/nowhere", "--dataset", "cifar10"),
    "cache_dir": ("/proc/nowhere", "/proc/nowhere"),
    "backbone": ("convnext", "convnext"),
    "seen": ("lenet,mlp", "put spaces between them"),
    "seen_data": ("no_such_set", "no_such_set"),
    "unseen": ("lenett", "did you mean 'lenet'"),
    "dm.augmentation": ("flop", "flop"),
    "dm.init": ("kmean", "did you mean 'kmeans'"),
    "dc.init": ("/nowhere", "nothing lies there", "--method", "dsa"),
    "mtt.init": ("", "--mtt.init='' must be one of random, noise, kmeans", "--method", "mtt"),
    "sre2l.init": ("/nowhere", "nothing lies there", "--method", "sre2l"),
    **{
        f"{name}.init": ("/nowhere", "nothing lies there", "--method", name) for name in ("datm", "ncfm", "idc", "rded")
    },
    **{f"{name}.augmentation": ("flop", "flop", "--method", name) for name in ("datm", "ncfm", "idc")},
    "idc.real_augmentation": ("flop", "flop", "--method", "idc"),
    "rded.weights": ("/nowhere.pth", "/nowhere.pth", "--method", "rded", "--no-wrapped", "--steps", "1"),
    "time_limit": ("soon", "--time-limit soon is no time above 0"),
    "pool": ("convnext", "convnext"),
    "matched": ("convnext", "convnext"),
    "dc.augmentation": ("flop", "flop", "--method", "dsa"),
    "mtt.augmentation": ("flop", "flop", "--method", "mtt"),
    "parameterisation": ("factor4", "did you mean 'factor'"),
    "pretrain_augmentation": ("dc_flip", "dc"),
    "eval_augmentation": ("dc_flip", "flip"),
    "eval_labels": ("soft", "cannot read the labels 'soft'"),
    "sre2l.weights": (
        "/nowhere.pth",
        "there is no file /nowhere.pth",
        "--method",
        "sre2l",
        "--backbone",
        "resnet18_bn:width=4",
    ),
    **{
        f"{name}.buffers": ("/nowhere", "/nowhere holds no replay_buffer_0.pt", "--method", name)
        for name in ("mtt", "datm")
    },
    "sre2l.committee": ("lenett", "did you mean 'lenet'", "--method", "sre2l"),
    "metadd.views": ("flop", "flop"),
    "variants": ("ai=nan", "variant 'ai=nan': ai=nan must be"),
    "coordinator": ("somewhere", "coordinator=somewhere"),
    "run_dir": ("/proc/nowhere", "/proc/nowhere"),
    "plugin": ("/nowhere.py", "there is no such Python file"),
}


def walk(settings, path=""):
    """(path, type, range or None) of every option."""
    rules = ranges.of(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, distillers.Method):
            continue
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{path}{field.name}.")
        else:
            yield path + field.name, type(value), rules.get(field.name)


EVERY, METHOD_OF = list(walk(options.DistillConfig())), {}
for name in distillers.names():
    own = options.settings_of(name)
    new = [option for option in walk(own, f"{own.group}.") if option[0] not in METHOD_OF]
    EVERY += new
    METHOD_OF |= {path: name for path, _, _ in new}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def refused(cache, tmp_path, monkeypatch):
    """What the script says to options that it refuses, asked in this process."""
    monkeypatch.setenv("METADD_CACHE", str(cache))
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)  # JAX's own is this process's
    monkeypatch.setattr(common, "pretrain", lambda *args, **kwargs: pytest.fail("long work has begun"))

    def ask(*words):
        with pytest.raises(ValueError) as found:
            distill.run([*TINY, "--run-dir", str(tmp_path / "new"), *map(str, words)])
        assert "\n" not in str(found.value) and not (tmp_path / "new" / "config.json").exists()
        return str(found.value)

    return ask


def prepared(config):
    """The job, whose folder others may take at once."""
    job = prepare.open_job(config)
    job.lock.release()
    return job


def test_every_option_has_a_range_or_is_a_switch():
    assert {path for path, kind, rule in EVERY if rule is None and kind is not bool} == set()
    assert {path for path, _, rule in EVERY if isinstance(rule, ranges.Text | ranges.Texts)} == set(TEXTS)


OTHERS = {
    evaluate: (evaluate.EvaluateConfig, ["x.npz"]),
    pretrain: (pretrain.PretrainConfig, []),
    show: (show.ShowConfig, ["x.npz"]),
    costs: (BenchmarkConfig, []),
}


def spelt(path):
    """How a user writes a field: "mtt.lr_teacher" is ``--mtt.lr-teacher``."""
    return f"--{path.replace('_', '-')}"


@pytest.mark.parametrize("script", OTHERS, ids=lambda script: script.__name__)
def test_every_number_of_the_other_scripts_is_refused_outside_its_range(script, cache, monkeypatch):
    monkeypatch.setenv("METADD_CACHE", str(cache))
    settings, first = OTHERS[script]
    rules = ranges.of(settings)
    numbers = {field.name for field in dataclasses.fields(settings) if type(field.default) in (int, float)}
    assert numbers and numbers <= set(rules)
    for name in numbers:
        for value in rules[name].outside():
            with pytest.raises(ValueError, match=spelt(name)):
                script.run([*first, spelt(name), str(value)])


@pytest.mark.parametrize(
    "path", [path for path, _, rule in EVERY if rule and not isinstance(rule, ranges.Text | ranges.Texts)]
)
def test_every_option_is_refused_outside_its_range(path, refused):
    rule = {path: rule for path, _, rule in EVERY}[path]
    method = ["--method", METHOD_OF[path]] if path in METHOD_OF else []
    for value in rule.outside():
        said = refused(*method, spelt(path), *(value if isinstance(value, tuple) else [value]))
        assert "is an option of" not in said
        assert spelt(path) in said


@pytest.mark.parametrize("path", TEXTS)
def test_text_that_nothing_can_read_is_refused(path, refused):
    text, part, *others = TEXTS[path]
    assert part in refused(*others, spelt(path), text)


TRAJECTORIES = ["--method", "mtt", "--mtt.epochs", 2, "--mtt.expert-epochs", 1, "--mtt.max-start-epoch", 1]
TEACHER = ["--method", "sre2l", "--backbone", "convnet_bn:width=4,depth=1"]
TOGETHER = {
    "--seen names 1": ["--seen", "convnet:width=4,depth=2"],
    "--metadd.var 0.2 in --variants pos=0,var=0.2": [
        "--seen", "lenet", "--metadd.pos", 0, "--metadd.var", 0, "--variants", "pos=0,var=0.2",
    ],
    "--metadd.subset 11 is larger than the 10 synthetic images": ["--metadd.subset", 11],
    "--metadd.subset 12 in --variants subset=12": ["--variants", "subset=12"],
    "--metadd.drawn 3 in --variants drawn=3 is more than the 2 networks of --seen": ["--variants", "drawn=3"],
    "--metadd.drawn 1 leaves one network a step, and --metadd.pos": ["--metadd.drawn", 1],
    "--metadd.focus 0.5 in --variants focus=0.5 weighs the gradient of pixels": [
        "--parameterisation", "factor2", "--variants", "focus=0.5",
    ],
    "--variants ai=3 is the same setting as MetaDD without a variant": ["--variants", "ai=3"],
    "--variants ai=2.0 is the same setting as --variants ai=2;": ["--variants", "ai=2", "ai=2.0"],
    "kl_cap": ["--variants", "kl=-1"],
    "--mtt.batch-syn=11 must be from 1 to the set's 10 images": [*TRAJECTORIES, "--mtt.batch-syn", 11],
    "lr_lr / lr_teacher**2": [*TRAJECTORIES, "--mtt.lr-lr", "1e30", "--mtt.lr-teacher", "1e-30"],
    "--sre2l.group-ipc=2 must divide --ipc=1": [*TEACHER, "--sre2l.group-ipc", 2],
    "reach beyond the last seed": ["--first-seed", 2**32 - 1, "--distill-seeds", 2],
    "a network is listed twice": ["--unseen", "convnet:width=4,depth=2"],
    "has no activation map": ["--seen", "mlp", "lenet"],
    "ipc gives 3 numbers for 10 classes": ["--ipc-per-class", 1, 2, 1],
    "has 2 images": ["--stream-per-class", 2, "--ipc", 3],
}  # fmt: skip


@pytest.mark.parametrize("part", TOGETHER)
def test_options_that_do_not_go_together_are_refused(part, refused):
    assert part in refused(*TOGETHER[part])


@pytest.mark.parametrize("mode", ["auto", "pmap", "sharded"])
def test_a_batch_that_the_devices_cannot_share_is_refused(mode, refused, monkeypatch):
    monkeypatch.setattr(parallel, "device_count", lambda: 3)
    assert "--dm.batch-size=8 does not split over 3 devices; use a multiple of 3, or --device-mode='jit'" in refused(
        "--batch-size", 8, "--device-mode", mode
    )


def test_batch_norm_under_dm_is_refused_on_several_devices(refused, monkeypatch):
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    assert "runs on one device" in refused("--backbone", "convnet_bn:width=4,depth=1")


@pytest.mark.parametrize("method", distillers.names())
def test_what_is_in_order_is_made_without_any_work(method, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)

    def jit(function, **options):
        def call(*given, **named):
            # Of shapes alone nothing is compiled; of numbers it would be.
            tracers = [isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((given, named))]
            return function(*given, **named) if any(tracers) else pytest.fail("something was compiled")

        return call

    monkeypatch.setattr(parallel, "jit", jit)
    config = options.DistillConfig(run_dir=str(tmp_path / "run"), cache_dir=str(cache)).with_method(method)
    backbone = f"convnet{'_bn' * config.own.teaches}:width=4,depth=1"
    config = dataclasses.replace(config, backbone=backbone)
    job = prepared(config)
    assert (job.directory / "config.json").exists() and job.backbone.label.startswith("convnet")


def test_the_mended_command_goes_on_in_the_folder_of_the_refused_one(refused, tmp_path):
    refused("--batch-size", 0)
    job = prepared(options.DistillConfig(run_dir=str(tmp_path / "new"), train_per_class=3))
    assert files.read_json(job.directory / "config.json")["config"]["own"]["batch_size"] == 64


def test_a_disk_on_which_sets_or_experts_cannot_lie_is_refused(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)
    config = options.DistillConfig(
        method="mtt", run_dir=str(tmp_path / "run"), cache_dir=str(cache), wrapped=False, seen=(), unseen=(),
        own=distillers.MTT(experts=3, epochs=10, half=True), distill_seeds=2, ipc=3,
    )  # fmt: skip
    free = {str(tmp_path / "run"): 10**9, str(cache): 10**9}
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, free[str(folder)]))
    job = prepared(config)
    images = 3 * 10 * 28 * 28 * 4  # and their momentum; a few words beside them
    assert 2 * images < prepare.check_made(job) < 2 * images + 200
    free[str(cache)] = 3 * job.backbone.num_params() * (4 + 2 * 10) - 1
    with pytest.raises(ValueError, match=f"{cache} has .* MB free and needs about .* MB"):
        prepare.open_job(config)
    free.update({str(cache): 10**9, str(tmp_path / "run"): 12 * images})
    with pytest.raises(ValueError, match=r"run has 1.1 MB free and needs about 1.\d MB; free some space there"):
        prepare.open_job(config)


def pictures(file, turned=False, names=("ant", "bee")):
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    labels = np.arange(24) % 2
    images, labels = (255 - images, 1 - labels) if turned else (images, labels)
    np.savez(file, images=images, labels=labels, test_images=images, test_labels=labels, class_names=np.array(names))


def test_data_that_changed_under_its_name_is_refused_by_a_begun_and_by_a_finished_run(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)
    file, run = tmp_path / "two.npz", tmp_path / "new"
    pictures(file)
    config = options.DistillConfig(
        dataset=str(file), run_dir=str(run), cache_dir=str(cache), wrapped=False, seen=(), unseen=()
    )
    before = prepared(config).dataset.fingerprint
    prepared(config)  # goes on
    pictures(file, turned=True)
    assert json.loads((run / "config.json").read_text())["data"]["fingerprint"] == before
    for finished in (False, True):
        if finished:
            (run / "results.md").write_text("| old |")
        with pytest.raises(
            ValueError, match=rf"had the fingerprint {before[:12]}, now [0-9a-f]{{12}}\); bring the data"
        ):
            prepare.open_job(config)
    prepared(dataclasses.replace(config, overwrite=True))
    after = json.loads((run / "config.json").read_text())["data"]["fingerprint"]
    assert after != before


def test_classes_that_changed_their_names_are_refused(tmp_path):
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    dataset = data.from_arrays("x", *[images, np.arange(4) % 2] * 2, class_names=["a", "b"])
    checks.check_data(tmp_path, dataset)  # holds no run
    files.write_json(tmp_path / "config.json", {"data": checks.data_facts(dataset)})
    checks.check_data(tmp_path, dataset)
    renamed = dataclasses.replace(dataset, class_names=("a", "c"))
    with pytest.raises(ValueError, match="class 1 of x was 'b', now 'c'"):
        checks.check_data(tmp_path, renamed)
    files.write_json(tmp_path / "config.json", {"config": {}})
    with pytest.raises(ValueError, match="had the fingerprint None, now"):
        checks.check_data(tmp_path, dataset)


def test_a_preset_may_stand_last_and_a_wrong_one_is_named(capsys):
    assert distill._parsed(["--steps", "3", "smoke"], "distill.py").chunk == 2
    assert (
        distill._parsed(["--dataset", "cifar10"], "distill.py").backbone == "convnet:width=16"
    )  # the preset cifar10 has 32
    for words, part in {
        ("--steps", "3", "smok"): "a preset stands first: distill.py smoke --option value",
        ("smok",): "did you mean 'smoke'",
        ("smoke", "--stepz", "3"): "did you mean --steps?",
        ("smoke", "--mtt.lr-techer", "3"): "did you mean --mtt.lr-teacher?",
        ("smoke", "--steps"): "Missing value for argument '--steps'",
    }.items():
        with pytest.raises(ValueError) as found:
            distill._parsed(list(words), "distill.py")
        assert part in str(found.value) and "\n" not in str(found.value)
    assert capsys.readouterr().err == ""
