"""Laws of a run without interruption."""

import itertools
import json

import pytest
import torch
import toy

from trainers import EMA, FrozenChanged, Guards, Length, NonFiniteLoss, Optim, Ramp, Stage, TrainingWarning, fit


def test_a_stage_moves_its_groups_and_leaves_every_other_bit_equal(tmp_path):
    parts = toy.groups()
    before = toy.state(parts)
    fit([toy.stage(parts, groups=["head"])], parts, out=tmp_path, quiet=True)
    after = toy.state(parts)
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"head"}


def test_flags_modes_and_the_callers_random_numbers_are_given_back(tmp_path):
    parts = toy.groups()
    parts["spare"].requires_grad_(False)
    parts["encoder"].eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit([toy.stage(parts)], parts, out=tmp_path, quiet=True)
    assert torch.equal(torch.rand(3), expected)
    assert not parts["encoder"].training
    assert [p.requires_grad for p in parts["spare"].parameters()] == [False, False]
    assert all(p.requires_grad and p.grad is None for p in parts["encoder"].parameters())


def test_training_lowers_the_loss_and_the_log_tells_it(tmp_path):
    parts = toy.groups()
    lines = []
    result = fit(
        [toy.stage(parts, steps=120, ramps={"beta": Ramp(0.0, 1.0, 0, 60)})],
        parts, out=tmp_path, log=lines.append, log_every=20, quiet=True,
    )  # fmt: skip
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert written == lines
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100, 120]
    assert lines[-1]["terms"]["mse"] < 0.7 * lines[0]["terms"]["mse"]
    assert set(lines[0]["terms"]) == {"mse", "log/error"}
    assert lines[-1]["ramps"] == {"beta": 1.0}
    assert lines[0]["lr"] > lines[-1]["lr"] > 0
    assert result.losses == lines[-1]["terms"]
    assert (result.history[0].name, result.history[0].steps, result.global_step) == ("a", 120, 120)


def test_a_logged_term_is_not_minimised(tmp_path):
    def run(folder, extra):
        parts = toy.groups()
        stage = toy.stage(parts)
        plain = stage.loss

        def loss(batch, progress):
            terms = plain(batch, progress)
            return terms | {"log/weight": parts["head"].weight.sum() * extra}

        fit([Stage("a", stage.groups, loss, stage.data, 4, Length(steps=3))], parts, out=folder, quiet=True)
        return toy.state(parts)

    assert toy.equal(run(tmp_path / "a", 0.0), run(tmp_path / "b", 1000.0))


def test_a_logged_term_that_is_no_number_leaves_the_log_valid_json_and_the_others_whole(tmp_path):
    parts = toy.groups()
    stage = toy.stage(parts, steps=4)

    def loss(batch, progress):
        odd = progress.step % 2
        found = {"log/rare": torch.tensor(3.0)} if odd else {}
        bad = torch.tensor(float("nan") if odd else 5.0)
        return stage.loss(batch, progress) | found | {"log/bad": bad, "log/never": torch.tensor(float("inf"))}

    made = Stage("a", stage.groups, loss, stage.data, 4, Length(steps=4))
    result = fit([made], parts, out=tmp_path, log_every=4, quiet=True)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = [json.loads(text, parse_constant=refuse) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["terms"]["log/rare"] == 3.0
    assert line["terms"]["log/bad"] == 5.0
    assert line["terms"]["log/never"] is None
    assert result.losses == {name: value for name, value in line["terms"].items() if value is not None}
    assert line["terms"]["mse"] > 0


@pytest.mark.parametrize("clip", [None, 0.1])
def test_accumulating_two_halves_is_one_step_on_the_whole_and_clipping_counts_it_once(tmp_path, clip):
    def run(folder, batch, accumulate):
        torch.manual_seed(0)
        parts = {"head": torch.nn.Linear(3, 1)}

        def loss(batch, progress):
            return {"mse": 100 * (parts["head"](batch["x"]) - batch["y"]).square().mean()}

        optim = Optim(lr=1e-2, clip=clip, eps=1.0)  # a large eps: the step's size shows the gradient's
        stage = Stage("a", {"head": 1.0}, loss, toy.data(8), batch, Length(steps=3), optim, accumulate=accumulate)
        fit([stage], parts, out=folder, quiet=True)
        return parts["head"].weight.detach()

    assert torch.allclose(run(tmp_path / "a", 8, 1), run(tmp_path / "b", 4, 2), atol=1e-7)


def test_a_group_that_is_unfrozen_later_gets_no_update_before_that_step(tmp_path):
    parts = toy.groups()
    seen = []
    stage = toy.stage(
        parts,
        steps=5,
        unfreeze={"encoder": 3},
        before=lambda _: seen.append(parts["encoder"].layer.weight.detach().clone()),
    )
    fit([stage], parts, out=tmp_path, quiet=True)
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[3], seen[4])


