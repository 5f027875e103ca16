"""NCFM against stored numbers, NumPy and a PyTorch program of one step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import distillers, keys, zoo
from metadd_jax.distillers import frequencies
from metadd_jax.training.trajectories import flatten, unflatten

REAL, OWN = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[1.0, 1.0]])
T = np.array([[1.0, 2.0], [-0.5, 0.3], [3.0, 0.0]])
NET = zoo.parse("convnet:width=4,depth=1", 3, (8, 8, 1))
PLAIN = {"ipc": 2, "batch_size": 8, "frequencies": 16, "augmentation": "none"}


def phi(rows):
    rows = frequencies.unit(jnp.asarray(rows, jnp.float32))
    return frequencies.characteristic(rows, jnp.asarray(T, jnp.float32), jnp.full(len(rows), 1 / len(rows)))


def test_characteristic_functions_in_numbers():
    np.testing.assert_allclose(phi(REAL), [[-0.502324, 0.976769, 0.386399], [0.858897, 0.117778, 0.486924]], atol=2e-6)
    np.testing.assert_allclose(phi(OWN), [[-0.523134, 0.990017, -0.523134], [0.852251, -0.140950, 0.852251]], atol=2e-6)


@pytest.mark.parametrize(
    ("amplitude", "phase", "value"), [(0.5, 0.5, 89.171327), (0.8, 0.2, 65.434514), (0.2, 0.8, 107.676552)]
)
def test_the_distance_in_numbers(amplitude, phase, value):
    assert float(300 * frequencies.distance(phi(REAL), phi(OWN), amplitude, phase)) == pytest.approx(value, rel=1e-5)


def test_equal_sides_leave_the_floor_of_the_root_and_no_gradient():
    same = phi(REAL)
    value, slope = jax.value_and_grad(lambda own: 300 * frequencies.distance(same, own, 0.5, 0.5))(same)
    assert float(value) == pytest.approx(2.1213e-4, rel=1e-4)
    np.testing.assert_array_equal(slope, 0.0)
    zero = jnp.zeros((2, 3))
    assert np.isfinite(jax.grad(lambda own: frequencies.distance(same, own, 0.5, 0.5))(zero)).all()


def test_with_equal_weights_the_distance_is_the_mean_distance_of_complex_numbers():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 50))
    expected = np.abs((a[0] + 1j * a[1]) - (b[0] + 1j * b[1])).mean() / np.sqrt(2)
    assert float(frequencies.distance(jnp.asarray(a), jnp.asarray(b), 0.5, 0.5)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def pool():
    return np.random.default_rng(0).normal(0, 0.3, (3, 2, NET.num_params())).astype(np.float32)


def step_of(method, dataset, key=0):
    """The state before an update, its batch, and the keys that the update would use."""
    state = distillers.init_state(jax.random.key(key), method, optax.sgd(0.1), dataset)
    aux = method.refresh(jax.random.key(1), state.synthetic, state.aux, state.step, method.frozen)
    return state.synthetic, aux, method.sample(jax.random.key(2), dataset.train, state.step)


def test_a_step_uses_one_network_on_the_line_between_start_and_end(pool):
    """Uniform over the pool and over the line, against 2,000 draws; each bound fails by chance once in 10,000."""
    method = distillers.ncfm(NET, pool, **PLAIN)
    every = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda key: method.refresh(key, None, {}, 0, method.frozen))(every)
    np.testing.assert_allclose(np.bincount(drawn["network"]) / 2000, 1 / 3, atol=0.042)
    assert float(drawn["share"].mean()) == pytest.approx(0.5, abs=0.026)
    assert float(drawn["share"].min()) >= 0 and float(drawn["share"].max()) < 1


def test_the_first_images_of_each_class_or_a_draw(tiny, pool):
    first = distillers.ncfm(NET, pool, **PLAIN, first_images=True)
    for key in (0, 1):
        batch = first.sample(jax.random.key(key), tiny.train, 0)
        for label in range(3):
            shown = min(8, int(tiny.train.counts[label]))
            offset = int(tiny.train.offsets[label])
            np.testing.assert_array_equal(batch["images"][label, :shown], tiny.train.images[offset : offset + shown])
            np.testing.assert_array_equal(batch["weights"][label], np.arange(8) < shown)
    drawn = distillers.ncfm(NET, pool, **PLAIN).sample(jax.random.key(0), tiny.train, 0)
    assert not np.array_equal(drawn["images"], batch["images"])


def test_the_sampler_goes_up_where_the_images_go_down(tiny, pool):
    """A trained psi moves at every step and raises the loss of the step that it was trained on; a dead one stays."""
    method = distillers.ncfm(NET, pool, **PLAIN, sampler="trained", sampler_lr=1e-3, calibration=0.0)
    synthetic, aux, batch = step_of(method, tiny)
    loss = jax.jit(lambda aux: method.loss(jax.random.key(3), synthetic, aux, batch, method.frozen))
    before, (after, _) = loss(aux)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), aux["psi"], after["psi"])
    assert all(layer["kernel"] > 1e-4 for layer in moved)
    values = [float(before)]
    for _ in range(5):
        value, (aux, _) = loss(aux)
        values.append(float(value))
    assert values[-1] > values[0]
    dead = distillers.ncfm(NET, pool, **PLAIN, sampler="dead")
    synthetic, aux, batch = step_of(dead, tiny)
    _, (after, _) = dead.loss(jax.random.key(3), synthetic, aux, batch, dead.frozen)
    for old, new in zip(*map(jax.tree.leaves, (aux["psi"], after["psi"])), strict=True):
        np.testing.assert_array_equal(old, new)
    assert frequencies.draw(jax.random.key(0), 16, 64, aux["psi"], "dead").shape == (4, 64)


def test_the_optimiser_steps_in_pixels():
    """AdamW on p = x std + mean in NumPy: the decay pulls towards black, and no pixel leaves [0, 1]."""
    mean, std, rng = np.array([0.3, 0.6]), np.array([0.2, 0.5]), np.random.default_rng(0)
    p = rng.uniform(0, 1, (2, 3, 3, 2))
    tx = distillers.ncfm_optimiser(0.05, mean, std, weight_decay=0.3, patience=None)
    x = {"images": jnp.asarray((p - mean) / std, jnp.float32)}
    state, m, v = tx.init(x), 0.0, 0.0
    for t in range(1, 12):
        g = rng.normal(size=p.shape)
        updates, state = tx.update({"images": jnp.asarray(g * std, jnp.float32)}, state, x)
        x = optax.apply_updates(x, updates)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = np.clip(p - 0.05 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.3 * p), 0, 1)
    np.testing.assert_allclose(np.asarray(x["images"]) * std + mean, p, atol=1e-5)
    assert (p == 0).any() or (p == 1).any()


def test_the_rate_is_halved_after_a_plateau():
    """As torch.optim.lr_scheduler.ReduceLROnPlateau(factor=.5, patience=2) on the same losses."""
    tx = distillers.ncfm_optimiser(1.0, [0.0], [1.0], update="sgd", momentum=0.0, patience=2)
    x = {"images": jnp.full((1, 2, 2, 1), 0.5)}
    state, sizes, losses = tx.init(x), [], [5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    for loss in losses:
        updates, state = tx.update({"images": jnp.full((1, 2, 2, 1), 0.1)}, state, x, value=jnp.float32(loss))
        sizes.append(round(-float(updates["images"].mean()), 6))
    assert sizes == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda pool: distillers.ncfm(NET, pool[:, :1], **PLAIN), r"the pool has shape \(3, 1, \d+\), but convnet"),
        (
            lambda pool: distillers.ncfm(zoo.parse("convnet_bn:width=4,depth=1", 3, (8, 8, 1)), pool, ipc=1),
            "batch norm",
        ),
        (lambda pool: distillers.NCFM(amplitude=0.0, phase=0.0), "leave nothing to match"),
        (lambda pool: distillers.NCFM(sampler="psi"), "sampler='psi' must be one of gaussian, trained, dead"),
        (lambda pool: distillers.NCFM().check_pixels(zca=True), "leave zca out"),
        (lambda pool: distillers.NCFM().optimiser(1.0, 0.5, 1, None), "image_lr=1.0 is of AdamW on pixels"),
        (
            lambda pool: distillers.ncfm_optimiser(0.1, [0.0], [1.0], update="lion"),
            "update='lion' must be one of adamw",
        ),
    ],
)
def test_what_cannot_serve_is_refused_in_one_line(make, words, pool):
    with pytest.raises(ValueError, match=words) as found:
        make(pool)
    assert "\n" not in str(found.value)


# Three images a class and one network, of numbers that every program makes alike.
WAVE_NET = zoo.parse("convnet:width=3,depth=1", 2, (8, 8, 1))
FREQUENCIES, SHARE, LR = 8, 0.3, 0.05
MEAN, STD = 0.45, 0.25
# Printed by ``torch_step`` of this file (torch 2.13, float32).
STORED = {
    "loss": 98.201126,
    "gradient": np.array([4.43363, -25.005, -42.8415, 4.16196, 9.41155, 0.170447, 31.7083]),
    "images": np.array([0.0659165, 0.523846, 0.580271, 0.23493, 0.287571, 0.337948, 0.385827]),
}


def wave(shape, phase, size=0.5):
    return (size * np.sin(1.7 * np.arange(np.prod(shape)) + phase)).reshape(shape).astype(np.float32)


def wave_weights(phase):
    shapes = jax.tree.map(jnp.shape, unflatten(WAVE_NET, jnp.zeros(WAVE_NET.num_params())), is_leaf=None)
    tree = {
        layer: {name: wave(shape, phase + 3 * i + j) for j, (name, shape) in enumerate(sorted(leaves.items()))}
        for i, (layer, leaves) in enumerate(sorted(shapes.items()))
    }
    tree["norm1"]["scale"] += 1
    return tree


START, END = wave_weights(0.0), wave_weights(1.0)
OWN_IMAGES, REAL_IMAGES = wave((4, 8, 8, 1), 0.3, size=0.9), wave((2, 3, 8, 8, 1), 2.0, size=1.2)
DIRECTIONS = wave((2, FREQUENCIES, 48), 0.7, size=2.0)  # of each class


def our_step(monkeypatch):
    """(loss, gradient, images after the update) of two classes of two images, frequencies given."""
    known = jax.random.key_data(jax.random.split(keys.named(jax.random.key(0), "frequencies"), 2))

    def given(key, *settings):
        number = (known == jax.random.key_data(key)).all(axis=1).argmax()  # the class whose key it is
        return jnp.asarray(DIRECTIONS)[number]

    monkeypatch.setattr(frequencies, "draw", given)
    pool = np.stack([flatten(START), flatten(END)])[None]
    method = distillers.ncfm(WAVE_NET, pool, ipc=2, batch_size=3, augmentation="none", frequencies=FREQUENCIES)
    synthetic = {"images": jnp.asarray(OWN_IMAGES)}
    aux = {"network": jnp.int32(0), "share": jnp.float32(SHARE)}
    batch = {
        "images": jnp.asarray(REAL_IMAGES), "weights": jnp.ones((2, 3)), "mean": jnp.zeros(1), "std": jnp.ones(1)
    }  # fmt: skip

    def loss(synthetic):
        return method.loss(jax.random.key(0), synthetic, aux, batch, method.frozen)[0]

    value, gradient = jax.value_and_grad(loss)(synthetic)
    tx = distillers.ncfm_optimiser(LR, [MEAN], [STD])
    updates, _ = tx.update(gradient, tx.init(synthetic), synthetic, value=value)
    after = optax.apply_updates(synthetic, updates)
    return float(value), np.asarray(gradient["images"]), np.asarray(after["images"])


def torch_step():
    """The same by PyTorch's own layers, complex numbers and AdamW, on pixels."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def turned(tree):
        head = tree["head"]["kernel"].reshape(4, 4, 3, 2).transpose(3, 2, 0, 1).reshape(2, 48)
        arrays = [
            tree["conv1"]["kernel"].transpose(3, 2, 0, 1), tree["conv1"]["bias"],
            tree["norm1"]["scale"], tree["norm1"]["bias"], head, tree["head"]["bias"],
        ]  # fmt: skip
        return [torch.tensor(np.ascontiguousarray(array)) for array in arrays]

    def embedding(params, x):
        x = F.conv2d(x, params[0], params[1], padding=1)
        return F.avg_pool2d(torch.relu(F.group_norm(x, 3, params[2], params[3], eps=1e-5)), 2).flatten(1)

    def chw(images):
        return torch.tensor(np.ascontiguousarray(np.moveaxis(images, -1, -3)))

    line = [SHARE * a + (1 - SHARE) * b for a, b in zip(turned(START), turned(END), strict=True)]
    final = turned(END)
    # Embeddings are flattened channels first there, rows first here.
    places = np.arange(48).reshape(3, 4, 4).transpose(1, 2, 0).ravel()
    pixels = (chw(OWN_IMAGES) * STD + MEAN).requires_grad_(True)
    optimiser = torch.optim.AdamW([pixels], lr=LR, weight_decay=5e-4)
    loss = torch.zeros(())
    for c in range(2):
        own = (pixels[2 * c : 2 * c + 2] - MEAN) / STD
        t = torch.tensor(DIRECTIONS[c])
        phi = []
        for x in (chw(REAL_IMAGES[c]), own):
            f = F.normalize(embedding(line, x)[:, places], dim=1)
            angles = f @ t.T
            phi.append(torch.complex(torch.cos(angles).mean(0), torch.sin(angles).mean(0)))
        real, fake = phi[0].detach(), phi[1]
        amp = (real.abs() - fake.abs()) ** 2
        pha = 2 * (real.abs() * fake.abs() - real.real * fake.real - real.imag * fake.imag)
        loss = loss + 300 * torch.sqrt(0.5 * amp + 0.5 * pha.clamp(min=1e-12)).mean()
        logits = F.linear(embedding(final, own), final[4], final[5])
        loss = loss + F.cross_entropy(logits, torch.full((2,), c))
    loss.backward()
    gradient = pixels.grad.numpy() * STD  # in standardised images
    optimiser.step()
    after = (pixels.detach().clamp(0, 1).numpy() - MEAN) / STD
    return loss.item(), np.moveaxis(gradient, 1, -1), np.moveaxis(after, 1, -1)


def picked(images):
    return np.asarray(images).ravel()[::37]


def test_the_numbers_that_pytorch_gave(monkeypatch):
    loss, gradient, images = our_step(monkeypatch)
    assert loss == pytest.approx(STORED["loss"], rel=1e-4)
    np.testing.assert_allclose(picked(gradient), STORED["gradient"], rtol=1e-3, atol=1e-3 * np.abs(gradient).max())
    np.testing.assert_allclose(picked(images), STORED["images"], rtol=1e-3, atol=1e-3)


def test_pytorch_agrees(monkeypatch):
    ours, theirs = our_step(monkeypatch), torch_step()
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_the_products_with_the_frequencies_count_too():
    """2 T D for K b + 3 N images: T = 16, D = 64 of this network, K = 3, b = 8, N = 6."""
    own = distillers.NCFM(batch_size=8, frequencies=16)
    assert own.extra_flops(NET, (2, 2, 2)) == 2 * 16 * 64 * (3 * 8 + 3 * 6)
    trained = distillers.NCFM(batch_size=8, frequencies=16, sampler="trained")
    assert trained.extra_flops(NET, (2, 2, 2)) > own.extra_flops(NET, (2, 2, 2))
