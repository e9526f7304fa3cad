"""Short films of one grey, and orders to `bench`."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.cli import app
from trainers import video


@pytest.fixture(scope="session")
def film():
    """Write a short film of one grey: path, grey, and what else matters."""

    def write(path: Path, grey: int = 128, *, frames: int = 5, size: int = 32, fps: float = 8.0) -> Path:
        return video.write(path, np.full((frames, size, size, 3), grey, np.uint8), fps)

    return write


@pytest.fixture(scope="session")
def run():
    """Run a command of `bench` in this process."""

    def order(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return order
