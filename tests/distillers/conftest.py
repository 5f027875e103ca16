"""The tiny data set, network and frozen networks that the distillers' tests share."""

import members
import pytest


@pytest.fixture(scope="session")
def tiny():
    return members.tiny()


@pytest.fixture(scope="session")
def net():
    return members.make_net("convnet:width=4,depth=1")


@pytest.fixture(scope="session")
def auxiliaries(tiny):
    return members.auxiliaries(tiny)
