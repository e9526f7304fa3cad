"""Several processes share the cache out, train under ZeRO-2 with CPU offload, and let one of them speak."""

import importlib.util
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import warnings

import pytest
import torch
import yaml

from backbones import bundle
from pila.config import RECIPES
from pila.data import prepare
from trainers import video
from trainers.engine import launched

LAUNCH = RECIPES / "launch"
pytestmark = pytest.mark.filterwarnings("ignore:words outside the vocabulary")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def several(work, processes=2):
    """Fork processes that each call `work(rank)`, joined as torchrun joins them; return their exit codes."""
    port = free_port()

    def be(rank):
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # gloo's
        ids = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({key: str(value) for key, value in (ids | {"MASTER_PORT": port}).items()})
        work(rank)

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=be, args=(rank,)) for rank in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


@pytest.fixture
def counted(backbone, monkeypatch, tmp_path):
    """Write down, for each process, the clips that it encodes and the prompts that it embeds."""
    for name in ("encode", "embed"):
        honest = getattr(backbone, name)

        def noting(given, name=name, honest=honest):
            with (tmp_path / f"{name}-{os.environ.get('RANK', '0')}").open("a") as file:
                file.write("".join(f"{len(given)}\n"))
            return honest(given)

        monkeypatch.setattr(backbone, name, noting)

    def read(name):
        files = [tmp_path / f"{name}-{rank}" for rank in range(2)]
        return [sum(map(int, f.read_text().split())) if f.exists() else 0 for f in files]

    return read


def digest_of(out, rank):
    return json.loads((out / f"found-{rank}.json").read_text())


def prepared(recipe, backbone, root, out):
    """What each process does; it notes what it found."""

    def work(rank):
        found = prepare(recipe, backbone, root, quiet=True, engine=launched())
        said = [found.data.digest, found.clips, found.computed, [s.path for s in found.skipped], found.labels]
        (out / f"found-{rank}.json").write_text(json.dumps(said))

    return work


def test_two_processes_share_the_cache_out_and_open_the_same_data(backbone, make_recipe, tmp_path, counted):
    recipe = make_recipe("data.clips=10")
    assert several(prepared(recipe, backbone, tmp_path / "two", tmp_path)) == [0, 0]
    first, second = (digest_of(tmp_path, rank) for rank in range(2))
    assert first == second
    assert counted("encode") == [5, 5]
    assert sum(counted("embed")) <= 10
    one = prepare(recipe, backbone, tmp_path / "one", quiet=True)
    assert first == [one.data.digest, 10, 10, [], one.labels]
    again = prepare(recipe, backbone, tmp_path / "two", quiet=True)  # what they wrote serves one process, too
    assert (again.computed, again.data.digest) == (0, one.data.digest)


def test_a_killed_share_is_made_by_whoever_comes_next(backbone, make_recipe, tmp_path, counted):
    prepare(make_recipe("data.clips=8"), backbone, tmp_path / "cache", quiet=True)
    assert several(prepared(make_recipe("data.clips=16"), backbone, tmp_path / "cache", tmp_path)) == [0, 0]
    assert digest_of(tmp_path, 0)[1:3] == [16, 8]
    assert sum(counted("encode")) == 16


def test_twins_and_broken_files_are_read_once_and_listed_once(backbone, make_recipe, tmp_path, counted):
    import numpy as np

    home = tmp_path / "clips"
    home.mkdir()
    film = np.random.default_rng(0).integers(0, 255, (17, 32, 32, 3), dtype=np.uint8)
    whole = video.write(home / "a.mp4", film, 16, lossless=True).read_bytes()
    for name, content in (("b", whole), ("c", b"no video"), ("d", b"no video"), ("e", whole + b"x")):
        (home / f"{name}.mp4").write_bytes(content)
    for name in "abcde":
        (home / f"{name}.txt").write_text("two balls collide")
    recipe = make_recipe(f"data.source={home}")
    assert several(prepared(recipe, backbone, tmp_path / "cache", tmp_path)) == [0, 0]
    digest, clips, computed, skipped, _ = digest_of(tmp_path, 1)
    assert (clips, computed, skipped) == (3, 2, ["c.mp4", "d.mp4"])
    assert sum(counted("encode")) == 2
    listed = json.loads((tmp_path / "cache" / "skipped.json").read_text())
    assert [item["path"] for item in listed] == ["c.mp4", "d.mp4"]
    assert prepare(recipe, backbone, tmp_path / "one", quiet=True).data.digest == digest


def command(*words, environment=None):
    """Run a command of the installed Python, with what the machine has of processes hidden from it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | (environment or {})
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def sets(small_sets, *more):
    return [word for item in (*small_sets, *more) for word in ("--set", item)]


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: uv run --isolated --group engines pytest ...",
)
def test_accelerate_launch_trains_the_tiny_recipe_under_zero_2_with_offload(small_sets, tmp_path):
    out = tmp_path / "run"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "zero2-offload.yaml")]
    launch += ["--deepspeed_config_file", str(LAUNCH / "zero2-offload.json")]
    launch += ["--num_processes", "2", "--main_process_port", str(free_port())]
    pila = ["-m", "pila.cli", "train", "--out", str(out), "--cache", str(tmp_path / "cache")]
    small = sets(small_sets, "data.clips=8", "observe.steps=0", "recover.steps=0", "couple.steps=2", "batch=2")
    done = command(*launch, *pila, *small, environment={"DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1  # one process speaks
    assert json.loads(lines[0])["steps"] == 2
    said = " ".join(done.stderr.split())  # a narrow table breaks its title
    assert said.count("next: ") == 1
    assert "x 2 processes (DeepSpeed ZeRO-2) = 4" in said
    assert len(list((tmp_path / "cache").glob("skipped.json"))) == 1
    assert bundle.load(out / "bundle").kind == "pila"


def test_torchrun_trains_a_step_and_an_error_names_its_process(small_sets, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    torchrun += ["-m", "pila.cli", "train", "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    small = sets(small_sets, "data.clips=8", "observe.steps=0", "recover.steps=0", "couple.steps=1", "batch=2")
    done = command(*torchrun, *small)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    wrong = command(*torchrun, "--config", "tinny")
    assert wrong.returncode != 0
    for rank in range(2):
        assert f"error in process {rank}: " in wrong.stderr


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_a_shipped_launch_config_holds_what_accelerate_knows(path):
    from accelerate.commands.config.config_args import ClusterConfig

    if path.suffix == ".json":
        zero = json.loads(path.read_text())["zero_optimization"]
        assert (zero["stage"], zero["offload_optimizer"]["device"]) == (2, "cpu")
        return
    known = set(ClusterConfig.__dataclass_fields__)
    given = yaml.safe_load(path.read_text())
    assert given.keys() <= known
    assert given["distributed_type"] in ("DEEPSPEED", "FSDP")
