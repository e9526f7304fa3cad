"""Laws of ramps: a recursive one starts again when its term's gradient grows, the same in every process and after a
resume.
"""

import json
import statistics
import warnings

import forked
import pytest
import torch
import toy
from torch import nn

from trainers import InMemory, Length, Optim, RecursiveRamp, Stage, checkpoint, expected_resets, fit
from trainers.ramps import Recursion

RAMP = RecursiveRamp(end=2.0, steps=5, term="log/physics", group="physics", window=3)


def parts():
    torch.manual_seed(0)
    return {"physics": nn.Linear(2, 1, bias=False), "head": nn.Linear(1, 1)}


def stages(groups, ramp=RAMP, *, steps=24, spike=(), before=lambda progress: None, batch=4, accumulate=1):
    """The physics term's gradient is known: |d/dw mean(x w)| x 1, or x 1000 at the steps `spike`."""

    def loss(batch, progress):
        before(progress)
        strength = 1000.0 if progress.global_step in spike else 1.0
        hidden = groups["physics"](batch["x"])
        physics = strength * hidden.mean()
        return {
            "fit": (groups["head"](hidden) - 1).square().mean(),
            "physics": 1e-3 * progress.ramp("physics") * physics,
            "log/physics": physics,
        }

    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)) + 2
    data = InMemory({"x": x})
    optim = Optim(lr=1e-3, clip=None)
    length = Length(steps=steps)
    return [Stage("a", {"physics": 1.0, "head": 1.0}, loss, data, batch, length, optim, accumulate, {"physics": ramp})]


def run(out, *, seed=0, groups=None, resume=False, **rest):
    groups, lines = groups or parts(), []
    fit(stages(groups, **rest), groups, out=out, seed=seed, save_every=2, log=lines.append, log_every=1, resume=resume,
        quiet=True)  # fmt: skip
    return groups, [(line["ramps"]["physics"], line["recursive"]["physics"]) for line in lines]


def test_alpha_rises_from_nothing_to_its_end_and_eta_is_known_after_the_first_ramp(tmp_path):
    _, lines = run(tmp_path)
    assert [alpha for alpha, _ in lines] == pytest.approx([min(2.0, 0.4 * k) for k in range(24)])
    averages = [state["average"] for _, state in lines]
    assert [state["eta"] for _, state in lines[:4]] == [None] * 4
    assert lines[4][1]["eta"] == pytest.approx(5 * statistics.median(averages[:5]))
    assert {state["resets"] for _, state in lines} == {0}


def test_the_norm_is_that_of_the_unweighted_term_alone(tmp_path):
    """At weight 0, beside another term on the same group, and with no trace in the update."""
    groups = parts()
    seen = []

    def before(progress):
        seen.append(progress.step)

    _, lines = run(tmp_path, groups=groups, steps=1, before=before)
    order_free = torch.stack([stages(groups)[0].data[i]["x"] for i in range(8)])
    norms = [order_free[chosen].mean(0).norm().item() for chosen in torch.combinations(torch.arange(8), 4)]
    assert any(lines[0][1]["average"] == pytest.approx(norm, rel=1e-6) for norm in norms)
    assert lines[0][0] == 0.0

    plain, measured = parts(), parts()
    run(tmp_path / "every", groups=measured)
    run(tmp_path / "never", groups=plain, ramp=RecursiveRamp(end=2.0, steps=5, term="log/physics", group="physics",
                                                             measure_every=1000))  # fmt: skip
    assert toy.equal(toy.state(plain), toy.state(measured))


def test_a_spike_in_the_gradient_resets_alpha_until_the_average_is_below_eta_again(tmp_path):
    _, lines = run(tmp_path, spike=(10,))
    alphas = [alpha for alpha, _ in lines]
    above = [i for i, (_, state) in enumerate(lines) if state["eta"] and state["average"] > state["eta"]]
    assert above[0] == 10
    assert alphas[10] == 2.0  # the step of the spike itself is not taken back
    assert all(alphas[i + 1] == 0.0 for i in above)
    last = above[-1]
    assert alphas[last + 1 : last + 4] == pytest.approx([0.0, 0.4, 0.8])  # and the ramp begins anew
    assert [state["resets"] for _, state in lines][9:12] == [0, 1, 1]
    assert lines[-1][1]["resets"] == 1


def test_eta_may_be_given_and_then_holds_from_the_first_step(tmp_path):
    ramp = RecursiveRamp(end=2.0, steps=5, term="log/physics", group="physics", eta=1e-6)
    _, lines = run(tmp_path, ramp=ramp, steps=4)
    assert [(alpha, state["eta"], state["resets"]) for alpha, state in lines] == [(0.0, 1e-6, 0)] * 4


