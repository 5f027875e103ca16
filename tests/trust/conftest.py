"""Real data that all fuzz tests hold sets against, and the counts of their cases."""

import contextlib

import fuzz_sets
import hostile
import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  (loads libraries of its own, which no reading may do while it is watched)


@pytest.fixture(scope="module", autouse=True)
def counts():
    with hostile.counted():
        yield


@pytest.fixture(scope="session")
def real():
    return fuzz_sets.real_data()
