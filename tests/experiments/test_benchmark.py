"""The measurements behind the benchmark's table."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import cost_table
import costs
import elsewhere
import launches
import measure
import settings
import works
from metadd_jax.job import flops

NET = "convnet:width=4,depth=1"
TINY = settings.BenchmarkConfig(
    image_shape=(8, 8, 1),
    num_classes=2,
    ipc=3,
    batch_size=4,
    backbone=NET,
    teacher="convnet_bn:width=4,depth=1",
    auxiliaries=(NET, "convnet_bn:width=4,depth=1"),
    augmentation="none",
    recover_images=3,
    syn_steps=3,
    train_batch=4,
    eval_epochs=2,
    eval_seeds=2,
    test_per_class=1,
    chunk=2,
    repeats=2,
    peak_side=64,
)
# One 3x3 convolution from 1 to 4 channels on an image of 8x8, a multiplication and an addition each.
CONVOLUTION = 2 * 64 * 9 * 4
ROW = {
    "work": "dm",
    "compile_seconds": 1.25,
    "seconds": [0.5, 0.25, 0.4],
    "median_seconds": 0.4,
    "images": 100,
    "flops": 2e9,
    "matmul_flops_per_second": 1e10,
    "temporary_bytes": 3_000_000,
    "launches": 1234,
    "moved_bytes": 5e9,
    "peak_resident_bytes": 5e8,
    "peak_device_bytes": None,
    "scan_ratio": None,
    "torch": None,
}


def flops_of(work, config=TINY):
    built = works.build(works.parse(work, config), config)
    return flops.count(built.function, *built.arguments)


def test_an_auxiliary_is_measured():
    found = measure.measure(NET, TINY)
    assert found["forward_flops"] >= 6 * CONVOLUTION
    assert found["flops"] > found["forward_flops"]
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0
    assert found["compile_seconds"] > 0 and found["matmul_flops_per_second"] > 0
    assert found["images"] == 6 and found["scan_ratio"] is None
    assert found["peak_resident_bytes"] > 100e6  # Python with JAX is larger than that


@pytest.mark.parametrize("work", [f"scan:train:{NET}@5", "sre2l", "evaluate@2", "ncfm", "datm", "rded@2"])
def test_works_are_measured(work):
    found = measure.measure(work, TINY)
    images = {
        "sre2l": 3, "evaluate@2": 2 * (2 * 4 + 2), "ncfm": 2 * (4 + 2 * 3), "datm": 3 * 6, "rded@2": 2 * 4 * 5
    }.get(work, 5)  # fmt: skip
    assert found["images"] == images and len(found["seconds"]) == 2
    assert found["flops"] > images * CONVOLUTION
    assert (found["scan_ratio"] or 0) > 0 or "scan" not in work


def test_a_step_goes_on_from_where_the_last_one_ended():
    built = works.build(works.parse(f"train:{NET}", TINY), TINY)
    seen = []
    call = measure._Caller(
        lambda state, data, key: (seen.append(state) or state + 1, {}),
        works.Work(built.function, (jnp.zeros(()), None, None), True, 1),
    )
    assert call() > 0 and call() > 0
    assert seen == [0, 1]


def test_loops_are_multiplied_out_and_the_unused_is_not_counted():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    product = 2 * 3 * 5 * 7

    def looped(a, b):
        unused = b.T @ b
        del unused
        return jax.lax.scan(lambda total, _: (total + jax.jit(jnp.matmul)(a, b), None), jnp.zeros((3, 7)), None, 4)[0]

    def chosen(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert (
        flops.count(jnp.matmul, a, b) == product == jax.jit(jnp.matmul).lower(a, b).compile().cost_analysis()["flops"]
    )
    assert flops.count(looped, a, b) == 4 * product
    assert flops.count(chosen, a, b) == product
    # The gradient of a product are two more, and the product itself is not needed for them.
    assert flops.count(jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), a, b) == 2 * product


def test_the_flops_of_the_steps_are_those_of_their_formulas():
    # Two classes: 4 real and 3 own images on their way in, the own ones on their way back; the head is not used.
    # The mean of the real embeddings (64 numbers each) is a product with their weights.
    assert flops_of("dm") == 2 * ((4 + 3 + 3) * CONVOLUTION + 2 * 4 * 64)
    # Kept activations save each student step's forward pass; every step has the same work.
    assert flops_of("mtt") > flops_of("mtt_kept") > 3 * 6 * 2 * CONVOLUTION
    assert flops_of("dc_inner") > flops_of("dc") + 50 * 6 * 2 * CONVOLUTION
    assert flops_of("dm+metadd") > flops_of("dm+ce") > flops_of("dm") + 2 * 6 * CONVOLUTION


PROGRAM = """
HloModule jit_step

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %exp = f32[4]{0} exponential(%p)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], /*index=1*/f32[4]{0}) parameter(0)
  %values = f32[4]{0} get-tuple-element(%state), index=1
  %product = f32[4]{0} dot(%values, %values), lhs_contracting_dims={0}
  %fusion = f32[4]{0} fusion(%product), kind=kLoop, calls=%fused
  ROOT %next = (s32[], f32[4]{0}) tuple(%values, %fusion)
}

