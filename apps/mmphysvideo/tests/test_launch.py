"""Two processes: the teacher and the student under plain data parallel and under ZeRO-2."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

from backbones import bundle
from mmphysvideo.config import RECIPES

LAUNCH = RECIPES / "launch"
SMALL = ["data.clips=8", "batch=2", "save_every=2", "teacher.steps=2", "student.steps=2", "teacher.weights.rank=2"]
SMALL += ["student.weights.rank=2", "student.align.hidden=8"]


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
    return json.loads(lines[0])


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: uv run --isolated --group engines pytest ...",
)
def test_two_processes_train_the_teacher_plainly_and_the_student_under_zero_2(tmp_path):
    small = [word for item in SMALL for word in ("--set", item)]
    train = ["mmphysvideo.cli", "train", "--cache", str(tmp_path / "cache"), *small, "--out"]
    plain = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), "-m"]
    zero = ["accelerate.commands.launch", "--config_file", str(LAUNCH / "zero2.yaml")]
    zero += ["--deepspeed_config_file", str(LAUNCH / "zero2.json"), "--num_processes", "2"]
    zero += ["--main_process_port", free_port(), "-m"]
    assert command(*plain, *train, str(tmp_path / "teacher"))["steps"] == 2
    taught = ["--stage", "student", "--teacher", str(tmp_path / "teacher" / "bundle")]
    said = command(*zero, *train, str(tmp_path / "student"), *taught)
    assert (said["steps"], said["clips"], said["kind"]) == (2, 8, "student")
    assert set(bundle.load(tmp_path / "student" / "bundle").tensors) == {"weights"}


def test_shipped_launch_configs_hold_what_accelerate_knows():
    from accelerate.commands.config.config_args import ClusterConfig

    given = yaml.safe_load((LAUNCH / "zero2.yaml").read_text())
    assert given.keys() <= set(ClusterConfig.__dataclass_fields__)
    assert given["distributed_type"] == "DEEPSPEED"
    assert json.loads((LAUNCH / "zero2.json").read_text())["zero_optimization"]["stage"] == 2
