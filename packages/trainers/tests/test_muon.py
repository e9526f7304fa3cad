"""Muon for matrices beside AdamW for the rest: the same step as torch's own two optimizers, and as exact to resume."""

import pytest
import torch
import toy

from trainers import Length, Matrices, Optim, Stage, checkpoint, fit

MUON = Optim(lr=1e-2, weight_decay=0.1, clip=None, muon=Matrices(names=("encoder/*", "head/weight"), lr=2e-2))


def killed(progress):
    if progress.global_step == 4:
        raise KeyboardInterrupt


def test_named_matrices_step_as_torchs_muon_and_all_else_as_its_adamw(tmp_path):
    parts, expected = toy.groups(), toy.groups()
    matrices = [expected["encoder"].layer.weight, expected["head"].weight]
    vectors = [p for name in ("encoder", "head") for p in expected[name].parameters() if p.ndim < 2]
    reference = [
        torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(vectors, lr=1e-2, weight_decay=0.1, fused=True),
    ]

    def loss(on):
        return lambda batch, progress: {
            "mse": (on["head"](on["encoder"].layer(batch["x"])) - batch["y"]).square().mean()
        }

    groups = {"encoder": 1.0, "head": 1.0}
    stage = Stage("a", groups, loss(parts), toy.data(4), batch_size=4, length=Length(steps=3), optim=MUON)
    fit([stage], parts, out=tmp_path, quiet=True)
    for _ in range(3):
        for optimizer in reference:
            optimizer.zero_grad()
        loss(expected)(toy.data(4).get_batch(torch.arange(4)), None)["mse"].backward()
        for optimizer in reference:
            optimizer.step()
    assert torch.allclose(parts["encoder"].layer.weight, expected["encoder"].layer.weight, atol=1e-6)
    assert torch.allclose(parts["head"].bias, expected["head"].bias, atol=1e-6)
    saved = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints")).tensors["optimizer"]
    kept = {key.partition("#")[0] for key in saved if key.endswith("#momentum_buffer")}
    assert kept == {"encoder/layer.weight", "head/weight"}


def test_a_run_with_muon_resumes_bit_for_bit(tmp_path):
    whole, parts = toy.groups(), toy.groups()
    fit([toy.stage(whole, optim=MUON)], whole, out=tmp_path / "whole", save_every=3, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit([toy.stage(parts, optim=MUON, before=killed)], parts, out=tmp_path / "cut", save_every=3, quiet=True)
    parts = toy.groups()
    fit([toy.stage(parts, optim=MUON)], parts, out=tmp_path / "cut", save_every=3, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), toy.state(whole))


def test_the_factor_of_a_group_scales_muons_steps_too(tmp_path):
    def moved(folder, factor):
        parts = toy.groups()
        before = parts["head"].weight.detach().clone()
        optim = Optim(lr=1e-3, weight_decay=0.0, muon=Matrices(names=("head/*",)))
        fit([toy.stage(parts, groups={"head": factor}, steps=1, optim=optim)], parts, out=folder, quiet=True)
        return (parts["head"].weight - before).abs().max().item()

    assert moved(tmp_path / "a", 0.5) == pytest.approx(0.5 * moved(tmp_path / "b", 1.0), rel=1e-3)


def test_moments_of_the_other_optimizer_are_not_carried_over(tmp_path):
    parts = toy.groups()
    stages = [toy.stage(parts, "a", steps=2), toy.stage(parts, "b", steps=2, optim=MUON, handover="keep")]
    fit(stages, parts, out=tmp_path, quiet=True)
    saved = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints")).tensors["optimizer"]
    assert {key.partition("#")[2] for key in saved if key.startswith("head/weight#")} == {"momentum_buffer"}
    assert int(saved["head/bias#step"]) == 4


def test_a_matrix_that_no_pattern_names_stays_with_adamw(tmp_path):
    parts = toy.groups()
    optim = Optim(muon=Matrices(names=("head/*",)))
    fit([toy.stage(parts, steps=1, optim=optim)], parts, out=tmp_path, quiet=True)
    saved = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints")).tensors["optimizer"]
    assert {key.partition("#")[0] for key in saved if key.endswith("#momentum_buffer")} == {"head/weight"}


def test_a_pattern_that_matches_no_matrix_is_refused(tmp_path):
    parts = toy.groups()
    optim = Optim(muon=Matrices(names=("head/bias",)))
    with pytest.raises(ValueError, match="expected a pattern that matches a matrix of the groups encoder, head, got"):
        fit([toy.stage(parts, optim=optim)], parts, out=tmp_path, quiet=True)
