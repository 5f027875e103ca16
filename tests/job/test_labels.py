"""Labels of an evaluation: what the user may write, who labels, and that one rule serves every row of a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metadd_jax as mdd
from metadd_jax import distillers
from metadd_jax.evaluation import report
from metadd_jax.job import checks, common, labels, options, plan, prepare, recipes, results, stages


def test_labels_are_read_with_shares_that_add_up_to_one():
    assert labels.read("hard") == labels.Labels("hard")
    assert labels.read("teacher") == labels.Labels("teacher")
    assert labels.read("teacher:vit:width=24,depth=2") == labels.Labels("teacher", ("vit:width=24,depth=2",), (1.0,))
    assert labels.read("teacher:lenet+mlp").weights == (0.5, 0.5)
    read = labels.read("teacher:3*lenet+ 1*mlp:width=8")
    assert read == labels.Labels("teacher", ("lenet", "mlp:width=8"), (0.75, 0.25))
    # softmax(priors / 10): CV-DD's on CIFAR-10 (newer_methods.md 12.6)
    prior = labels.read("prior:63*lenet+65.3*mlp+68.5*alexnet+67.6*resnet18+67.4*vgg11")
    np.testing.assert_allclose(prior.weights, [0.140279, 0.176556, 0.243140, 0.222213, 0.217813], atol=1e-6)
    assert prior.rule == "teacher"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soft", "cannot read the labels 'soft'"),
        ("hrad", "did you mean 'hard'"),
        ("hard:lenet", "write hard, own"),
        ("teacher:lenett", "lenet"),
        ("teacher:lenet+lenet", "name a network twice"),
        ("teacher:0.5*lenet+mlp", "1 numbers for 2 networks"),
        ("prior:lenet+mlp", "0 numbers for 2 networks"),
        ("teacher:x*lenet", "cannot read 'x'"),
        ("teacher:nan*lenet", "nan in the labels"),
        ("teacher:-1*lenet+2*mlp", "weigh a network by -1"),
        ("teacher:0*lenet", "not all 0"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message.replace("*", r"\*")) as found:
        labels.read(text)
    assert "\n" not in str(found.value)


def config(**changes):
    own = distillers.DM(batch_size=4, augmentation="none")
    plain = {"eval_augmentation": "none", "pretrain_augmentation": "none", "wrapped": False}
    small = plain | {"backbone": "mlp:width=6", "seen": (), "unseen": ("mlp:width=8",)}
    return options.DistillConfig(**small | {"own": own, "distill_seeds": 1, "train_seeds": 1} | changes)


def test_nothing_said_is_what_the_recipe_is_published_with():
    assert recipes.labels(config()).rule == "own"
    for recipe in ("sre2l_cifar", "rded", "rded_factor2"):
        assert recipes.labels(config(eval_recipe=recipe)).rule == "teacher"
    assert recipes.labels(config(eval_recipe="sre2l_tiny", eval_labels="hard")).rule == "hard"
    checks.check_options(config(eval_recipe="sre2l_tiny", eval_labels="hard"))
    checks.check_options(config(eval_recipe="sre2l_cifar", eval_labels="teacher:mlp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_recipe": "sre2l_cifar"}, "sre2l_cifar wants the labels of a teacher, and dm has none: .* teacher:NET"),
        ({"eval_labels": "teacher"}, "--eval-labels teacher wants .* or take --method rded or sre2l"),
    ],
)
def test_labels_that_nobody_can_give_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        checks.check_options(config(**changes))


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    rng, target = np.random.default_rng(0), np.repeat([0, 1, 2], 8)
    images = (rng.integers(0, 120, (24, 8, 8, 1)) + 60 * target[:, None, None, None]).astype(np.uint8)
    file = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(file, images=images, labels=target, test_images=images[::3], test_labels=target[::3])
    return file


@pytest.fixture
def job_of(data_file, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "open_cache", lambda folder: None)  # JAX's own is this process's

    def ask(**changes):
        places = {"dataset": data_file, "cache_dir": data_file.parent, "run_dir": tmp_path / "run"}
        settings = {name: str(path) for name, path in places.items()}
        return prepare.open_job(config(**settings, pretrain_epochs=1, eval_epochs=3, plan=True, **changes))

    return ask


def test_every_row_of_a_table_learns_from_the_same_committee(job_of, capsys):
    """A set whose own labels are wrong is judged as one whose labels are right; the rows name the very weights."""
    job = job_of(eval_labels="teacher:0.25*mlp:width=8+0.75*mlp:width=4")
    trained = {net.label: one for net in job.networks for one in common.pretrain(
        [net], job.dataset, recipes.pretraining(job.config), job.cache
    )}  # fmt: skip
    teachers = stages.label_teachers(job, trained)
    assert teachers[0] is trained["mlp:width=8"] and teachers[1].net.label == "mlp:width=4"
    real = mdd.evaluation.random_real(jax.random.key(0), job.dataset, 2)
    wrong = dataclasses.replace(real, labels=(np.asarray(real.labels) + 1) % 3)
    rows = stages.judge(job, {"right": [real], "wrong": [wrong]}, teachers)
    assert [row["accuracies"] for row in rows[:2]] == [row["accuracies"] for row in rows[2:]]
    (told,) = {row["labels"] for row in rows}
    assert told.startswith("teacher:0.25*mlp:width=8+0.75*mlp:width=4 ")
    said = results.labels_of(job, rows, {"right": [real], "wrong": [wrong]}, teachers)
    assert said["rule"] == told and told in said["note"] and [one["weight"] for one in said["teachers"]] == [0.25, 0.75]
    other = job_of(eval_labels="teacher:0.5*mlp:width=8+0.5*mlp:width=4")
    again = labels.told(recipes.labels(other.config), labels.join(recipes.labels(other.config), teachers), {})
    assert again.split()[-1] != told.split()[-1]
    capsys.readouterr()


def test_a_teacher_of_the_backbones_name_is_trained_as_all_networks_are(job_of, monkeypatch):
    """SRe2L's squeeze is another training: its weights must not stand for the named teacher."""
    net = "convnet_bn:width=4,depth=1"
    job = job_of(
        method="sre2l", own=distillers.SqueezeRecover(squeeze_epochs=1), backbone=net, eval_labels=f"teacher:{net}"
    )
    squeezed = mdd.training.Trained(job.backbone, {}, 0.5, False, recipe=recipes.backbone(job.config))
    asked = []
    monkeypatch.setattr(common, "pretrain", lambda nets, data, recipe, *_, **__: asked.append((nets, recipe)) or [
        mdd.training.Trained(net, {}, 0.6, False, recipe=recipe) for net in nets
    ])  # fmt: skip
    (teacher,) = stages.label_teachers(job, {net: squeezed})
    assert teacher.accuracy == 0.6 and asked == [([job.backbone], recipes.pretraining(job.config))]
    own = dataclasses.replace(job, config=dataclasses.replace(job.config, eval_labels="teacher"))
    assert stages.label_teachers(own, {net: squeezed}) == [squeezed]