def test_the_learning_rate_factor_of_a_group_scales_its_steps(tmp_path):
    def moved(folder, factor):
        parts = toy.groups()
        before = parts["head"].weight.detach().clone()
        optim = Optim(lr=1e-3, weight_decay=0.0)
        fit([toy.stage(parts, groups={"head": factor}, steps=1, optim=optim)], parts, out=folder, quiet=True)
        return (parts["head"].weight - before).abs().max().item()

    assert moved(tmp_path / "a", 0.5) == pytest.approx(0.5 * moved(tmp_path / "b", 1.0), rel=1e-3)


def test_handover_keep_carries_the_moments_and_reset_does_not(tmp_path):
    def run(folder, handover):
        parts = toy.groups()
        optim = Optim(lr=1e-2)
        stages = [
            toy.stage(parts, "a", steps=4, optim=optim),
            toy.stage(parts, "b", groups=["head"], steps=2, optim=optim, handover=handover),
        ]
        fit(stages, parts, out=folder, quiet=True)
        from trainers import checkpoint

        saved = checkpoint.load(checkpoint.latest(folder / "checkpoints"))
        return {key: int(value) for key, value in saved.tensors["optimizer"].items() if key.endswith("#step")}

    assert run(tmp_path / "a", "keep") == {"head/bias#step": 6, "head/weight#step": 6}
    assert run(tmp_path / "b", "reset") == {"head/bias#step": 2, "head/weight#step": 2}


def test_the_average_lags_behind_and_becomes_the_weights_when_applied(tmp_path):
    parts, applied = toy.groups(), toy.groups()
    plain = fit([toy.stage(parts, ema=EMA(0.9))], parts, out=tmp_path / "a", quiet=True)
    fit([toy.stage(applied, ema=EMA(0.9, apply=True))], applied, out=tmp_path / "b", quiet=True)
    assert not torch.equal(plain.ema["head"]["weight"], parts["head"].weight)
    assert torch.equal(plain.ema["head"]["weight"], applied["head"].weight)
    # one step by hand: decay (1 + 0) / (10 + 0) at the first step
    one = toy.groups()
    start = one["head"].weight.detach().clone()
    first = fit([toy.stage(one, steps=1, ema=EMA(0.9))], one, out=tmp_path / "c", quiet=True)
    assert torch.allclose(first.ema["head"]["weight"], 0.1 * start + 0.9 * one["head"].weight)


def test_epochs_see_every_sample_equally_often(tmp_path):
    seen = torch.zeros(11, dtype=torch.int64)
    parts = toy.groups()

    def loss(batch, progress):
        seen.index_add_(0, batch["id"], torch.ones_like(batch["id"]))
        return {"zero": (parts["head"].weight ** 2).sum()}

    data = toy.InMemory({"id": torch.arange(11)})
    result = fit([Stage("a", {"head": 1.0}, loss, data, 1, Length(epochs=3))], parts, out=tmp_path, quiet=True)
    assert seen.tolist() == [3] * 11
    assert result.global_step == 33


def test_minutes_count_trained_time_and_the_fraction_reaches_one(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("trainers.loop.time.perf_counter", lambda: next(ticks) / 64)  # a step takes 1/64 s
    parts = toy.groups()
    fractions = []
    stage = toy.stage(parts, before=lambda progress: fractions.append((progress.fraction, progress.steps)))
    timed = Stage("a", stage.groups, stage.loss, stage.data, 4, Length(minutes=16 / 64 / 60))
    result = fit([timed], parts, out=tmp_path, quiet=True)
    assert [round(fraction, 6) for fraction, _ in fractions] == [step / 16 for step in range(16)]
    assert {steps for _, steps in fractions} == {None}
    assert (result.global_step, result.seconds) == (16, 16 / 64)


def test_a_data_set_of_items_gives_the_same_as_one_of_batches(tmp_path):
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, index):
            return toy.data()[index]

    a, b = toy.groups(), toy.groups()
    whole = toy.data()
    whole.digest = ""
    fit([toy.stage(a, data=Items())], a, out=tmp_path / "a", quiet=True)
    fit([toy.stage(b, data=whole)], b, out=tmp_path / "b", quiet=True)
    assert toy.equal(toy.state(a), toy.state(b))


