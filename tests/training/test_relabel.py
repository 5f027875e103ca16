"""A teacher's labels: the loss by hand, training against NumPy, and stored labels against those asked for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import provenance, training, zoo
from metadd_jax.structs import Auxiliary
from metadd_jax.training import batches, recipes, relabel

K, SHAPE = 3, (4, 4, 1)
RNG = np.random.default_rng(1)
IMAGES = RNG.normal(size=(5, *SHAPE)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])
START, TAUGHT = (
    {"w": RNG.normal(size=(16, K)).astype(np.float32) / 2, "b": RNG.normal(size=K).astype(np.float32)} for _ in range(2)
)
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Softmax regression that always starts from the same weights."""

    num_classes: int = K
    has_batch_stats: bool = False

    def init(self, key):
        return {"params": jax.tree.map(jnp.asarray, START)}

    def apply(self, variables, images):
        params = variables["params"]
        return images.reshape(len(images), -1) @ params["w"] + params["b"], {}

    def apply_train(self, variables, images, weights=None):
        return *self.apply(variables, images), {}


def teacher(preprocess=None):
    variables = {"params": jax.tree.map(jnp.asarray, TAUGHT)}
    return Auxiliary(variables=variables, map_eps={}, net=Linear(), preprocess=preprocess)


def softmax(z):
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def by_hand(shown, temperature, rate, seen=None):
    """Gradient descent on KL(teacher || student) over batches of images, in float64."""
    w, b = START["w"].astype(np.float64), START["b"].astype(np.float64)
    for batch in shown:
        x = np.asarray(batch, np.float64).reshape(len(batch), -1)
        target = softmax(((seen or np.asarray)(x) @ TAUGHT["w"] + TAUGHT["b"]) / temperature)
        error = (softmax((x @ w + b) / temperature) - target) / temperature / len(x)
        w, b = w - rate * x.T @ error, b - rate * error.sum(0)
    return {"w": w, "b": b}


def assert_close(params, expected, tolerance=1e-5):
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=tolerance, atol=tolerance)


def fit(recipe, *, labels=LABELS, shared_key=KEY, **taught):
    def train(taught):
        return training.fit(KEY, Linear(), IMAGES, labels, recipe, shared_key=shared_key, **taught)["params"]

    return jax.jit(train)({"teacher": teacher()} | taught)


PLAIN = recipes.Recipe(epochs=3, batch_size=5, learning_rate=0.5, momentum=0.0, weight_decay=0.0, temperature=2.0)


def test_the_divergence_in_numbers():
    """p = softmax(1, 0) = (.731059, .268941) against (1/2, 1/2): sum p log 2p; no factor T^2 = 4."""
    value = relabel.divergence(jnp.array([[2.0, 0.0]]), jnp.zeros((1, 2)), 2.0)
    np.testing.assert_allclose(value, [0.1109439], rtol=1e-5)
    assert float(relabel.divergence(jnp.array([[2.0, 0.0]]), jnp.array([[5.0, 3.0]]), 2.0)[0]) == pytest.approx(
        0, abs=1e-6
    )
    backwards = relabel.divergence(jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]]), 2.0)
    np.testing.assert_allclose(backwards, [0.1201145], rtol=1e-5)  # it is not symmetric
    with pytest.raises(ValueError, match=r"teacher logits \(1, 3\) and student logits \(1, 2\) must agree"):
        relabel.divergence(jnp.zeros((1, 3)), jnp.zeros((1, 2)), 1.0)


@pytest.mark.parametrize(("temperature", "expected"), [(20.0, 0.00255924), (1.0, 0.912983)])
def test_the_divergence_is_that_of_rdeds_vectors(temperature, expected):
    """newer_methods.md 12.1: batchmean without T squared; with it the first is 1.023696."""
    teacher, student = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(relabel.divergence(teacher, student, temperature), [expected], rtol=2e-5)


def test_training_follows_the_teacher_and_not_the_labels():
    params = fit(PLAIN)
    assert_close(params, by_hand([IMAGES] * 3, 2.0, 0.5))
    assert_close(fit(PLAIN, labels=LABELS[::-1].copy()), params, 0)
    other = fit(dataclasses.replace(PLAIN, temperature=4.0))
    assert_close(other, by_hand([IMAGES] * 3, 4.0, 0.5))


def test_the_loss_may_be_multiplied_by_the_temperature_squared():
    """SGD: a step size T^2 times as large. Adam would not see it, and weight decay is no part of the loss."""
    scaled = dataclasses.replace(PLAIN, temperature_squared=True)
    assert_close(fit(scaled), by_hand([IMAGES] * 3, 2.0, 0.5 * 2.0**2))


