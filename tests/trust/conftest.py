"""Real data that all fuzz tests hold sets against."""

import fuzz_sets
import pytest


@pytest.fixture(scope="session")
def real():
    return fuzz_sets.real_data()