def test_a_loss_that_is_not_a_number_stops_before_any_harm(tmp_path):
    parts = toy.groups()
    states = []

    def loss(batch, progress):
        states.append(toy.state(parts))
        bad = float("nan") if progress.step == 5 else 1.0
        error = (parts["head"](parts["encoder"](batch["x"])) - batch["y"]).square().mean()
        return {"mse": error, "strain": error * bad}

    stage = Stage("a", {"encoder": 1.0, "head": 1.0}, loss, toy.data(), 4, Length(steps=9))
    with pytest.raises(NonFiniteLoss, match=r"'strain' is nan at step 5 of stage 'a'.*step-00000004") as caught:
        fit([stage], parts, out=tmp_path, save_every=2, quiet=True)
    assert len(caught.value.samples) == 4
    weights = {k: v for k, v in toy.state(parts).items() if "norm" not in k}
    assert toy.equal(weights, {k: v for k, v in states[5].items() if "norm" not in k})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    assert caught.value.last_good == tmp_path / "checkpoints" / "step-00000004"


def test_an_infinite_gradient_under_a_finite_loss_stops_too(tmp_path):
    parts = {"head": torch.nn.Linear(1, 1)}

    def loss(batch, progress):
        return {"root": (parts["head"].weight * 0).sum().sqrt()}

    stage = Stage("a", {"head": 1.0}, loss, toy.data(), 4, Length(steps=2))
    with pytest.raises(NonFiniteLoss, match=r"gradient is nan|gradient is inf"):
        fit([stage], parts, out=tmp_path, quiet=True)


def test_a_loss_that_writes_into_frozen_weights_is_caught(tmp_path):
    parts, backbone = toy.groups(), torch.nn.Linear(2, 2)

    def nudge(_):
        with torch.no_grad():
            backbone.weight[0, 0] += 1e-3

    with pytest.raises(FrozenChanged, match="backbone"):
        fit([toy.stage(parts, before=nudge)], parts, out=tmp_path, watch={"backbone": backbone}, quiet=True)


def test_a_group_that_is_not_connected_is_warned_about(tmp_path):
    parts = toy.groups()
    stage = toy.stage(parts, groups=["encoder", "head", "spare"], steps=4)
    with pytest.warns(TrainingWarning, match="'spare' got no gradient in 3 steps"):
        fit([stage], parts, out=tmp_path, guard=Guards(zero_gradient_steps=3), quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["enocder"]}, "did you mean 'encoder'"),
        ({"unfreeze": {"haed": 2}}, "did you mean 'head'"),
        ({"groups": []}, "trains nothing"),
        ({"batch_size": 0}, "batch_size"),
        ({"handover": "drop"}, "handover"),
    ],
)
def test_a_stage_that_names_what_is_not_there_is_refused_before_anything_is_written(tmp_path, change, message):
    parts = toy.groups()
    with pytest.raises((ValueError, TypeError), match=message):
        fit([toy.stage(parts, **change)], parts, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_groups_that_share_a_parameter_and_stages_that_share_a_name_are_refused(tmp_path):
    parts = toy.groups()
    with pytest.raises(ValueError, match="share a parameter"):
        fit([toy.stage(parts)], {**parts, "again": parts["head"]}, out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="different names"):
        fit([toy.stage(parts), toy.stage(parts)], parts, out=tmp_path, quiet=True)


def test_an_unknown_ramp_is_answered_with_the_nearest(tmp_path):
    parts = toy.groups()
    stage = toy.stage(parts, ramps={"physics": Ramp(0.0, 1.0)}, before=lambda progress: progress.ramp("phisics"))
    with pytest.raises(ValueError, match="did you mean 'physics'"):
        fit([stage], parts, out=tmp_path, quiet=True)


def test_the_run_is_shown_as_a_table_with_the_effective_batch(tmp_path, capsys):
    parts = toy.groups()
    fit([toy.stage(parts, groups={"head": 0.5}, accumulate=3)], parts, out=tmp_path)
    shown = " ".join(capsys.readouterr().err.split())
    assert "batch 4 x 3 accumulated x 1 process = 12" in shown
    assert "encoder │ 30 │ frozen" in shown
    assert "head │ 6 │ 0.005" in shown
    assert "a: 6/6" in shown
