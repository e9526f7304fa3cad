"""What training must not do in silence: each guard speaks once, stops where it is told to, and is quiet when off."""

import warnings

import forked
import pytest
import torch
import toy

from trainers import FrozenChanged, Guards, GuardStop, Length, NonFiniteLoss, Stage, TrainingWarning, fit

ONE = {"window": 4}


def stage(parts, extra, *, steps=12, groups=("encoder", "head"), before=lambda progress: None):
    plain = toy.loss_of(parts, before)

    def loss(batch, progress):
        return plain(batch, progress) | {key: torch.as_tensor(value) for key, value in extra(progress).items()}

    return Stage("a", dict.fromkeys(groups, 1.0), loss, toy.data(), 4, Length(steps=steps))


def run(out, extra=lambda progress: {}, *, guard, **rest):
    parts = toy.groups()
    made = stage(parts, extra, **rest)
    return fit([made], parts, out=out, guard=guard, save_every=2, quiet=True), parts


def test_a_term_that_drowns_the_reference_is_warned_about_once_or_stops_the_run(tmp_path):
    def drowning(progress):
        return {"physics": 1e5 if progress.step >= 3 else 0.0, "small": 1.0}

    with pytest.warns(TrainingWarning, match=r"'physics' is .*e\+04, more than 100 x 'mse'") as caught:
        run(tmp_path / "warn", drowning, guard=Guards(reference="mse", **ONE))
    assert len(caught) == 1
    with pytest.raises(GuardStop, match=r"more than 100 x 'mse'.*stopped at step 3 .*last good checkpoint is .*00002"):
        run(tmp_path / "stop", drowning, guard=Guards(reference="mse", balance="stop", **ONE))
    run(tmp_path / "off", drowning, guard=Guards(reference="mse", balance="off", **ONE))
    run(tmp_path / "none", drowning, guard=Guards(**ONE))
    run(tmp_path / "ratio", drowning, guard=Guards(reference="mse", ratio=1e9, **ONE))


def test_one_odd_step_does_not_speak_and_a_stage_without_the_reference_is_not_watched(tmp_path):
    def odd(progress):
        return {"physics": 100.0 if progress.step == 8 else 0.01}

    run(tmp_path / "odd", odd, guard=Guards(reference="mse", balance="stop", ratio=40, window=10))
    run(tmp_path / "absent", lambda _: {"physics": 1e9}, guard=Guards(reference="flow", balance="stop", **ONE))


@pytest.mark.parametrize(
    ("name", "bad", "good", "message"),
    [
        ("log/router_entropy", 0.01, 0.2, "no longer explores"),
        ("log/router_entropy/semantic", 0.01, 0.2, "semantic is 0.01, below 0.05"),
        ("log/router_load", 0.99, 0.9, "above 0.95: the router has collapsed"),
        ("log/router_dead/refine", 0.75, 0.5, "above 0.5"),
    ],
)
def test_a_collapsed_router_is_told_by_the_figures_of_its_loss(tmp_path, name, bad, good, message):
    with pytest.warns(TrainingWarning, match=message) as caught:
        run(tmp_path / "warn", lambda _: {name: bad}, guard=Guards(**ONE))
    assert len(caught) == 1
    with pytest.raises(GuardStop, match=message):
        run(tmp_path / "stop", lambda _: {name: bad}, guard=Guards(router="stop", **ONE))
    run(tmp_path / "good", lambda _: {name: good}, guard=Guards(router="stop", **ONE))
    run(tmp_path / "off", lambda _: {name: bad}, guard=Guards(router="off", **ONE))


def test_a_reference_that_is_misspelt_is_said_at_once(tmp_path):
    with pytest.warns(TrainingWarning, match="no term 'mes' to hold the others against; did you mean 'mse'"):
        run(tmp_path, guard=Guards(reference="mes"))


def test_thresholds_of_routers_are_fields():
    from trainers.guards import Terms

    terms = Terms(Guards(router_load=0.5, router_dead=0.1, router_entropy=0.4, window=1))
    found = terms.look({"log/router_load": 0.6, "log/router_dead": 0.2, "log/router_entropy": 0.3, "log/other": 9.0})
    assert len(found) == 3


