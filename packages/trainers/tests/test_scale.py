"""Two processes: DDP, FSDP2 and DeepSpeed's ZeRO give the run of one process, resume bit for bit, and save adapters
alone.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import forked
import pytest
import torch
import toy
from safetensors import safe_open
from torch import nn

from trainers import EMA, Guards, InMemory, Length, Matrices, Optim, Progress, Stage, TrainingWarning, checkpoint, fit
from trainers.engine import Engine, launched
from trainers.groups import named_groups

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
LATER = (
    "accelerate",
    "torch._dynamo",
    "torch._inductor.config",
    "trainers.fsdp",
)
with warnings.catch_warnings():  # what engines import when chosen: once for all, before the processes are forked
    warnings.simplefilter("ignore")
    for name in LATER:
        pytest.importorskip(name)
    if DEEPSPEED:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        import trainers.zero  # noqa: F401

        pytest.importorskip("deepspeed.runtime.zero.muon.original_muon")  # slow to import, by torch.compile

        # a faster exchange within a machine, which DeepSpeed would compile with the first process group
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
}


def engines(*names):
    """The named engines, DeepSpeed's skipped where it is not."""
    skip = pytest.mark.skipif(not DEEPSPEED, reason="needs DeepSpeed: uv run --isolated --group engines pytest ...")
    return [pytest.param(name, marks=skip if name in ZERO else ()) for name in names]


def environment(engine, folder, **config):
    """What `accelerate launch --config_file` would set for an engine."""
    if engine not in ZERO:
        return FSDP if engine == "fsdp2" else {}
    config = {
        "zero_optimization": ZERO[engine],
        "train_micro_batch_size_per_gpu": "auto",
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: DeepSpeed's own is compiled for minutes
        "zero_allow_untested_optimizer": True,
    } | config
    path = folder / f"{engine}.json"
    path.write_text(json.dumps(config))
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
        "DS_ACCELERATOR": "cpu",
        "DEEPSPEED_LOG_LEVEL": "error",
    }


def run(child, engine, folder, *, processes=2, more=None):
    """Run `child(rank)` in every process; return their exit codes."""

    def quietly(rank):
        warnings.simplefilter("ignore")  # DeepSpeed's and gloo's own remarks
        child(rank)

    return forked.run(quietly, processes=processes, environment=environment(engine, folder) | (more or {}))


def parts(*, noisy=False):
    """A small model; `noisy`: with dropout and with running statistics that differ from process to process."""
    torch.manual_seed(0)
    noise = [nn.BatchNorm1d(7), nn.Dropout(0.2)] if noisy else []
    body = nn.Sequential(nn.Linear(3, 7), *noise, nn.Tanh())
    return {"body": body, "head": nn.Linear(7, 1), "frozen": nn.Linear(256, 256)}


def data(n=12):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    return InMemory({"x": x, "y": x.sum(1, keepdim=True)})


def state(groups):
    return {f"{name}.{key}": v.clone() for name, group in groups.items() for key, v in group.state_dict().items()}


def apart(a, b):
    """By how much two states differ at most, 0 where every bit is equal."""
    assert a.keys() == b.keys()
    return max((float((a[key] - b[key]).abs().max()) for key in a if not torch.equal(a[key], b[key])), default=0.0)


def files(out):
    saved = checkpoint.load(checkpoint.latest(out / "checkpoints"))
    return {f"{file}/{key}": value for file, part in saved.tensors.items() for key, value in part.items()}


# ---- resume


def stages(groups, before=lambda progress: None, *, ema=True):
    """Two stages whose epochs end inside them; the loss draws numbers, and dropout does."""

    def loss(batch, progress):
        before(progress)
        x = batch["x"] + 0.1 * torch.randn(batch["x"].shape, generator=progress.generator)
        return {"mse": (groups["head"](groups["body"](x)) - batch["y"]).square().mean()}

    optim = Optim(lr=1e-2, clip=0.5, schedule="cosine", warmup_steps=2)
    shared = {"batch_size": 2, "optim": optim, "handover": "keep"}
    averages = [EMA(0.9, apply=True), EMA(0.8)] if ema else [None, None]
    both = {"body": 1.0, "head": 0.5}
    first = Stage("a", both, loss, data(), length=Length(steps=6), accumulate=2, unfreeze={"body": 2},
                  ema=averages[0], **shared)  # fmt: skip
    return [first, Stage("b", {"head": 1.0}, loss, data(10), length=Length(steps=4), ema=averages[1], **shared)]