def test_a_step_with_the_temperature_squared_is_torchs():
    """KLDivLoss(batchmean, log_target) * T^2 under SGD with momentum and decay, as in SRe2L's Tiny-ImageNet program."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    recipe = dataclasses.replace(PLAIN, temperature=20.0, temperature_squared=True, momentum=0.9, weight_decay=1e-4)
    x = torch.tensor(IMAGES.reshape(5, -1))
    told = x @ torch.tensor(TAUGHT["w"]) + torch.tensor(TAUGHT["b"])
    params = {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}
    optimiser = torch.optim.SGD(params.values(), lr=0.5, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        answer = functional.log_softmax((x @ params["w"] + params["b"]) / 20, dim=1)
        target = functional.log_softmax(told / 20, dim=1)
        loss = functional.kl_div(answer, target, reduction="batchmean", log_target=True) * 20**2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert_close(fit(recipe), {name: value.detach().numpy() for name, value in params.items()})


def test_the_teacher_sees_through_its_preprocessing():
    params = fit(PLAIN, teacher=teacher(preprocess=_double))
    assert_close(params, by_hand([IMAGES] * 3, 2.0, 0.5, seen=_double))


def _double(x):
    return 2 * x


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_labels_are_those_of_the_mixed_images(mix):
    recipe = dataclasses.replace(PLAIN, mix=mix, flip=True)

    @jax.jit
    def batch(step):
        (order,), _ = batches.epoch_order(KEY, step, 5, 5)
        return batches.view(KEY, step, jnp.asarray(IMAGES)[order], recipe, shared_key=KEY)

    shown = [batch(step) for step in range(3)]
    views = np.concatenate([IMAGES, IMAGES[:, :, ::-1]])
    assert not all(np.isclose(image, views, atol=1e-6).all((1, 2, 3)).any() for image in np.concatenate(shown))
    assert_close(fit(recipe), by_hand(shown, 2.0, 0.5))


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_without_a_teacher_the_labels_are_mixed_as_the_pixels_are(mix):
    """Against gradient descent in NumPy; about half of the batches are mixed."""
    recipe = dataclasses.replace(PLAIN, mix=mix, mix_probability=0.5, epochs=14)
    w, b = START["w"].astype(np.float64), START["b"].astype(np.float64)
    mixed = 0
    for step in range(14):
        (order,), _ = batches.epoch_order(KEY, step, 5, 5)
        how = jax.tree.map(np.asarray, batches.mixture(KEY, step, 5, (4, 4), recipe))
        own, images, targets = how.share.mean(), IMAGES[order].astype(np.float64), np.eye(K)[LABELS[np.asarray(order)]]
        mixed += own < 1
        share = how.share[:, :, None]
        x = (share * images + (1 - share) * images[how.partner]).reshape(5, -1)
        error = (softmax(x @ w + b) - own * targets - (1 - own) * targets[how.partner]) / 5
        w, b = w - 0.5 * x.T @ error, b - 0.5 * error.sum(0)
    assert 0 < mixed < 14
    recipe = dataclasses.replace(recipe, learning_rate=0.5)
    assert_close(fit(recipe, teacher=None), {"w": w, "b": b})


def other_teacher():
    moved = {"params": {"w": jnp.asarray(TAUGHT["w"][::-1] * 2), "b": jnp.asarray(TAUGHT["b"] - 1)}}
    return teacher().replace(variables=moved)


def test_a_committee_labels_by_the_weighted_mean_of_its_logits():
    """Of linear teachers that is the linear teacher of the mean weights, computed apart."""
    both = training.committee([teacher(), other_teacher()], weights=[1, 3])
    w, b = 0.25 * TAUGHT["w"] + 0.75 * TAUGHT["w"][::-1] * 2, 0.25 * TAUGHT["b"] + 0.75 * (TAUGHT["b"] - 1)
    mean = Auxiliary(variables={"params": {"w": jnp.asarray(w), "b": jnp.asarray(b)}}, map_eps={}, net=Linear())
    mixed = dataclasses.replace(PLAIN, mix="cutmix", flip=True)
    assert_close(fit(mixed, teacher=both), {name: np.asarray(x) for name, x in fit(mixed, teacher=mean).items()})
    logits = relabel.teacher_logits(training.committee([teacher(), other_teacher()]), jnp.asarray(IMAGES))
    x = IMAGES.reshape(5, -1).astype(np.float64)
    expected = x @ (TAUGHT["w"] + 2 * TAUGHT["w"][::-1]) / 2 + TAUGHT["b"] - 0.5
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_committees_labels_can_be_stored_and_are_known_by_its_shares(tmp_path):
    first, second = (training.committee([teacher(), other_teacher()], weights=w) for w in ([1, 3], [3, 1]))
    relabel.store(KEY, tmp_path / "logits.npy", IMAGES, PLAIN, first, shared_key=KEY)
    rows = np.sort(np.load(tmp_path / "logits.npy"), axis=1)
    expected = np.sort(relabel.teacher_logits(first, jnp.asarray(IMAGES)).astype(np.float16), axis=0)
    np.testing.assert_allclose(rows, [expected] * 3, atol=2e-3)
    with pytest.raises(ValueError, match="another teacher"):
        relabel.open_stored(KEY, tmp_path / "logits.npy", IMAGES, PLAIN, shared_key=KEY, teacher=second)


@pytest.mark.parametrize(
    ("members", "weights", "message"),
    [
        (0, None, "at least one"),
        (2, [1.0], "one number from 0 each"),
        (2, [-1.0, 2.0], "from 0"),
        (2, [0, 0], "not all 0"),
    ],
)
def test_committees_that_are_none_are_refused(members, weights, message):
    with pytest.raises(ValueError, match=message):
        training.committee([teacher()] * members, weights=weights)


def test_weights_of_priors_are_cv_dds():
    """softmax(prior / 5) in recovery, / 10 in labelling (newer_methods.md 12.6)."""
    vectors = [
        ((63, 65.3), 5, (0.386986, 0.613014)),
        ((68.5, 67.6), 5, (0.544879, 0.455121)),
        ((64, 51.6), 5, (0.922728, 0.077272)),
        ((56.4, 42.3), 5, (0.943747, 0.056253)),
        ((63, 65.3, 68.5, 67.6, 67.4), 10, (0.140279, 0.176556, 0.243140, 0.222213, 0.217813)),
        ((56.4, 42.3, 52.5, 44.2, 40.6), 10, (0.412813, 0.100785, 0.279498, 0.121875, 0.085029)),
    ]
    for priors, temperature, expected in vectors:
        np.testing.assert_allclose(training.prior_weights(priors, temperature), expected, atol=1e-6)
    for priors, temperature, name in (((1, np.nan), 5, "priors"), ((1, 2), 0, "temperature")):
        with pytest.raises(ValueError, match=name):
            training.prior_weights(priors, temperature)


def test_the_teacher_is_in_evaluation_mode():
    net = zoo.parse("convnet_bn:width=2,depth=1", 3, (8, 8, 1))
    variables = net.init(KEY)
    images = jax.random.normal(KEY, (4, 8, 8, 1))
    auxiliary = Auxiliary(variables=variables, map_eps={}, net=net)
    ask = jax.jit(relabel.teacher_logits)
    together, alone = ask(auxiliary, images), jnp.concatenate([ask(auxiliary, image[None]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_a_teacher_in_training_mode_uses_the_statistics_of_the_batch_without_its_filling():
    net = zoo.parse("convnet_bn:width=2,depth=1", 3, (8, 8, 1))
    auxiliary = Auxiliary(variables=net.init(KEY), map_eps=jnp.ones(()), net=net)
    images = 2 + jax.random.normal(KEY, (4, 8, 8, 1))
    weights = jnp.array([1.0, 1, 1, 0])
    asked = relabel.teacher_logits(auxiliary, images, mode="training", weights=weights)[:3]
    np.testing.assert_allclose(asked, net.apply_batch(auxiliary.variables, images[:3])[0], rtol=1e-4, atol=1e-5)
    assert np.abs(asked - relabel.teacher_logits(auxiliary, images)[:3]).max() > 0.1


def test_views_are_shifts_mirrors_and_mixtures_of_the_images():
    images = np.random.default_rng(3).normal(size=(120, 8, 8, 1)).astype(np.float32)
    view = functools.partial(batches.view, KEY, jnp.int32(1), shared_key=KEY)
    np.testing.assert_array_equal(view(images, PLAIN), images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))  # an eighth of 8 pixels
    shifted = np.asarray(view(images, dataclasses.replace(PLAIN, crop="shift")))
    places = [
        [(i, j) for i in range(3) for j in range(3) if (padded[n, i : i + 8, j : j + 8] == shifted[n]).all()]
        for n in range(120)
    ]
    assert all(len(found) == 1 for found in places) and len({found[0] for found in places}) == 9
    flipped = np.asarray(view(images, dataclasses.replace(PLAIN, flip=True)))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == images).all(axis=(1, 2, 3))).all() and 40 < mirrored.sum() < 80
    resized = np.asarray(view(images, dataclasses.replace(PLAIN, crop="resized")))
    assert resized.shape == images.shape and (np.abs(resized) <= np.abs(images).max((1, 2, 3), keepdims=True)).all()
    assert len({float(x) for x in resized.std((1, 2, 3))}) == 120


MIXED = recipes.Recipe(epochs=3, batch_size=2, learning_rate=0.3, temperature=3.0, mix="cutmix", flip=True)
SHARED = jax.random.key(8)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "logits.npy"
    return path, relabel.store(KEY, path, IMAGES, MIXED, teacher(), shared_key=SHARED)


def test_stored_labels_are_the_teachers_opinion_of_each_batch(stored):
    path, _ = stored
    rows = np.load(path)
    assert rows.dtype == np.float16 and rows.shape == (3, 5, K)
    for epoch in range(3):
        order = batches.epoch_order(KEY, epoch, 5, 2)
        shown = [
            batches.view(
                KEY, 3 * epoch + place, jnp.asarray(IMAGES)[indices], MIXED, shared_key=SHARED, weights=weights
            )
            for place, (indices, weights) in enumerate(zip(*order, strict=True))
        ]
        expected = np.concatenate(shown)[:5].reshape(5, -1) @ TAUGHT["w"] + TAUGHT["b"]
        np.testing.assert_allclose(rows[epoch], expected, rtol=2e-3, atol=2e-3)


def test_training_on_stored_labels_is_training_with_the_teacher(stored):
    """To half precision, ragged batches and mixing included; the stored keys rule over the student's."""
    path, labels = stored
    asked = fit(MIXED, shared_key=SHARED)
    assert_close(fit(MIXED, teacher=labels), asked, 2e-3)
    opened = relabel.open_stored(KEY, path, IMAGES, MIXED, shared_key=SHARED)
    students = jax.jit(
        jax.vmap(
            lambda key, taught: training.fit(key, Linear(), IMAGES, LABELS, MIXED, shared_key=key, teacher=taught),
            in_axes=(0, None),
        )
    )(jax.random.split(jax.random.key(5), 2), opened)["params"]
    for student in range(2):  # other keys, but Linear starts from the same weights
        assert_close({name: value[student] for name, value in students.items()}, asked, 2e-3)
    assert np.abs(asked["w"] - fit(MIXED, shared_key=SHARED, teacher=teacher(_double))["w"]).max() > 0.02


