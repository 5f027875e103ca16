"""The host loop on a method small enough to know every number: x goes to 0.8 x and tells its step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import data, distillers, keys, storage
from metadd_jax.distillers import NotFiniteError, RunConfig
from metadd_jax.structs import SyntheticSet

TX = optax.sgd(0.1)


def toy(bad_step=10**6, size=3):
    """Minimises |x|^2; its metrics are the step's number, the pool's pixel sum, and a term that may break."""

    def loss(key, synthetic, aux, batch, frozen, *, axis_name=None):
        term = jnp.where(aux["step"] >= bad_step, jnp.nan, 0.0)
        noise = 1e-3 * jax.random.normal(key)
        value = jnp.sum(synthetic["x"] ** 2) + noise * jnp.sum(synthetic["x"]) + term
        return value, (aux, {"loss_term": term, "number": aux["step"].astype(jnp.float32), "pool": batch})

    return distillers.Distiller(
        name="toy",
        init=lambda key, dataset: ({"x": jax.random.normal(key, (size,))}, {"step": jnp.int32(-1)}),
        sample=lambda key, arrays, step, *, axis_name=None: jnp.sum(jnp.asarray(arrays.images).astype(jnp.float32)),
        loss=loss,
        refresh=lambda key, synthetic, aux, step, frozen: {"step": step},
        decode=lambda synthetic, aux, frozen: SyntheticSet(images=synthetic["x"], labels=jnp.arange(size)),
    )


def config(**settings):
    return RunConfig(**{"steps": 8, "chunk": 2, "save_every": 4, "device_mode": "jit"} | settings)


@pytest.fixture(scope="module")
def dataset():
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1)).astype(np.uint8)
    return data.from_arrays("forty", images, np.arange(40) % 2, images, np.arange(40) % 2)


@pytest.fixture(scope="module")
def chunk_of():
    return distillers.compile_chunks(toy(), TX, config())


def run(dataset, directory=None, method=None, seed=3, tx=TX, **settings):
    given = {name: settings.pop(name) for name in ("chunk_of", "on_chunk", "saves_now") if name in settings}
    return distillers.distil(seed, method or toy(), tx, dataset, config(**settings), directory=directory, **given)


def lines(directory):
    return storage.JsonLines(directory / "metrics.jsonl").read()


def same(a, b):
    return all(
        np.array_equal(jax.random.key_data(x) if x is a.key else x, jax.random.key_data(y) if y is b.key else y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_it_descends_and_logs_the_mean_of_each_chunk(dataset, tmp_path, chunk_of):
    calls = []
    state = run(dataset, tmp_path, chunk_of=chunk_of, on_chunk=lambda done, means: calls.append((done, dict(means))))
    start = distillers.init_state(keys.root(3, "distil"), toy(), TX, dataset)
    assert int(state.step) == 8
    np.testing.assert_allclose(state.synthetic["x"], 0.8**8 * np.asarray(start.synthetic["x"]), atol=3e-3)
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    assert [line["distill/number"] for line in logged] == [0.5, 2.5, 4.5, 6.5]
    assert {"distill/loss", "distill/gradient_norm", "distill/loss_term"} <= set(logged[0])
    assert [done for done, _ in calls] == [2, 4, 6, 8]
    assert calls[1][1]["number"] == 2.5
    assert storage.Checkpointer(tmp_path / "checkpoints").latest() == 8


def test_the_pulls_of_a_loss_that_is_a_sum_are_noted_at_the_start_and_at_the_end(dataset, tmp_path, chunk_of):
    """|x|^2 + 0.5 sum(x): the gradients are 2 x and, weighted, 0.5 everywhere."""
    terms = distillers.LossTerms(
        name="all",
        names=("shift",),
        base=lambda key, synthetic, *rest, axis_name: jnp.sum(synthetic["x"] ** 2),
        terms=lambda key, synthetic, *rest, axis_name: {"shift": jnp.sum(synthetic["x"])},
        weights=lambda aux, gradients: {"shift": 0.5},
        refresh=toy().refresh,
        sample=toy().sample,
        batches=3,
    )
    method = toy()._replace(terms=terms)
    config = distillers.RunConfig(steps=8, chunk=2, save_every=4, device_mode="jit")
    state = distillers.distil(3, method, TX, dataset, config, directory=tmp_path, chunk_of=chunk_of)
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [0, 2, 4, 6, 8]
    assert ["report/cosine_all" in line for line in logged] == [True, False, False, False, True]
    x = np.asarray(state.synthetic["x"], np.float64)
    cosine = x.sum() / (np.sqrt(3) * np.linalg.norm(x))
    expected = {
        "gradient_norm_base": 2 * np.linalg.norm(x),
        **{f"gradient_norm_{name}": 0.5 * np.sqrt(3) for name in ("shift", "all")},
        **{f"cosine_{name}": cosine for name in ("shift", "all")},
    }
    found = {name.removeprefix("report/"): logged[-1][name] for name in logged[-1] if name.startswith("report/")}
    assert found == pytest.approx(expected, rel=1e-5)
    assert distillers.pulls(keys.root(0, "report"), toy(), state, dataset.train) == {}


def test_a_finished_run_does_nothing_more(dataset, tmp_path, chunk_of):
    first = run(dataset, tmp_path, chunk_of=chunk_of)
    text = (tmp_path / "metrics.jsonl").read_text()

    def never(length):
        raise AssertionError("a finished run compiled a chunk")

    calls = []
    again = run(dataset, tmp_path, chunk_of=never, on_chunk=lambda done, means: calls.append((done, means)))
    assert same(first, again)
    assert (tmp_path / "metrics.jsonl").read_text() == text
    assert calls == [(8, {})]  # so that a progress bar stands at its end


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(dataset, tmp_path, chunk_of):
    def kill(done, means):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "broken", chunk_of=chunk_of, on_chunk=kill)
    assert storage.Checkpointer(tmp_path / "broken" / "checkpoints").latest() == 4
    calls = []
    broken = run(dataset, tmp_path / "broken", chunk_of=chunk_of, on_chunk=lambda done, _: calls.append(done))
    assert calls == [4, 6, 8]
    whole = run(dataset, tmp_path / "whole", chunk_of=chunk_of)
    assert same(broken, whole)
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")


def test_a_run_that_is_asked_to_end_saves_off_its_grid_and_goes_on_in_the_same_bits(dataset, tmp_path, chunk_of):
    asked = iter([False, False, True])

    def end(done, means):
        if done == 6:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(dataset, tmp_path / "ended", chunk_of=chunk_of, on_chunk=end, saves_now=lambda: next(asked))
    assert storage.Checkpointer(tmp_path / "ended" / "checkpoints").latest() == 6
    calls = []
    ended = run(dataset, tmp_path / "ended", chunk_of=chunk_of, on_chunk=lambda done, _: calls.append(done))
    assert calls == [6, 8]
    assert same(ended, run(dataset, tmp_path / "whole", chunk_of=chunk_of))
    assert lines(tmp_path / "ended") == lines(tmp_path / "whole")


def test_resume_on_four_devices_gives_the_same_bits(dataset, tmp_path):
    method = toy()
    chunks = distillers.compile_chunks(method, TX, config(device_mode="pmap"))
    shared = {"method": method, "chunk_of": chunks, "device_mode": "pmap"}
    run(dataset, tmp_path, steps=4, **shared)
    assert same(run(dataset, tmp_path, **shared), run(dataset, **shared))


def test_a_ragged_last_chunk_ends_at_the_asked_step(dataset, tmp_path, chunk_of):
    state = run(dataset, tmp_path, steps=5, save_every=100, chunk_of=chunk_of)
    assert int(state.step) == 5
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5]
    assert storage.Checkpointer(tmp_path / "checkpoints").latest() == 5  # also at the end, off the grid


def test_a_broken_term_is_named_and_the_last_good_state_kept(dataset, tmp_path):
    with pytest.raises(
        NotFiniteError, match=r"loss_term is nan at step 5; the last good state is kept in .*checkpoints"
    ):
        run(dataset, tmp_path, method=toy(bad_step=5))
    keeper = storage.Checkpointer(tmp_path / "checkpoints")
    assert keeper.latest() == 4
    state = keeper.restore(4, distillers.init_state(jax.random.key(0), toy(), TX, dataset))
    assert np.isfinite(state.synthetic["x"]).all()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    # The cause mended, the run goes on from there.
    assert int(run(dataset, tmp_path).step) == 8


def breaks_silently(where):
    """At step 5 the images or the optimiser's state leave the numbers, and every metric of that step is one."""

    def refresh(key, synthetic, aux, step, frozen):
        return {"step": step, "kept": jnp.where((step >= 5) & (where == "aux"), jnp.inf, 1.0)}

    method = toy()

    def loss(key, synthetic, aux, batch, frozen, *, axis_name=None):
        value, extra = method.loss(key, synthetic, aux, batch, frozen, axis_name=axis_name)
        return value, (aux, extra[1])

    start = {"step": jnp.int32(-1), "kept": jnp.float32(1)}
    return method._replace(loss=loss, refresh=refresh, init=lambda key, dataset: (method.init(key, dataset)[0], start))