def test_own_labels_without_a_soft_one_are_hard_labels():
    hard = mdd.SyntheticSet(np.zeros((2, 8, 8, 1), np.float32), np.array([0, 1]))
    soft = dataclasses.replace(hard, soft_labels=np.eye(2, dtype=np.float32))
    own = labels.Labels("own")
    assert labels.told(own, None, {"dm": [hard]}) == "hard"
    assert labels.told(own, None, {"dm": [hard], "tesla": [soft]}) == "own"
    assert labels.told(labels.Labels("hard"), None, {"tesla": [soft]}) == "hard"
    note = labels.note("own", {"random": [hard], "tesla": [soft]})
    assert "soft in tesla" in note and "hard in random: such rows are not under equal labels" in note
    assert "hard in" not in labels.note("own", {"tesla": [soft]})


def test_rows_under_different_labels_do_not_share_a_table():
    def rows(name, told):
        table = [mdd.evaluation.Row("mlp", (0.5, 0.6))]
        return report.rows_of(name, 0, table, {"mlp": "same"}, labels=told)

    mixed = rows("dm", "hard") + rows("sre2l", "teacher:lenet 12345678")
    for function in (report.table_lines, lambda rows: report.compare(rows, "dm", "sre2l")):
        with pytest.raises(ValueError, match="dm was judged under the labels 'hard' and sre2l under 'teacher:lenet"):
            function(mixed)
    report.table_lines(rows("dm", "hard") + rows("sre2l", "hard"))


def test_a_plan_counts_those_who_label(job_of):
    entry = [plan.Plan("dm", 1e9, 1.0, ())]
    bare, taught = (plan._stages(job_of(eval_labels=text), entry) for text in ("hard", "teacher:mlp:width=4"))
    job = job_of()
    teacher = mdd.zoo.parse("mlp:width=4", 3, (8, 8, 1))
    forward = plan.forward_flops(teacher) / 1e9 / 3600
    assert taught["pretrain"] - bare["pretrain"] == pytest.approx(24 * 3 * forward)
    shown = 3 * 3 * sum(job.counts) * len(job.networks)  # 3 sets, 3 passes
    assert taught["judge"] - bare["judge"] == pytest.approx(shown * forward)
    assert jnp.isfinite(forward)