@pytest.mark.parametrize("step", [3, 13, 21])  # while calibrating, while above eta, while rising again
def test_a_resumed_ramp_goes_on_at_the_same_value(tmp_path, step):
    def killed(progress):
        if progress.global_step == step:
            raise KeyboardInterrupt

    whole, lines = run(tmp_path / "whole", spike=(10,))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", spike=(10,), before=killed)
    saved = checkpoint.load(checkpoint.latest(tmp_path / "cut" / "checkpoints")).state["ramps"]["physics"]
    assert (saved["k"] == 0) == (step == 13)
    assert bool(saved["calibration"]) == (saved["eta"] is None) == (step == 3)
    again, rest = run(tmp_path / "cut", spike=(10,), resume=True)
    assert rest == lines[-len(rest) :]
    assert toy.equal(toy.state(whole), toy.state(again))


def test_accumulated_batches_give_the_norm_of_their_mean(tmp_path):
    """Both see all samples in each step."""
    _, one = run(tmp_path / "one", batch=8, steps=3)
    _, two = run(tmp_path / "two", batch=4, accumulate=2, steps=3)
    assert [s["average"] for _, s in one] == pytest.approx([s["average"] for _, s in two], rel=1e-6)


def test_two_processes_agree_with_each_other_and_with_one_on_the_joined_batch(tmp_path):
    pytest.importorskip("accelerate")

    def child(rank):
        warnings.simplefilter("ignore")  # torch's own, of its DDP and gloo
        groups = parts()
        fit(stages(groups, batch=4, spike=(10,)), groups, out=tmp_path / "two", save_every=2, log_every=1, quiet=True)
        torch.save({name: group.state_dict() for name, group in groups.items()}, tmp_path / f"end-{rank}.pt")

    assert forked.run(child) == [0, 0]
    ends = [torch.load(tmp_path / f"end-{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(ends[0][name][key], value) for name in ends[1] for key, value in ends[1][name].items())
    lines = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    _, one = run(tmp_path / "one", batch=8, spike=(10,))
    assert [line["ramps"]["physics"] for line in lines] == [alpha for alpha, _ in one]
    averages = [line["recursive"]["physics"]["average"] for line in lines]
    assert averages == pytest.approx([state["average"] for _, state in one], rel=1e-5)
    assert lines[-1]["recursive"]["physics"]["resets"] == one[-1][1]["resets"] == 1


def test_what_a_ramp_cannot_measure_is_refused(tmp_path):
    def refused(message, ramp, change=lambda terms: terms):
        groups = parts()
        (stage,) = stages(groups, ramp)
        plain = stage.loss
        made = Stage(
            "a", stage.groups, lambda b, p: change(plain(b, p)), stage.data, 4, stage.length, ramps=stage.ramps
        )
        with pytest.raises(ValueError, match=message):
            fit([made], groups, out=tmp_path, quiet=True)

    other = {"end": 2.0, "steps": 5, "term": "log/physics", "group": "physics"}
    refused("did you mean 'log/physics'", RecursiveRamp(**other | {"term": "log/phisics"}))
    refused("without detach", RAMP, lambda terms: terms | {"log/physics": terms["log/physics"].detach()})
    with pytest.raises(ValueError, match="group 'phisics', which the stage does not train; did you mean 'physics'"):
        stages(parts(), RecursiveRamp(**other | {"group": "phisics"}))
    with pytest.raises(ValueError, match="did you mean 'measure_every'"):
        RecursiveRamp(**other, measure_evry=2)


def test_a_norm_that_is_no_number_is_left_out_and_the_ramp_goes_on():
    recursion = Recursion(RAMP, average=1.0, eta=5.0, k=3)
    recursion.advance(float("nan"))
    assert (recursion.average, recursion.k) == (1.0, 4)


def test_expected_resets_are_counted_per_ramp_and_more_than_one_is_refused():
    ramp = RecursiveRamp(end=1.0, steps=100, term="log/physics", group="physics")
    rng = torch.Generator().manual_seed(0)
    calm = torch.exp(0.5 * torch.randn(2000, generator=rng)).tolist()
    assert expected_resets(calm, ramp) == 0.0
    rare = list(calm)
    for i in range(200, 2000, 400):
        rare[i] = 1e4
    assert 0 < expected_resets(rare, ramp) <= 5 * 100 / 1900 + 1e-9
    often = list(calm)
    for i in range(200, 2000, 60):
        often[i] = 100.0
    with pytest.raises(ValueError, match=r"at most one reset in the time of a ramp .100 steps., got"):
        expected_resets(often, ramp)
    with pytest.raises(ValueError, match="expected norms of at least one ramp"):
        expected_resets(calm[:150], ramp)
