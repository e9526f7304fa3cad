"""Two processes: `accelerate launch` trains under ZeRO-2, which measures the norm that the recursive weight goes by as
plain data-parallel training does.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import VJEPA2Model

from backbones import bundle
from backbones.vjepa2 import tiny_config
from phantom.config import RECIPES

LAUNCH = RECIPES / "launch"
SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1", "data.clips=8", "batch=2"]
SMALL += ["steps=3", "save_every=3", "optim.warmup_steps=0", "optim.lr=1e-4"]
SMALL += ["weight.ramp_steps=2", "weight.measure_every=1", "weight.factor=0.1"]  # a threshold that every norm passes


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def command(*words):
    """Run a command of the installed Python, with what the machine has of processes hidden from it."""
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1  # one process speaks
    return json.loads(lines[0]), done.stderr


def measured(out):
    (line,) = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    return line["recursive"]["physics"], line["ramps"]["physics"]


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: uv run --isolated --group engines pytest ...",
)
def test_zero_2_trains_the_tiny_recipe_and_measures_the_norm_that_plain_training_measures(tmp_path):
    torch.manual_seed(0)
    VJEPA2Model(tiny_config()).save_pretrained(tmp_path / "vjepa2")
    small = [word for item in (*SMALL, f"physics.encoder={tmp_path / 'vjepa2'}") for word in ("--set", item)]
    phantom = ["phantom.cli", "train", "--cache", str(tmp_path / "cache"), *small, "--out"]
    plain = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), "-m"]
    zero = ["accelerate.commands.launch", "--config_file", str(LAUNCH / "zero2.yaml")]
    zero += ["--deepspeed_config_file", str(LAUNCH / "zero2.json"), "--num_processes", "2"]
    zero += ["--main_process_port", free_port(), "-m"]
    found = {}
    for name, launch in (("plain", plain), ("zero", zero)):
        said, talk = command(*launch, *phantom, str(tmp_path / name))
        assert said["steps"] == 3
        assert bundle.load(tmp_path / name / "bundle").kind == "phantom"
        found[name] = measured(tmp_path / name)
    (ddp, alpha), (zero2, same) = found["plain"], found["zero"]
    assert ddp["average"] > 0
    assert zero2["average"] == pytest.approx(
        ddp["average"], rel=0.02
    )  # bfloat16; a missing mean would be a factor of 2
    assert zero2["eta"] == pytest.approx(ddp["eta"], rel=0.02)
    assert zero2["resets"] == ddp["resets"] == 1
    assert alpha == same == 1.0  # of the last step, after which it fell back
    assert "DeepSpeed ZeRO-2" in talk  # the table of the stage


def test_shipped_launch_configs_hold_what_accelerate_knows():
    from accelerate.commands.config.config_args import ClusterConfig

    given = yaml.safe_load((LAUNCH / "zero2.yaml").read_text())
    assert given.keys() <= set(ClusterConfig.__dataclass_fields__)
    assert given["distributed_type"] == "DEEPSPEED"
    assert json.loads((LAUNCH / "zero2.json").read_text())["zero_optimization"]["stage"] == 2
