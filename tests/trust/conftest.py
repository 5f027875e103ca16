"""Real data that all fuzz tests hold sets against, and the counts of their cases."""

import fuzz_sets
import hostile
import pytest


@pytest.fixture(scope="module", autouse=True)
def counts():
    with hostile.counted():
        yield


@pytest.fixture(scope="session")
def real():
    return fuzz_sets.real_data()