%test (state: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%state, %state), direction=LT
}

%short (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}

%long (x: f32[4]) -> f32[4] {
  %once = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %call = f32[4]{0} call(%once), to_apply=%nested
}

%nested (x: f32[4]) -> f32[4] {
  ROOT %copy = f32[4]{0} copy(%x)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %loop = (s32[], f32[4]{0}) while(%x), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %either = f32[4]{0} conditional(%x, %x, %x), branch_computations={%short, %long}
  ROOT %bits = f32[4]{0} bitcast(%either)
}
"""


def launched(program):
    return sum(kernel.times for kernel in launches.kernels(program))


def test_launches_are_kernels_with_loops_multiplied_out():
    assert launched(PROGRAM) == 7 * (2 + 1) + 2  # a product, a fusion and the test of the loop; the longer branch

    def looped(a, b):
        return jax.lax.fori_loop(0, 5, lambda _, a: jnp.sin(a @ b), a)

    a, b = jnp.zeros((40, 40)), jnp.zeros((40, 40))
    once = launched(jax.jit(lambda a, b: jnp.sin(a @ b)).lower(a, b).compile().as_text())
    assert launched(jax.jit(looped).lower(a, b).compile().as_text()) >= 5 * once >= 10


TUPLES = """
%sums (x: f32[8,100], first: f32[8,100], b: bf16[3]) -> (f32[8], f32[8]) {
  %x = f32[8,100]{1,0} parameter(0)
  %b = bf16[3]{0} parameter(2)
  %first = f32[8,100]{1,0} parameter(1)
  %same = f32[8,100]{1,0} bitcast(%first)
  %slice = f32[8,1]{1,0} slice(%same), slice={[0:8], [0:1]}
  %sum = f32[8]{0} reduce(%x, %slice, %b), dimensions={1}, to_apply=%add
  ROOT %both = (f32[8]{0}, f32[8]{0}) tuple(%sum, %sum)
}

%write (whole: f32[50,8], part: f32[1,8]) -> f32[50,8] {
  %whole = f32[50,8]{1,0} parameter(0)
  %part = f32[1,8]{1,0} parameter(1)
  ROOT %update = f32[50,8]{1,0} dynamic-update-slice(%whole, %part)
}

ENTRY %main (a: f32[8,100], c: bf16[3], d: f32[50,8], e: f32[1,8]) -> f32[8] {
  %a = f32[8,100]{1,0} parameter(0)
  %c = bf16[3]{0} parameter(1)
  %d = f32[50,8]{1,0} parameter(2)
  %e = f32[1,8]{1,0} parameter(3)
  %one = (f32[8]{0}, f32[8]{0}, f32[], f32[], f32[], /*index=5*/f32[]) fusion(%a, %a, %c), kind=kInput, calls=%sums
  %two = f32[50,8]{1,0} fusion(%d, %e), kind=kLoop, calls=%write
  ROOT %three = (f32[8]{0}, u8[4096]{0}) custom-call(%d), custom_call_target="a library's"
}
"""


def test_kernels_move_what_they_read_and_write():
    """The last is a library's, with scratch of its own; the results of the first are many, and numbered by XLA."""
    sums = 4 * 800 + 4 * 8 + 2 * 3 + 4 * (8 + 8 + 4)  # of the second array the first column alone
    wanted = [("one", 1, sums), ("two", 1, 2 * 4 * 8), ("three", 1, 4 * 400 + 4 * 8)]
    assert launches.kernels(TUPLES) == wanted


