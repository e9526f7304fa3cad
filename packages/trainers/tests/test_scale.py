"""Two processes: DDP and DeepSpeed's ZeRO give the run of one process, resume bit for bit, and save adapters alone."""

import json
import os
import signal
import warnings

import pytest
import torch
import toy
from torch import nn

import world
from trainers import EMA, InMemory, Length, Optim, Stage, checkpoint, fit
from trainers.engine import launched

with warnings.catch_warnings():  # imported before the processes are forked, once for all
    warnings.simplefilter("ignore")
    os.environ["DS_ACCELERATOR"] = "cpu"
    pytest.importorskip("accelerate")
    deepspeed = pytest.importorskip("deepspeed", reason="needs DeepSpeed: uv run --group engines pytest ...")
    pytest.importorskip("deepspeed.runtime.zero.muon.original_muon")  # slow to import, by torch.compile

    # a faster exchange within a machine, which DeepSpeed would compile with the first process group
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

STEPS = 10
ENGINES = {
    "ddp": None,
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
}


def environment(engine, folder):
    """What `accelerate launch --config_file` would set for an engine."""
    zero = ENGINES[engine]
    if zero is None:
        return {}
    config = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: DeepSpeed's own is compiled for minutes
        "zero_allow_untested_optimizer": True,
    }
    path = folder / f"{engine}.json"
    path.write_text(json.dumps(config))
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
        "DS_ACCELERATOR": "cpu",
        "DEEPSPEED_LOG_LEVEL": "error",
    }


def parts():
    torch.manual_seed(0)
    return {"body": nn.Sequential(nn.Linear(3, 7), nn.Tanh()), "head": nn.Linear(7, 1), "frozen": nn.Linear(3, 3)}


def stages(groups, before=lambda progress: None, *, per_process=2, ema=True):
    """Two stages whose epochs end inside them; the loss draws nothing, so that the split over processes is all that
    differs from one process.
    """

    def loss(batch, progress):
        before(progress)
        return {"mse": (groups["head"](groups["body"](batch["x"])) - batch["y"]).square().mean()}

    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    data = InMemory({"x": x, "y": x.sum(1, keepdim=True)})
    shared = {"batch_size": per_process, "optim": Optim(lr=1e-2, clip=0.5), "ema": EMA(0.9) if ema else None}
    both = {"body": 1.0, "head": 0.5}
    first = Stage("a", both, loss, data, length=Length(steps=STEPS - 4), accumulate=2, unfreeze={"body": 2}, **shared)
    second = Stage("b", {"head": 1.0}, loss, data, length=Length(steps=4), handover="keep", **shared)
    return [first, second]


def train(out, before=lambda progress: None, **settings):
    """What each process does."""

    def work(rank):
        warnings.simplefilter("ignore")  # DeepSpeed's and gloo's own remarks
        groups = parts()
        chosen = {key: settings[key] for key in ("ema",) if key in settings}
        fit(
            stages(groups, before, **chosen),
            groups,
            out=out,
            seed=3,
            save_every=2,
            keep=9,
            resume=settings.get("resume", False),
            quiet=True,
        )
        torch.save({name: group.state_dict() for name, group in groups.items()}, out / f"end-{rank}.pt")

    return work


def ends(out):
    return [torch.load(out / f"end-{rank}.pt", weights_only=True) for rank in range(2)]


def files(out):
    saved = checkpoint.load(checkpoint.latest(out / "checkpoints"))
    return {f"{file}/{key}": value for file, part in saved.tensors.items() for key, value in part.items()}


