"""Laws that hold without the type-checking hook of the tests, which breaks torch.compile: one process for all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("plain.py")
LAWS = [line.split("(")[0][4:] for line in SCRIPT.read_text(encoding="utf-8").split("@law\n")[1:]]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    cache = tmp_path_factory.mktemp(
        "inductor"
    )  # its own: a process killed while compiling leaves half a library behind
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=900, env=env)
    return done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("law", LAWS)
def test_without_the_hook(output, law):
    assert f"holds {law}\n" in output, output