def killed_at(step):
    def before(progress):
        if progress.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def train(out, before=lambda progress: None, *, ema=True, resume=False):
    """What each process does."""

    def child(rank):
        torch.manual_seed(rank + 40 * resume)  # what a process has drawn before must not matter
        groups = parts(noisy=True)
        chosen = stages(groups, before, ema=ema)
        fit(chosen, groups, out=out, seed=3, save_every=3, keep=9, resume=resume, quiet=True)
        torch.save(state(groups), out / f"end-{rank}.pt")

    return child


def ends(out):
    return [torch.load(out / f"end-{rank}.pt", weights_only=True) for rank in range(2)]


EPOCH, BORDER, WITHIN = 3, 6, 9
"""Steps after a checkpoint at an epoch's end, at the end of a stage, and within an epoch."""


@pytest.mark.parametrize(
    ("engine", "kills"),
    [
        *(pytest.param(*p.values, [EPOCH, BORDER, WITHIN], marks=p.marks) for p in engines("ddp", "fsdp2", "zero2")),
        *(pytest.param(*p.values, [WITHIN], marks=p.marks) for p in engines("zero2-offload", "zero3")),
    ],
)
def test_two_processes_agree_and_resume_bit_for_bit(tmp_path, engine, kills):
    ema = engine != "zero3"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert run(train(whole, ema=ema), engine, tmp_path) == [0, 0]
    first, second = ends(whole)
    assert apart(first, second) == 0
    resumed = []
    for kill in kills:
        child = train(cut, killed_at(kill), ema=ema, resume=bool(resumed))
        assert -signal.SIGKILL in run(child, engine, tmp_path)
        resumed.append(checkpoint.load(checkpoint.latest(cut / "checkpoints")).state)
    assert [(s["global_step"], s["order"]["index"]) for s in resumed] == [
        {EPOCH: (3, 0), BORDER: (6, 0), WITHIN: (9, 2)}[kill] for kill in kills
    ]
    assert run(train(cut, ema=ema, resume=True), engine, tmp_path) == [0, 0]
    again, _ = ends(cut)
    assert apart(first, again) == 0
    assert toy.equal(files(cut), files(whole))
    kept = files(whole)
    assert all(
        torch.equal(kept[f"weights/{g}/{k}"], first[f"{g}.{k}"]) for g, k in (("body", "0.bias"), ("head", "bias"))
    )


# ---- equal to one process


def plain(groups, *, batch_size, steps=4, frozen=None):
    """One stage whose steps each see all eight samples, so that their order does not matter."""

    def loss(batch, progress):
        x = batch["x"] if frozen is None else batch["x"] + frozen(batch["x"].repeat(1, 100)[:, :256])[:, :3]
        return {"mse": (groups["head"](groups["body"](x)) - batch["y"]).square().mean()}

    optim = Optim(lr=1e-2, clip=0.5, weight_decay=0.1)
    both = {"body": 1.0, "head": 0.5}
    return [Stage("a", both, loss, data(8), batch_size, Length(steps=steps), optim, accumulate=2)]


@pytest.mark.parametrize("engine", engines("ddp", "fsdp2", "zero2", "zero2-offload", "zero3"))
def test_two_processes_step_as_one_on_the_joined_batch(tmp_path, engine):
    def child(rank):
        groups = parts()
        fit(plain(groups, batch_size=2), groups, out=tmp_path / "two", quiet=True)
        torch.save(state(groups), tmp_path / f"end-{rank}.pt")

    assert run(child, engine, tmp_path) == [0, 0]
    one = parts()
    fit(plain(one, batch_size=4), one, out=tmp_path / "one", quiet=True)
    first, second = ends(tmp_path)
    assert apart(first, second) == 0
    assert 0 < apart(first, state(parts())) != 0
    assert apart(first, state(one)) < 1e-6
    terms = [
        json.loads((tmp_path / n / "log.jsonl").read_text().splitlines()[-1])["terms"]["mse"] for n in ("one", "two")
    ]
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)  # the log tells the mean over the processes


