"""A data set of two clips a mechanism, made once."""

from pathlib import Path

import pytest

from world.make import make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make(folder, clips=16, sheets=False)
    return folder