def test_what_one_process_sees_in_its_router_stops_them_all(tmp_path):
    pytest.importorskip("accelerate")

    def child(rank):
        warnings.simplefilter("ignore")  # torch's own, of its DDP and gloo
        match = "below 0.05" if rank == 1 else "a guard in another process: stopped at step 3"
        with pytest.raises(GuardStop, match=match):
            run(tmp_path, lambda _: {"log/router_entropy": 0.3 - 0.3 * rank}, guard=Guards(router="stop", **ONE))

    assert forked.run(child) == [0, 0]


def test_a_group_without_a_gradient_stops_the_run_or_is_let_alone(tmp_path):
    groups = ("encoder", "head", "spare")
    with pytest.raises(GuardStop, match="'spare' got no gradient in 3 steps"):
        run(tmp_path / "stop", groups=groups, guard=Guards(zero_gradient="stop", zero_gradient_steps=3))
    run(tmp_path / "off", groups=groups, guard=Guards(zero_gradient="off", zero_gradient_steps=3))
    run(tmp_path / "never", groups=groups, guard=Guards(zero_gradient_steps=0))


def test_frozen_weights_that_moved_are_warned_about_or_not_looked_at(tmp_path):
    def nudging(folder, guard):
        parts = toy.groups()

        def nudge(_):
            with torch.no_grad():
                parts["spare"].weight[0, 0] += 1e-3

        fit([toy.stage(parts, steps=2, before=nudge)], parts, out=folder, guard=guard, quiet=True)

    with pytest.raises(FrozenChanged, match="spare"):
        nudging(tmp_path / "stop", Guards())
    with pytest.warns(TrainingWarning, match="spare"):
        nudging(tmp_path / "warn", Guards(frozen="warn"))
    nudging(tmp_path / "off", Guards(frozen="off"))
    assert (Guards(frozen=True), Guards(frozen=False)) == (Guards(frozen="stop"), Guards(frozen="off"))


def test_a_step_that_is_no_number_is_left_out_whole_when_a_warning_is_enough(tmp_path):
    """Neither weights, averages nor moments take part; the order goes on, so later steps see their own samples."""

    def trained(folder, poison, guard, steps=6):
        torch.manual_seed(0)
        parts, seen = {"head": torch.nn.Linear(3, 1)}, []

        def loss(batch, progress):
            seen.append((progress.step, batch["x"].sum().item()))
            bad = float("nan") if poison and progress.step == 3 else 1.0
            return {"mse": bad * (parts["head"](batch["x"]) - batch["y"]).square().mean()}

        made = Stage("a", {"head": 1.0}, loss, toy.data(), 4, Length(steps=steps), accumulate=2)
        fit([made], parts, out=folder, guard=guard, log_every=1, quiet=True)
        return parts["head"].weight.detach().clone(), seen

    with pytest.warns(TrainingWarning, match=r"step left out: loss term 'mse' is nan at step 3 .*samples"):
        weight, seen = trained(tmp_path / "warn", True, Guards(non_finite="warn"))
    _, clean = trained(tmp_path / "clean", False, Guards())
    before, _ = trained(tmp_path / "three", False, Guards(), steps=3)
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)
    assert [entry for entry in seen if entry[0] > 3] == [entry for entry in clean if entry[0] > 3]
    with pytest.raises(NonFiniteLoss):
        trained(tmp_path / "stop", True, Guards())


def test_a_gradient_that_is_no_number_is_left_out_too(tmp_path):
    parts = {"head": torch.nn.Linear(1, 1)}
    start = parts["head"].weight.detach().clone()

    def loss(batch, progress):
        return {"root": (parts["head"].weight * 0).sum().sqrt()}

    made = Stage("a", {"head": 1.0}, loss, toy.data(), 4, Length(steps=2))
    with pytest.warns(TrainingWarning, match="the norm of the gradient is"):
        fit([made], parts, out=tmp_path, guard=Guards(non_finite="warn"), quiet=True)
    assert torch.equal(parts["head"].weight, start)


def test_the_log_holds_the_steps_before_a_stop(tmp_path):
    def poisoned(progress):
        return {"bad": float("nan") if progress.step == 5 else 0.0}

    with pytest.raises(NonFiniteLoss):
        run(tmp_path, poisoned, guard=Guards())
    assert '"step": 5' in (tmp_path / "log.jsonl").read_text()


def test_a_guard_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="did you mean 'router_entropy'"):
        Guards(router_entrpy=0.1)
    with pytest.raises(ValueError, match="'off', 'warn' or 'stop'"):
        Guards(router="ignore")