def differences(a, b):
    """Where two sets of groups differ, and by how much."""
    pairs = {f"{name}.{key}": (a[name][key], value) for name, part in b.items() for key, value in part.items()}
    return {key: float((x - y).abs().max()) for key, (x, y) in pairs.items() if not torch.equal(x, y)}


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_agree_and_resume_bit_for_bit(tmp_path, engine):
    ema = engine != "zero3"
    settings = {"environment": environment(engine, tmp_path)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()

    def killed(progress):
        if progress.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    assert world.run(train(whole, ema=ema), **settings) == [0, 0]
    first, second = ends(whole)
    assert differences(first, second) == {}
    assert -signal.SIGKILL in world.run(train(cut, killed, ema=ema), **settings)
    assert world.run(train(cut, ema=ema, resume=True), **settings) == [0, 0]
    again, _ = ends(cut)
    assert differences(first, again) == {}
    assert toy.equal(files(cut), files(whole))
    kept = files(whole)  # whole tensors of what was trained, and nothing frozen
    assert {key for key in kept if key.startswith("weights/")} == {
        f"weights/{key}" for key in ("body/0.weight", "body/0.bias", "head/weight", "head/bias")
    }
    assert all(
        toy.equal({"": kept[f"weights/{group}/{key}"]}, {"": value})
        for group in ("body", "head")
        for key, value in first[group].items()
    )
    assert sum(file.stat().st_size for file in checkpoint.latest(whole / "checkpoints").glob("weights*")) < 1000


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_step_as_one_on_the_joined_batch(tmp_path, engine):
    """Each step sees all samples, so that their order does not matter."""

    def work(groups, batch_size):
        def loss(batch, progress):
            return {"mse": (groups["head"](groups["body"](batch["x"])) - batch["y"]).square().mean()}

        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
        data = InMemory({"x": x, "y": x.sum(1, keepdim=True)})
        optim = Optim(lr=1e-2, clip=0.5, weight_decay=0.1)
        return [Stage("a", {"body": 1.0, "head": 0.5}, loss, data, batch_size, Length(steps=4), optim, accumulate=2)]

    def child(rank):
        warnings.simplefilter("ignore")
        groups = parts()
        fit(work(groups, 2), groups, out=tmp_path / "two", quiet=True)
        if rank == 0:
            torch.save({name: group.state_dict() for name, group in groups.items()}, tmp_path / "two.pt")

    assert world.run(child, environment=environment(engine, tmp_path)) == [0, 0]
    one, two = parts(), torch.load(tmp_path / "two.pt", weights_only=True)
    fit(work(one, 4), one, out=tmp_path / "one", quiet=True)
    assert max((two[n][k] - v).abs().max() for n, part in one.items() for k, v in part.state_dict().items()) < 1e-6
    log = (tmp_path / "two" / "log.jsonl").read_text().splitlines(), (tmp_path / "one" / "log.jsonl").read_text()
    terms = [json.loads(line)["terms"]["mse"] for line in (log[0][-1], log[1].splitlines()[-1])]
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)  # the log tells the mean over the processes


def test_a_run_of_one_process_goes_on_under_zero_and_its_loss_too(tmp_path):
    """Files do not depend on the engine; only the order of samples belongs to a number of processes."""
    groups = parts()

    def killed(progress):
        if progress.global_step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(stages(groups, killed), groups, out=tmp_path, seed=3, save_every=2, quiet=True)

    def child(rank):
        warnings.simplefilter("ignore")
        again = parts()
        fit(stages(again), again, out=tmp_path, seed=3, resume=True, quiet=True)

    assert world.run(child, processes=1, environment=environment("zero2", tmp_path)) == [0]
    whole = parts()
    fit(stages(whole), whole, out=tmp_path / "whole", seed=3, quiet=True)
    under, plain = files(tmp_path), files(tmp_path / "whole")
    assert under.keys() == plain.keys()
    assert max((under[key] - value).abs().max() for key, value in plain.items()) < 1e-6


def test_an_average_under_zero_3_is_refused(tmp_path):
    def child(rank):
        warnings.simplefilter("ignore")
        groups = parts()
        with pytest.raises(ValueError, match=r"an average .ema. needs whole weights"):
            fit(stages(groups), groups, out=tmp_path / "out", quiet=True)

    assert world.run(child, processes=1, environment=environment("zero3", tmp_path)) == [0]


def test_a_launch_that_asks_for_fsdp_is_answered_with_what_there_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="choose ZeRO-2 or ZeRO-3"):
        launched()