class Experts(nn.Module):
    """Three maps of which each sample asks one."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))

    def forward(self, x, which):
        return sum((which == k)[:, None] * self.maps[k](x) for k in which.unique().tolist())


@pytest.mark.parametrize("engine", engines("ddp", "fsdp2", "zero2", "zero2-offload"))
def test_an_expert_that_one_process_asks_moves_and_one_that_none_asks_stays(tmp_path, engine):
    """Gradients travel in buckets: those of different experts must not meet in one."""

    def experts():
        torch.manual_seed(0)
        return {"experts": Experts()}

    def error(groups, batch, rank):
        return (groups["experts"](batch["x"], torch.full((2,), rank)) - batch["y"]).square().mean()

    def child(rank):
        groups, seen = experts(), []

        def loss(batch, progress):
            seen.append(batch)
            return {"mse": error(groups, batch, rank)}

        optim = Optim(lr=1e-2, weight_decay=0.5, clip=None)
        stage = Stage("a", {"experts": 1.0}, loss, data(4), 2, Length(steps=3), optim)
        fit([stage], groups, out=tmp_path / "two", quiet=True)
        torch.save(state(groups), tmp_path / f"end-{rank}.pt")
        torch.save(seen, tmp_path / f"seen-{rank}.pt")

    assert run(child, engine, tmp_path) == [0, 0]
    first, second = ends(tmp_path)
    assert apart(first, second) == 0
    by_hand = experts()
    step = torch.optim.AdamW(by_hand["experts"].parameters(), lr=1e-2, weight_decay=0.5)
    for batches in zip(
        *(torch.load(tmp_path / f"seen-{rank}.pt", weights_only=True) for rank in range(2)), strict=True
    ):
        step.zero_grad()
        sum(error(by_hand, batch, rank) / 2 for rank, batch in enumerate(batches)).backward()
        step.step()
    asked = {key for key in first if "maps.2" not in key}
    assert apart({k: first[k] for k in asked}, {k: v for k, v in state(by_hand).items() if k in asked}) < 1e-6
    idle = {key: first[key] for key in first.keys() - asked}
    stays = apart(idle, {key: state(experts())[key] for key in idle}) == 0
    assert stays == (engine in ("ddp", "fsdp2"))  # DeepSpeed steps it with a gradient of zero
    moments = {key for key in files(tmp_path / "two") if "maps.2" in key and key.startswith("optimizer/")}
    assert bool(moments) != stays


@pytest.mark.parametrize("engine", engines("ddp", "fsdp2", "zero2", "zero2-offload", "zero3"))
def test_a_frozen_model_in_the_loss_is_neither_wrapped_nor_saved(tmp_path, engine):
    def child(rank):
        groups = parts()
        frozen = groups.pop("frozen").requires_grad_(False)
        before = vars(frozen).copy(), frozen.weight.clone()
        fit(plain(groups, batch_size=2, frozen=frozen), groups, out=tmp_path / "out", watch={"f": frozen}, quiet=True)
        assert type(frozen) is nn.Linear
        assert vars(frozen).keys() == before[0].keys()
        assert not any(vars(frozen)[name] for name in vars(frozen) if name.endswith("_hooks"))
        assert type(frozen.weight) is nn.Parameter
        assert not vars(frozen.weight)
        assert torch.equal(frozen.weight, before[1])

    assert run(child, engine, tmp_path) == [0, 0]
    newest = checkpoint.latest(tmp_path / "out" / "checkpoints")
    sizes = {}
    for name in ("weights", "optimizer"):
        with safe_open(newest / f"{name}.safetensors", framework="pt") as file:
            sizes[name] = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    adapter = {"body/0.weight": 84, "body/0.bias": 28, "head/weight": 28, "head/bias": 4}
    assert sizes["weights"] == adapter  # bytes of float32; the frozen weight has 262,144
    assert sizes["optimizer"] == {
        f"{key}#{moment}": 4 if moment == "step" else size
        for key, size in adapter.items()
        for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    assert sum(file.stat().st_size for file in newest.iterdir()) < 6_000


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines("zero2-offload"))
def test_deepspeeds_own_adam_on_the_cpu_is_compiled_steps_as_one_process_and_resumes(tmp_path, engine):
    """Minutes, the first time on a machine: g++ compiles DeepSpeedCPUAdam."""

    def child(out, steps, resume):
        def work(rank):
            groups = parts()
            fit(plain(groups, batch_size=2, steps=steps), groups, out=tmp_path / out, resume=resume, quiet=True)
            torch.save(state(groups), tmp_path / f"end-{rank}.pt")

        return work

    forced = {"zero_force_ds_cpu_optimizer": True}
    for out, steps, resume in (("whole", 6, False), ("cut", 3, False), ("cut", 6, True)):
        work = child(out, steps, resume)
        assert forked.run(work, environment=environment(engine, tmp_path, **forced)) == [0, 0]
    assert toy.equal(files(tmp_path / "cut"), files(tmp_path / "whole"))
    one = parts()
    fit(plain(one, batch_size=4, steps=6), one, out=tmp_path / "one", quiet=True)
    assert apart(ends(tmp_path)[0], state(one)) < 1e-5


# ---- from one engine to another


@pytest.mark.parametrize(
    ("begun", "ended"),
    [
        *(pytest.param("one", *p.values, marks=p.marks) for p in engines("fsdp2", "zero2", "zero3")),
        pytest.param("fsdp2", "one"),
    ],
)
def test_a_run_goes_on_under_another_engine(tmp_path, begun, ended):
    """Files do not depend on the engine; only the order of samples belongs to a number of processes."""

    def stopping(progress):
        if progress.global_step == 5:
            raise KeyboardInterrupt

    def child(rank, before, resume):
        groups = parts()
        stages_ = stages(groups, before, ema=False)
        fit(stages_, groups, out=tmp_path / "cut", seed=3, save_every=3, resume=resume, quiet=True)

    def first(rank):
        with pytest.raises(KeyboardInterrupt):
            child(rank, stopping, False)

    def second(rank):
        child(rank, lambda progress: None, True)

    for work, engine in ((first, begun), (second, ended)):
        if engine == "one":
            work(0)
        else:
            assert run(work, engine, tmp_path, processes=1) == [0]
    whole = parts()
    fit(stages(whole, ema=False), whole, out=tmp_path / "whole", seed=3, quiet=True)
    assert apart(files(tmp_path / "cut"), files(tmp_path / "whole")) < 1e-6


# ---- bfloat16


@pytest.mark.parametrize("engine", engines("one", "ddp", "fsdp2", "zero2", "zero3"))
def test_bf16_computes_in_bfloat16_and_steps_and_saves_in_float32(tmp_path, engine):
    processes = 1 if engine == "one" else 2
    more = {"ACCELERATE_MIXED_PRECISION": "bf16"}

    def work(out, steps, resume=False):
        def child(rank):
            groups, seen = parts(), []
            groups["head"].register_forward_hook(lambda module, given, made: seen.append(made.dtype))
            fit(plain(groups, batch_size=8 // processes // 2, steps=steps), groups, out=out, resume=resume, quiet=True)
            assert set(seen) == {torch.bfloat16}
            assert {p.dtype for g in groups.values() for p in g.parameters()} == {torch.float32}

        return child

    for out, steps, resume in (("whole", 6, False), ("cut", 3, False), ("cut", 6, True)):
        assert (
            run(work(tmp_path / out, steps, resume), engine, tmp_path, processes=processes, more=more)
            == [0] * processes
        )
    assert toy.equal(files(tmp_path / "cut"), files(tmp_path / "whole"))
    kept = files(tmp_path / "whole")
    assert {value.dtype for value in kept.values()} == {torch.float32}
    weight = kept["weights/body/0.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
    exact = parts()
    fit(plain(exact, batch_size=4, steps=6), exact, out=tmp_path / "exact", quiet=True)
    near = {key: value for key, value in files(tmp_path / "exact").items() if key.startswith("weights/")}
    assert 0 < max(float((kept[key] - value).abs().max()) for key, value in near.items()) < 2e-2


@pytest.mark.parametrize("engine", engines("ddp", "fsdp2", "zero2", "zero3"))
def test_recomputed_activations_give_the_same_bits(tmp_path, engine):
    def child(rank):
        ends_ = []
        for recompute in ((), ("body", "head")):
            groups = parts(noisy=True)
            stage = dataclasses.replace(stages(groups, ema=False)[0], recompute=recompute)
            fit([stage], groups, out=tmp_path / str(len(recompute)), quiet=True)
            ends_.append({k: v for k, v in state(groups).items() if "body.1" not in k})  # statistics are taken in twice
        assert apart(*ends_) == 0

    assert run(child, engine, tmp_path) == [0, 0]


# ---- what an engine is asked besides

START = Progress("a", 0, 0, None, 0.0, torch.Generator())


@pytest.mark.parametrize("engine", engines("ddp", "fsdp2", "zero2", "zero2-offload"))
def test_the_gradient_of_one_term_on_one_group_is_that_of_one_process_and_changes_nothing(tmp_path, engine):
    x = data(8).columns["x"]

    def losses(groups):
        def loss(batch, progress):
            made = groups["head"](groups["body"](batch["x"]))
            return {"mse": (made - batch["y"]).square().mean(), "size": 3 * made.abs().mean()}

        return loss

    def ask(engine, x, looking):
        groups = parts()
        groups = {name: groups[name] for name in ("body", "head")}
        engine.begin(groups, Optim(lr=1e-2), {}, loss=losses(groups), batch_size=len(x) // 2, accumulate=2)
        engine.forget()
        found = []
        for micro, part in enumerate(x.split(len(x) // 2)):
            terms = engine.forward({"x": part, "y": part.sum(1, keepdim=True)}, START, last=micro == 1)
            if looking:
                found.append([part / 2 for part in engine.gradient(terms["size"], "head")])
            engine.backward(sum(terms.values()) / 2, last=micro == 1)
        norm = engine.norm_of(torch._foreach_add(*found)) if looking else 0.0
        return norm, engine.step({"body": 1.0, "head": 1.0}, None), engine.weights()

    def child(rank):
        engine = launched()
        norm, total, after = ask(engine, x[rank::2], True)
        engine.end()
        _, same, again = ask(engine, x[rank::2], False)
        assert total == same
        assert toy.equal(after, again)
        (tmp_path / f"{rank}.json").write_text(json.dumps([norm, total]))

    assert run(child, engine, tmp_path) == [0, 0]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    joined = torch.cat([x[0::2][:2], x[1::2][:2], x[0::2][2:], x[1::2][2:]])  # both processes' first batches, then ...
    norm, total, _ = ask(Engine(), joined, True)
    assert told[0] == pytest.approx([norm, total], rel=1e-5)
    assert 0 < norm < total


@pytest.mark.parametrize("engine", engines("fsdp2", "zero3"))
def test_weights_are_whole_while_they_are_looked_at(tmp_path, engine):
    def child(rank):
        engine, groups = launched(), parts()
        del groups["frozen"]
        x = data(4).columns["x"]
        expected = groups["head"](groups["body"](x)).detach()
        engine.begin(groups, Optim(), {}, loss=lambda b, p: {}, batch_size=2, accumulate=1)
        assert (
            sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in groups["body"].parameters()) < 28
        )
        with engine.whole(), torch.no_grad():
            assert torch.equal(groups["head"](groups["body"](x)), expected)

    assert run(child, engine, tmp_path) == [0, 0]


def test_every_process_hears_what_the_others_say(tmp_path):
    def child(rank):
        said = launched().exchange({"rank": rank, "text": "ä" * (5 + 30 * rank)})
        assert said == [{"rank": 0, "text": "ä" * 5}, {"rank": 1, "text": "ä" * 35}]

    assert run(child, "ddp", tmp_path) == [0, 0]


LONG = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy
from trainers import fit
parts = toy.groups()
begun = lambda progress: Path({out!r}, "begun").touch() if progress.step == 1 else None
fit([toy.stage(parts, steps=10**6, before=begun)], parts, out={out!r}, save_every=10**6, quiet=True)
"""


