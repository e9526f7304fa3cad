"""AdamW with moments in 8 bits (torchao): what is kept of them, and that a resume goes on from the same bits."""

import importlib.util
import sys
import warnings

import pytest
import torch
import toy
from torch import nn

from trainers import InMemory, Length, Optim, Stage, TrainingWarning, checkpoint, fit

needs = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: uv run --isolated --group engines pytest ..."
)


@pytest.fixture
def eager():
    """torchao compiles its step, some ten seconds for each shape; the same function runs uncompiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        pytest.importorskip("torchao.optim")
    with torch.compiler.set_stance("force_eager"):
        yield


def parts():
    torch.manual_seed(0)
    return {"net": nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))}  # 4,096 elements, 64, 64, 1


def stage(groups, kind, *, steps=8, before=lambda progress: None):
    def loss(batch, progress):
        before(progress)
        noise = torch.randn(batch["x"].shape, generator=progress.generator)
        return {"mse": (groups["net"](batch["x"] + 0.1 * noise) - batch["y"]).square().mean()}

    x = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
    optim = Optim(kind=kind, lr=1e-2, schedule="cosine", warmup_steps=2)
    return Stage("a", {"net": 1.0}, loss, InMemory({"x": x, "y": x[:, :1]}), 4, Length(steps=steps), optim)


def files(out):
    saved = checkpoint.load(checkpoint.latest(out / "checkpoints"))
    return {f"{file}/{key}": value for file, part in saved.tensors.items() for key, value in part.items()}


def die(progress):
    if progress.step == 5:
        raise KeyboardInterrupt


@needs
def test_moments_are_saved_in_8_bits_and_a_resume_goes_on_from_the_same_bits(tmp_path, eager):
    whole, cut = parts(), parts()
    fit([stage(whole, "adamw8bit")], whole, out=tmp_path / "whole", save_every=2, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit([stage(cut, "adamw8bit", before=die)], cut, out=tmp_path / "cut", save_every=2, quiet=True)
    again = parts()
    fit([stage(again, "adamw8bit")], again, out=tmp_path / "cut", save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(again), toy.state(whole))
    kept = files(tmp_path / "whole")
    assert toy.equal(files(tmp_path / "cut"), kept)
    assert kept["optimizer/net/0.weight#exp_avg.codes"].dtype is torch.uint8
    assert {k: v.nbytes for k, v in kept.items() if k.startswith("optimizer/net/0.weight")} == {
        "optimizer/net/0.weight#step": 4,
        **{f"optimizer/net/0.weight#{moment}.codes": 4096 for moment in ("exp_avg", "exp_avg_sq")},
        **{f"optimizer/net/0.weight#{moment}.scale": 64 for moment in ("exp_avg", "exp_avg_sq")},
    }
    assert kept["optimizer/net/0.bias#exp_avg"].dtype is torch.float32  # small tensors stay as they are


@needs
def test_it_trains_as_adamw_does_but_for_the_rounding_of_its_moments(tmp_path, eager):
    eight, full = parts(), parts()
    fit([stage(eight, "adamw8bit")], eight, out=tmp_path / "eight", quiet=True)
    fit([stage(full, "adamw")], full, out=tmp_path / "full", quiet=True)
    begun, a, b = toy.state(parts()), toy.state(eight), toy.state(full)
    moved = torch.cat([(b[key] - begun[key]).flatten() for key in b])
    apart = torch.cat([(a[key] - b[key]).flatten() for key in b])
    assert 0 < float(apart.norm() / moved.norm()) < 0.2


@needs
@pytest.mark.parametrize(("first", "second"), [("adamw", "adamw8bit"), ("adamw8bit", "adamw")])
def test_moments_of_the_other_kind_are_begun_afresh_and_said_so(tmp_path, eager, first, second):
    groups = parts()
    with pytest.raises(KeyboardInterrupt):
        fit([stage(groups, first, before=die)], groups, out=tmp_path, save_every=2, quiet=True)
    again = parts()
    with pytest.warns(TrainingWarning, match=r"stages\.0\.optim"):
        fit([stage(again, second)], again, out=tmp_path, save_every=2, resume=True, quiet=True)
    steps = {key: float(value) for key, value in files(tmp_path).items() if key.endswith("#step")}
    assert steps["optimizer/net/0.weight#step"] == 4  # 4 of 8
    assert steps["optimizer/net/0.bias#step"] == 8  # float32 in both


@needs
@pytest.mark.slow
def test_the_compiled_step_resumes_bit_for_bit_too(tmp_path):
    whole, again = parts(), parts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit([stage(whole, "adamw8bit")], whole, out=tmp_path / "whole", save_every=2, quiet=True)
        with pytest.raises(KeyboardInterrupt):
            fit([stage(again, "adamw8bit", before=die)], again, out=tmp_path / "cut", save_every=2, quiet=True)
        again = parts()
        fit([stage(again, "adamw8bit")], again, out=tmp_path / "cut", save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(again), toy.state(whole))


def test_without_torchao_it_is_refused_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    groups = parts()
    with pytest.raises(ValueError, match=r"pip install 'phystrainers\[torchao\]'"):
        fit([stage(groups, "adamw8bit")], groups, out=tmp_path, quiet=True)