def leaves_the_numbers_at_five(where):
    """An optimiser whose sixth update makes the images, or its own state, infinite."""

    def update(gradients, count, params=None):
        factor = jnp.where((count >= 5) & (where == "synthetic"), jnp.inf, -0.1)
        after = jnp.where((count >= 5) & (where == "optimiser"), jnp.inf, count + 1.0)
        return jax.tree.map(lambda g: factor * jnp.abs(g), gradients), after

    return optax.GradientTransformation(lambda params: jnp.float32(0), update)


@pytest.mark.parametrize("where", ["synthetic", "optimiser", "aux"])
def test_a_state_that_is_not_finite_is_never_saved(dataset, tmp_path, where):
    """The metrics of a step are of the images before it: the step that breaks them looks good."""
    given = {"method": breaks_silently(where), "tx": leaves_the_numbers_at_five(where)}
    with pytest.raises(NotFiniteError, match=rf"{where}.* is not finite after step 6; the last good state is kept in"):
        run(dataset, tmp_path, chunk=1, save_every=1, **given)
    keeper = storage.Checkpointer(tmp_path / "checkpoints")
    assert keeper.latest() == 5
    start = distillers.init_state(jax.random.key(0), given["method"], given["tx"], dataset)
    kept = jax.tree.leaves(keeper.restore(5, start))
    assert all(np.isfinite(leaf).all() for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.inexact))