def test_torchrun_passes_sigterm_on_and_every_process_leaves_after_one_checkpoint(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(LONG.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--shutdown-timeout", "100", str(script)]
    agent = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=120)
    assert agent.returncode != 0, said
    left = checkpoint.latest(tmp_path / "checkpoints")
    assert left is not None, said
    saved = checkpoint.load(left)
    assert saved.state["global_step"] > 0
    assert saved.state["run"]["world_size"] == 2


def test_an_error_names_its_process_and_only_the_first_warns(tmp_path):
    def child(rank):
        groups = parts()

        def loss(batch, progress):
            if progress.step == 3:
                raise RuntimeError("lost")
            return {"l": sum(p.sum() for p in groups["head"].parameters())}

        stage = Stage("a", {"body": 1.0, "head": 1.0}, loss, data(), 2, Length(steps=5))
        warnings.simplefilter("always")
        with warnings.catch_warnings(record=True) as told, pytest.raises(RuntimeError, match="lost") as error:
            fit([stage], groups, out=tmp_path, guard=Guards(zero_gradient_steps=2), quiet=True)
        assert error.value.__notes__ == [f"in process {rank} of 2"]
        assert len([w for w in told if issubclass(w.category, TrainingWarning)]) == (rank == 0)

    assert run(child, "ddp", tmp_path) == [0, 0]


# ---- FSDP2's own settings


class Block(nn.Linear):
    pass


def test_named_classes_become_units_of_their_own_and_the_result_is_the_same(tmp_path):
    def blocks():
        torch.manual_seed(0)
        return {"body": nn.Sequential(Block(3, 8), nn.Tanh(), Block(8, 8)), "head": nn.Linear(8, 1)}

    def child(rank):
        groups = blocks()
        fit(plain(groups, batch_size=2), groups, out=tmp_path / "two", quiet=True)
        assert {type(m) for m in groups["body"]} == {Block, nn.Tanh}
        assert not [name for m in groups["body"] for name in vars(m) if name.endswith("_hooks") and vars(m)[name]]
        torch.save(state(groups), tmp_path / f"end-{rank}.pt")

    more = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}
    assert run(child, "fsdp2", tmp_path, more=more) == [0, 0]
    one = blocks()
    fit(plain(one, batch_size=4), one, out=tmp_path / "one", quiet=True)
    assert apart(ends(tmp_path)[0], state(one)) < 1e-6


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "Blok", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, "got Blok"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "100"}, "SIZE_BASED_WRAP"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing"),
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "got fp16"),
    ],
)
def test_what_a_config_asks_in_vain_is_refused_with_a_sentence(tmp_path, more, match):
    def child(rank):
        groups = parts()
        with pytest.raises(ValueError, match=match):
            fit(plain(groups, batch_size=2), groups, out=tmp_path / "out", quiet=True)

    assert run(child, "fsdp2", tmp_path, processes=1, more=more) == [0]