def test_a_program_for_another_device_is_counted_and_not_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(
        elsewhere, "place", lambda arguments, ways: arguments
    )  # a CPU stands in: its plugin is not installed
    monkeypatch.setattr(jax, "default_backend", jax.default_backend)  # which the measurement changes
    away = dataclasses.replace(TINY, ways="h200")
    found, scanned = measure.measure(f"train:{NET}", away), measure.measure(f"scan:train:{NET}", away)
    assert found["seconds"] == [] and found["median_seconds"] is None
    assert found["launches"] > 10 and found["moved_bytes"] > 0 and found["flops"] == scanned["flops"] > 0
    assert found["launches"] / 2 < scanned["launches"] < 2 * found["launches"]
    lines = cost_table.table([{**found, "torch": None}])
    assert lines[0] == "| work | compile s | GFLOP | launches | GB moved | temporary MB |"
    assert len({line.count("|") for line in lines}) == 1
    facts = {"config": {"ways": "h200"}, "results": [{**found, "torch": None}]}
    assert "Matrix product" not in cost_table.document(facts, [])
    of_a_tpu = measure.measure(f"train:{NET}", dataclasses.replace(TINY, ways="v5e"))
    assert of_a_tpu["launches"] is None and "launches" not in cost_table.table([{**of_a_tpu, "torch": None}])[0]
    assert cost_table.judged({"ways": "h200"}, [{**found, "work": "judge:mlp@10"}]) == []


@pytest.mark.parametrize(("ways", "extra"), [("h200", "cuda12"), ("v5e", "tpu")])
def test_a_device_that_nothing_can_be_compiled_for_is_told(monkeypatch, ways, extra):
    monkeypatch.setattr(elsewhere.os, "environ", {**elsewhere.os.environ, "XLA_FLAGS": "--xla_dump_to=here"})
    absent = dataclasses.replace(elsewhere.DEVICES[ways], modules=("none.of_these",))
    monkeypatch.setitem(elsewhere.DEVICES, ways, absent)
    with pytest.raises(ValueError, match=rf'needs JAX\'s plugin, but no device; run: pip install "jax\[{extra}\]"'):
        costs.run(["--works", "dm", "--ways", ways])
    monkeypatch.setitem(elsewhere.DEVICES, ways, dataclasses.replace(absent, modules=("jax",)))
    with pytest.raises(ValueError, match=rf"{ways} runs nothing, so it has no times for --torch or --sweep; leave"):
        costs.run(["--works", "dm", "--ways", ways, "--sweep", "ipc=1,2"])
    assert elsewhere.os.environ["JAX_PLATFORMS"] == "cpu"
    assert elsewhere.os.environ["XLA_FLAGS"].startswith("--xla_dump_to=here")


def test_a_step_with_latents_decodes_and_pulls_back():
    """A net of one hidden unit; its decoder's products alone would be 2 (2 + 1) a pixel."""
    tiny = dataclasses.replace(TINY, parameterisation="siren:width=1,depth=1")
    built = works.build(works.parse("mtt+latents+metadd", tiny), tiny)
    assert set(built.arguments[0].synthetic) == {"latents", "log_lr"}
    # Forwards, again on the way back, and two products for the gradients (but none to the places).
    assert flops_of("dm+latents", tiny) >= flops_of("dm") + 6 * 64 * 2 * (2 * 3 + 2)


def test_names_are_read():
    terms = {"weighting": "raw", "ai": 1.0, "pos": 1.0, "var": 1.0}
    assert works.parse("scan:dm@10+metadd", TINY) == works.Name("dm", "", 10, terms, False, True)
    assert works.parse("dm@10+ce", TINY) == works.Name("dm", "", 10, {}, False, False)  # as it is by default
    assert works.parse("train:vgg11@256", TINY) == works.Name("train", "vgg11", 256, None, False, False)
    assert works.parse("judge:vgg11@10", TINY) == works.Name("judge", "vgg11", 10, None, False, False)
    assert works.parse("sre2l", TINY).size == 3 and works.parse("train:mlp", TINY).size == 4
    assert works.parse(NET, TINY) == works.Name("auxiliary", NET, 3, None, False, False)
    for work in settings.EVERYTHING:
        works.parse(work, TINY)


@pytest.mark.parametrize(
    "work", ["train:mlp+metadd", "scan:evaluate", "dm@ten", "dm@0", "train:dm", "mtt+meta", "judge:rded", "rded+metadd"]
)
def test_names_that_mean_nothing_are_refused(work):
    with pytest.raises(ValueError, match=r"go with|cannot read the size|unknown network"):
        works.parse(work, TINY)


