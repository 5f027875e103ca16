"""The measurements behind the benchmark's table."""

import benchmark
import measure
import pytest

TINY = benchmark.BenchmarkConfig(image_shape=(8, 8, 1), num_classes=2, ipc=3, batch_size=4, repeats=2)


def test_an_auxiliary_is_measured():
    found = measure.measure("convnet:width=4,depth=1", TINY)
    # One 3x3 convolution from 1 to 4 channels on 6 images of 8x8, a multiplication and an addition each, at least.
    assert found["forward_flops"] > 2 * 6 * 64 * 9 * 4
    assert found["flops"] > found["forward_flops"]
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0
    assert found["compile_seconds"] > 0
    assert found["peak_resident_bytes"] > 100e6  # Python with JAX is larger than that


def test_the_table_has_a_line_for_each_work():
    row = {
        "work": "dm",
        "compile_seconds": 1.25,
        "seconds": [0.5, 0.25, 0.4],
        "median_seconds": 0.4,
        "flops": 2e9,
        "forward_flops": None,
        "temporary_bytes": 3_000_000,
        "peak_resident_bytes": 5e8,
    }
    lines = benchmark.table([row, {**row, "work": "vit", "forward_flops": 5e8}])
    assert lines[2] == "| dm | 1.2 | 0.4 (0.25-0.5) | 2 | 5 |  | 3 | 500 |"
    assert lines[3].startswith("| vit |") and "| 0.5 | 3 |" in lines[3]


def test_a_typo_is_found_before_anything_is_measured():
    with pytest.raises(ValueError, match="unknown network 'resnet43'"):
        benchmark.run(["--works", "resnet43"])
