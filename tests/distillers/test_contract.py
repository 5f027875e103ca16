"""One suite for all distillation methods: what ``Distiller`` promises, whoever the member is."""

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from metadd_jax import distillers, parallel, storage

STEPS = 2

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
)


def fresh(state):
    """A copy: the compiled steps consume the state that they are given."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def padding_of(batch):
    """Which real images only fill up a small class, [K, b] each; {} for a method that reads no images."""
    names = [name for name in ("images", "statistics") if name in batch] if isinstance(batch, dict) else []
    return {name: batch["weights" if name == "images" else f"{name}_weights"] == 0 for name in names}


def painted(method):
    """The method over ``(data, white)``: where ``white``, what fills up a small class is white."""

    def sample(key, data, step, *, axis_name=None):
        batch = method.sample(key, data[0], step, axis_name=axis_name)
        padding = padding_of(batch)
        white = {name: (data[1] & own)[..., None, None, None] for name, own in padding.items()}
        return {**batch, **{name: jnp.where(own, 255, batch[name]) for name, own in white.items()}} if white else batch

    return method._replace(sample=sample)


class Member:
    """A method with its first state and its compiled chunk, made once for the whole suite."""

    def __init__(self, made, dataset, *, one_device, counts):
        self.method, self.tx = made
        self.dataset, self.one_device, self.counts, self.traces = dataset, one_device, counts, 0
        self.start = distillers.init_state(jax.random.key(0), self.method, self.tx, dataset)
        self.chunk = self.compile("jit")
        self.first, self.metrics = self.run(self.start)
        self.second, _ = self.run(self.first)

    def compile(self, mode):
        def make(axis_name):
            update = distillers.make_update(painted(self.method), self.tx, axis_name=axis_name)

            def counted(*arguments):
                self.traces += 1
                return update(*arguments)

            return counted

        steps = parallel.compile_steps(make, steps=STEPS, mode=mode)
        # One program for the data as they are and for those with white padding.
        return lambda state, data, frozen, white=False: steps(state, (data, np.array(white)), frozen)

    def run(self, state, chunk=None, **painting):
        return (chunk or self.chunk)(fresh(state), self.dataset.train, self.method.frozen, **painting)

    def images(self, state):
        return np.asarray(self.method.synthetic(state).images)


# What differs from a quick member in one switch, or puts together two that are quick.
SLOW = (
    "controls over dm",
    "metadd per step",
    "metadd over dsa",
    "dc, running statistics",
    "dc, another ipc in each class",
    "tesla, soft labels, raw rate",
    "metadd around sre2l",
    "metadd around sre2l, a committee",
    "datm_tesla, hard labels",
    "metadd over datm",
    "metadd over idc, factor 2",
    "metadd over dm, factor 2",
    "dc, a pool",
    "metadd over ncfm",
    "dc, styles",
    "dsa, styles",
    "mtt, styles",
    "metadd over dm, styles",
    "dc, ModelPool",
    "metadd over dsa, ModelPool",
    "metadd over dc over two networks",
    "dm, styles of a decoder",
)
PARAMS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in members.MEMBERS]


@pytest.fixture(scope="module", params=PARAMS)
def member(request, tiny, auxiliaries):
    name = request.param
    batch_norm = name in ("dm batch norm", "dm, another ipc in each class")
    return Member(members.make(name, auxiliaries, tiny), tiny, one_device=batch_norm, counts=members.counts(name))


def assert_same_bits(a, b):
    def raw(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(raw(x), raw(y))


def test_metrics_are_finite_and_stacked_by_step(member):
    assert {"loss", "gradient_norm"} <= set(member.metrics)
    for name, values in member.metrics.items():
        assert values.shape == (STEPS,), name
        assert np.isfinite(values).all(), name
    assert (member.metrics["loss"] > 0).all()
    assert int(member.second.step) == 2 * STEPS


def test_the_gradient_reaches_every_image(member):
    moved = np.abs(member.images(member.first) - member.images(member.start))
    assert (moved.max(axis=(1, 2, 3)) > 0).all()


def test_what_fills_up_a_small_class_moves_nothing(member):
    """The rows of weight 0 are painted white: the steps stay what they were, to the bit."""
    batch = jax.jit(member.method.sample)(jax.random.key(2), member.dataset.train, member.start.step)
    assert padding_of(batch) or all(leaf.dtype != jnp.uint8 for leaf in jax.tree.leaves(batch))  # no pixels
    assert all(padding.any() for padding in padding_of(batch).values())
    assert_same_bits(member.run(member.start, white=True), (member.first, member.metrics))


def test_the_structure_of_the_state_never_changes(member):
    def description(state):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), state)

    assert description(member.start) == description(member.second)


def test_the_set_is_class_major_float32(member):
    made = member.method.synthetic(member.second)
    assert made.images.shape == (sum(member.counts), 8, 8, 1) and made.images.dtype == jnp.float32
    np.testing.assert_array_equal(made.labels, np.repeat([0, 1, 2], member.counts))
    assert made.labels.dtype == jnp.int32


def test_nothing_is_traced_or_compiled_again(member):
    state = fresh(member.first)
    traces, compilations = member.traces, len(compiled)
    state, _ = member.chunk(state, member.dataset.train, member.method.frozen)
    member.chunk(state, member.dataset.train, member.method.frozen)
    assert member.traces == traces
    assert len(compiled) == compilations


def test_one_key_gives_one_result_and_another_key_another(member):
    again = distillers.init_state(jax.random.key(0), member.method, member.tx, member.dataset)
    assert_same_bits(again, member.start)
    assert_same_bits(member.run(again), (member.first, member.metrics))
    other, _ = member.run(member.start.replace(key=jax.random.key(5)))
    assert not np.array_equal(member.images(other), member.images(member.first))


def test_a_state_saved_in_the_middle_goes_on_bit_for_bit(member, tmp_path):
    storage.save_tree(tmp_path / "middle", member.first)
    restored = storage.restore_tree(tmp_path / "middle", member.start)
    assert_same_bits(restored, member.first)
    assert_same_bits(member.run(restored)[0], member.second)


MORE = [("sharded", 4), ("pmap", 1), ("pmap", 2)]
MANY = [("pmap", 4), *(pytest.param(*other, marks=pytest.mark.slow) for other in MORE)]


@pytest.mark.parametrize(("mode", "devices"), MANY)
def test_many_devices_compute_what_one_computes(member, mode, devices, monkeypatch):
    used = jax.devices()[:devices]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda: used)
    chunk = member.compile(mode)
    if member.one_device and mode == "pmap":
        with pytest.raises(ValueError, match=r"batch-norm network.*one device"):
            member.run(member.start, chunk)
        return
    first, metrics = member.run(member.start, chunk)
    images, compilations = member.images(first), len(compiled)
    second, _ = chunk(first, member.dataset.train, member.method.frozen)
    assert len(compiled) == compilations
    np.testing.assert_allclose(metrics["loss"], member.metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(images, member.images(member.first), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(member.images(second), member.images(member.second), rtol=1e-3, atol=1e-4)
    assert int(second.step) == 2 * STEPS


def test_a_killed_run_ends_like_one_never_killed(member, tmp_path):
    def run(steps, directory):
        config = distillers.RunConfig(steps=steps, chunk=STEPS, save_every=STEPS, device_mode="jit")
        return distillers.distil(
            1,
            member.method,
            member.tx,
            member.dataset,
            config,
            directory=directory,
            chunk_of=lambda length: member.chunk,
        )

    run(4, tmp_path / "broken")
    broken, whole = run(8, tmp_path / "broken"), run(8, None)
    assert int(whole.step) == 8
    assert_same_bits(broken, whole)