def test_a_first_step_that_breaks_leaves_no_checkpoint_and_promises_none(dataset, tmp_path):
    with pytest.raises(NotFiniteError) as found:
        run(dataset, tmp_path, tx=optax.sgd(float("inf")), chunk=1, save_every=1)
    assert "synthetic.x is not finite after step 1; lower" in str(found.value)
    assert not (tmp_path / "checkpoints").exists()


def test_images_that_are_not_finite_at_the_start_are_refused(dataset, tmp_path):
    method = toy()._replace(init=lambda key, dataset: ({"x": jnp.full(3, jnp.nan)}, {"step": jnp.int32(-1)}))
    with pytest.raises(NotFiniteError, match=r"synthetic\.x is not finite at the start"):
        run(dataset, tmp_path, method=method)
    assert list(tmp_path.iterdir()) == []


def test_a_metrics_file_that_was_cut_is_said_and_no_harm(dataset, tmp_path, chunk_of, caplog):
    whole = run(dataset, tmp_path / "whole", chunk_of=chunk_of)
    run(dataset, tmp_path / "cut", steps=4, chunk_of=chunk_of)
    log = tmp_path / "cut" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    assert same(whole, run(dataset, tmp_path / "cut", chunk_of=chunk_of))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{log} was cut: it ends at step 2, the checkpoint is of step 4;")
    assert [line["step"] for line in lines(tmp_path / "cut")] == [2, 6, 8]


def test_a_huge_image_learning_rate_stops_the_run(dataset):
    with pytest.raises(NotFiniteError, match="lower the image learning rate"):
        run(dataset, tx=optax.sgd(1e30))


def test_each_chunk_streams_its_own_pool_again_on_resume(dataset, tmp_path):
    def sums(directory):
        return [line["distill/pool"] for line in lines(directory)]

    run(dataset, tmp_path / "whole", stream_per_class=5)
    pools = [data.stream_pool(dataset.train, 3, number, 5).images.astype(np.float64).sum() for number in range(4)]
    np.testing.assert_allclose(sums(tmp_path / "whole"), pools, rtol=1e-6)
    assert len(set(pools)) == 4
    run(dataset, tmp_path / "broken", stream_per_class=5, steps=4)
    run(dataset, tmp_path / "broken", stream_per_class=5)
    assert sums(tmp_path / "broken") == sums(tmp_path / "whole")


def test_a_streamed_run_never_takes_the_whole_set(dataset):
    method, seen = toy(), []

    def init(key, first):
        seen.append(first.train.images.shape[0])
        return method.init(key, first)

    run(dataset, method=method._replace(init=init), stream_per_class=5, steps=2)
    assert seen == [10]


def test_another_seed_is_another_run_and_another_method_is_refused(dataset, tmp_path, chunk_of):
    first = run(dataset, tmp_path, chunk_of=chunk_of)
    assert not same(first, run(dataset, seed=4, chunk_of=chunk_of))
    with pytest.raises(ValueError, match="belongs to another run"):
        run(dataset, tmp_path, method=toy(size=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"save_every": 0}, "save_every=0"),
        ({"stream_per_class": -1}, "stream_per_class=-1"),
        ({"device_mode": "gpu"}, "device_mode='gpu' must be one of auto, jit, pmap, sharded"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