def test_the_table_has_a_line_for_each_work_and_columns_that_are_filled():
    lines = cost_table.table([ROW, {**ROW, "work": "vit", "peak_device_bytes": 6e8}])
    assert lines[2] == "| dm | 1.2 | 0.4 (0.25-0.5) | 250 | 2 | 5 | 50 | 1234 | 5 | 3 | 500 |"
    assert lines[3].startswith("| vit |") and lines[3].endswith("| 3 | 600 |")
    torch = {"seconds": [1.0, 1.2, 1.4], "median_seconds": 1.2, "peak_resident_bytes": 7e8, "peak_device_bytes": None}
    lines = cost_table.table([{**ROW, "torch": torch}, {**ROW, "scan_ratio": 1.043}])
    assert lines[2].endswith("| 500 |  | 1.2 (1-1.4) | 700 | 3.00 |")
    assert lines[3].endswith("| 500 | 1.04 |  |  |  |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_published_table_is_told_from_the_networks_that_were_judged():
    """5 trainings of 20 epochs: of 20 and 1,000 they are 200 times as many."""
    config = {"eval_seeds": 5, "eval_epochs": 20, "ways": "own"}
    rows = [{**ROW, "work": f"judge:{net}@10", "torch": {"median_seconds": 9.0}} for net in ("vgg11", "mlp")]
    assert cost_table.judged(config, [ROW]) == []
    told = cost_table.judged(config, [ROW, *rows])[-1]
    assert "these 2 networks" in told and "ours 0.04 hours, PyTorch 1.00 hours" in told  # 160 s and 3,600 s
    rows[1]["torch"] = None
    assert "PyTorch" not in cost_table.judged(config, rows)[-1]


def test_a_judged_network_is_that_of_the_name():
    built = works.build(works.parse(f"judge:{NET}@2", TINY), dataclasses.replace(TINY, backbone="mlp:width=3"))
    assert flops.count(built.function, *built.arguments) > 2 * (2 * 4 + 2) * CONVOLUTION


def test_the_page_and_the_facts_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "_in_a_fresh_process", lambda program, work, environment: {**ROW, "work": work})
    costs.run(["--works", "dm@1", "dc", "--out", str(tmp_path / "costs.json")])
    assert [row["work"] for row in json.loads((tmp_path / "costs.json").read_text())["results"]] == ["dm@1", "dc"]
    page = (tmp_path / "costs.md").read_text()
    assert "| dm@1 | 1.2 |" in page and "repeats 5" in page and "10 to 10 GFLOP/s" in page


def test_what_is_measured_is_kept_when_a_later_work_fails(tmp_path, monkeypatch):
    def run(program, work, environment):
        assert json.loads(environment["METADD_BENCHMARK_WORK"]) == {"work": work, "settings": {}}
        if work == "dc":
            raise ValueError("no memory")
        return {**ROW, "work": work}

    monkeypatch.setattr(costs, "_in_a_fresh_process", run)
    with pytest.raises(ValueError, match="no memory"):
        costs.run(["--works", "dm@1", "dc", "--out", str(tmp_path / "costs.json")])
    assert [row["work"] for row in json.loads((tmp_path / "costs.json").read_text())["results"]] == ["dm@1"]


def test_a_typo_is_found_before_anything_is_measured():
    with pytest.raises(ValueError, match="unknown network 'resnet43'"):
        costs.run(["--works", "resnet43"])


def test_pytorch_is_looked_for_before_anything_is_measured(tmp_path):
    with pytest.raises(ValueError, match=r"which .*nowhere has not; run: pip install torch, or give an interpreter"):
        costs.run(["--works", "dm", "--torch", "--torch-python", str(tmp_path / "nowhere")])


def test_only_an_earlier_measurement_is_replaced(tmp_path):
    """--out costs.json wrote costs.md too, whatever stood there."""
    out = tmp_path / "costs.json"
    for name, text in (("costs.md", "# What I found"), ("costs.json", '{"config": 1}'), ("costs.json", "milk")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name} is not what metadd_jax wrote"):
            costs.run(["--works", "dm@1", "--out", str(out)])
        assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"name it costs\.json"):
        costs.run(["--works", "dm@1", "--out", str(out.with_suffix(".md"))])