def test_the_size_of_stored_labels_is_known_before():
    assert relabel.stored_bytes(50_000, 300, 1000) == 30 * 10**9


def test_stored_labels_of_another_training_are_refused(stored, monkeypatch):
    path, _ = stored
    whole = path.read_bytes()

    def opened(key=KEY, images=IMAGES, recipe=MIXED, shared_key=SHARED, path=path, **options):
        return relabel.open_stored(key, path, images, recipe, shared_key=shared_key, **options)

    opened(teacher=teacher())
    with pytest.raises(ValueError, match="another teacher"):
        opened(teacher=teacher(_double))
    with pytest.raises(ValueError, match="another constants"):
        opened(mean=[0.5], std=[0.25])
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="another sources"):
        patch.setattr(provenance, "sources", lambda *places: "other")
        opened()

    with pytest.raises(ValueError, match="another key"):
        opened(key=jax.random.key(1))
    with pytest.raises(ValueError, match="another shared_key"):
        opened(shared_key=KEY)
    with pytest.raises(ValueError, match="another images"):
        opened(images=IMAGES[::-1])
    with pytest.raises(ValueError, match="another recipe"):
        opened(recipe=dataclasses.replace(MIXED, flip=False))
    with pytest.raises(ValueError, match="is missing; write the labels"):
        opened(path=path.with_name("none"))
    with pytest.raises(ValueError, match="exists and is left as it is"):
        relabel.store(KEY, path, IMAGES, MIXED, teacher(), shared_key=SHARED)
    assert path.read_bytes() == whole
    path.unlink()  # as a kill between the two files leaves it
    relabel.store(KEY, path, IMAGES, MIXED, teacher(), shared_key=SHARED)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        opened()
    path.write_bytes(whole)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=r"the labels take .* GB, but"):
        relabel.store(KEY, path.with_name("new"), IMAGES, MIXED, teacher(), shared_key=SHARED)
