"""The README's example runs as it stands, and a second run has nothing left to do."""

import re
from pathlib import Path

import numpy as np
import torch

from trainers import video


def test_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    video.write(tmp_path / "clips" / "a.mp4", np.zeros((20, 32, 32, 3), np.uint8), 16)
    (tmp_path / "clips" / "a.txt").write_text("nothing happens")
    space = {"torch": torch}
    for block in blocks:
        exec(block, space)
    assert space["result"].global_step == 20 + 20
    assert space["cache"].root == Path("cache")