@pytest.mark.parametrize("engine", engines("fsdp2", "zero3"))
def test_single_parameters_of_a_module_are_refused_where_they_would_be_taken_apart(tmp_path, engine):
    def child(rank):
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        groups = named_groups(net, {"biases": ["*.bias"]})
        stage = Stage("a", {"biases": 1.0}, lambda b, p: {"l": net(b["x"]).sum()}, data(4), 2, Length(steps=1))
        with pytest.raises(ValueError, match=r"single parameters in 'biases' \(0\.bias\)"):
            fit([stage], groups, out=tmp_path / "out", quiet=True)

    assert run(child, engine, tmp_path, processes=1) == [0]


@pytest.mark.parametrize("engine", engines("zero3", "zero2"))
def test_an_average_is_refused_where_no_process_has_whole_float32_weights(tmp_path, engine):
    def child(rank):
        groups = parts()
        with pytest.raises(ValueError, match=r"an average .ema. needs whole float32 weights"):
            fit(stages(groups), groups, out=tmp_path / "out", quiet=True)

    more = {"ACCELERATE_MIXED_PRECISION": "bf16"} if engine == "zero2" else {}
    assert run(child, engine, tmp_path, processes=1, more=more) == [0]


def test_matrices_under_muon_step_whole_under_fsdp2(tmp_path):
    def muon(groups, batch_size):
        stage = plain(groups, batch_size=batch_size)[0]
        optim = Optim(lr=1e-2, muon=Matrices(names=("body/0.weight",), lr=1e-2))
        return [dataclasses.replace(stage, optim=optim)]

    def child(rank):
        groups = parts()
        fit(muon(groups, 2), groups, out=tmp_path / "two", quiet=True)
        torch.save(state(groups), tmp_path / f"end-{rank}.pt")

    assert run(child, "fsdp2", tmp_path) == [0, 0]
    one = parts()
    fit(muon(one, 4), one, out=tmp_path / "one", quiet=True)
    assert apart(ends(tmp_path)[0], state(one)) < 1e-3  # bfloat16 inside of Muon


@pytest.mark.parametrize("engine", engines("fsdp2", "zero2"))
def test_8_bit_moments_are_refused_where_moments_are_shared_out(tmp_path, engine):
    def child(rank):
        groups = parts()
        stage = dataclasses.replace(plain(groups, batch_size=2)[0], optim=Optim(kind="adamw8bit"))
        with pytest.raises(ValueError, match="got 'adamw8bit'"):
            fit([stage], groups, out=tmp_path / "out", quiet=True)

    assert run(child, engine, tmp_path, processes=1) == [0]
