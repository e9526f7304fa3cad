"""Laws of the training: stages move exactly their groups, every ablation runs, a killed run resumes bit for bit."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from backbones import attach, bundle, sample
from pila import losses
from pila.config import RECIPES, load_recipe
from pila.train import Trainer, fresh, save_bundle, stages, train
from trainers import NonFiniteLoss, checkpoint, dump_config, fit

ROWS = yaml.safe_load((RECIPES / "ablations.yaml").read_text())["rows"]
STRUCTURE = {"recover.steps=300": "recover.steps=5"}  # as many steps as the phases of the small recipe together


def state(adapter) -> dict[str, torch.Tensor]:
    return {f"{g}.{n}": t.clone() for g, m in adapter.groups().items() for n, t in m.state_dict().items()}


@pytest.fixture(scope="module")
def bundle_folder(backbone, data, make_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(make_recipe(), backbone, data, out=folder, quiet=True)
    return folder / "bundle"


def test_a_stage_moves_exactly_its_groups(backbone, data, make_recipe, tmp_path):
    recipe = make_recipe()
    adapter = fresh(recipe, backbone)
    digest = backbone.digest
    for i, stage in enumerate(stages(recipe, adapter, backbone, data)):
        before = state(adapter)
        fit([stage], adapter.groups(), out=tmp_path / str(i), quiet=True)
        after = state(adapter)
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == set(stage.groups), stage.name
    assert backbone.digest == digest


def test_a_batch_is_noised_by_the_shifted_level_and_loses_a_tenth_of_its_text(backbone, data, make_recipe):
    recipe = make_recipe("noise.shift=3")
    trainer = Trainer(recipe, fresh(recipe, backbone), backbone)
    rows = torch.arange(12).repeat(50)
    batch = data.get_batch(rows)
    e = trainer.estimate(batch, (0.2, 0.4), torch.Generator().manual_seed(0))
    low, high = (3 * u / (1 + 2 * u) for u in (0.2, 0.4))
    assert low <= e.sigma.min() < low + 0.02
    assert high - 0.02 < e.sigma.max() <= high
    s = e.sigma.view(-1, 1, 1, 1, 1)
    assert torch.allclose(e.x_s - s * e.target, batch["latent"], atol=1e-4)  # x_s = (1 - s) x0 + s eps, v = eps - x0
    assert torch.allclose(e.x0, e.x_s - s * e.velocity)
    kept = (e.text.features == batch["text"]).flatten(1).all(1).float().mean()
    assert 0.85 < kept < 0.95


def test_the_encoder_is_still_during_its_frozen_steps(backbone, data, make_recipe, tmp_path):
    recipe = make_recipe("observe.steps=0", "recover.steps=0", "couple.encoder_frozen=3")
    adapter = fresh(recipe, backbone)
    before = state(adapter)
    fit(stages(recipe, adapter, backbone, data), adapter.groups(), out=tmp_path, quiet=True)
    after = state(adapter)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("encoder."))
    assert not torch.equal(before["decoder.out.weight"], after["decoder.out.weight"])


def test_the_stages_are_the_papers(backbone, data, make_recipe):
    recipe = make_recipe()
    plan = stages(recipe, fresh(recipe, backbone), backbone, data)
    assert [s.name for s in plan] == [
        "observe-0-0.3",
        "observe-0-0.6",
        "observe-0-1",
        "recover-core",
        "recover-phase",
        "recover-temperature",
        "recover-impulse",
        "recover-wave",
        "couple",
    ]
    assert sum(s.length.steps for s in plan) == recipe.steps == 14
    control = stages(make_recipe("adapter=plain"), fresh(recipe, backbone), backbone, data)
    assert [s.length.steps for s in control] == [recipe.steps]


def test_the_control_is_the_same_network(backbone, make_recipe):
    pila, plain = (fresh(make_recipe(f"adapter={kind}"), backbone) for kind in ("pila", "plain"))
    assert {n: t.shape for n, t in state(pila).items()} == {n: t.shape for n, t in state(plain).items()}
    assert all(torch.equal(a, b) for a, b in zip(state(pila).values(), state(plain).values(), strict=True))


TRAINED = [row for row in ROWS if "when" not in row]
SAMPLED = [row for row in ROWS if row.get("when") == "sampling"]


@pytest.mark.parametrize("row", SAMPLED, ids=lambda row: row["name"])
def test_every_ablation_of_sampling_runs_on_a_trained_bundle(row, backbone, bundle_folder):
    from pila.generate import load_adapter, recipe_of, sample

    recipe = recipe_of(bundle_folder, row["set"])
    adapter = load_adapter(bundle_folder, backbone, recipe=recipe)
    calls = []
    video = sample(backbone, adapter, ["ink"], [0], adapter.recipe, watch=lambda s, a: calls.append(a.routing))
    first, last = recipe.sampling.correct_steps or (1, recipe.sampling.steps)
    assert len(calls) == last - first + 1
    assert all(int(r.selected.sum()) == recipe.routing.k for r in calls)
    assert torch.isfinite(video).all()


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row["name"])
def test_every_ablation_builds_and_trains(row, backbone, data, make_recipe, tmp_path):
    sets = [STRUCTURE.get(s, s) for s in row["set"]]
    recipe = make_recipe("observe.steps=1", "couple.steps=1", "couple.encoder_frozen=0", *sets)
    adapter, result = train(recipe, backbone, data, out=tmp_path, quiet=True)
    assert result.global_step == recipe.steps
    assert all(torch.isfinite(t).all() for t in state(adapter).values())


def test_every_ablation_differs_from_the_default_and_says_how(make_recipe):
    for row in ROWS:
        assert row["what"].endswith(".")
        assert make_recipe(*row["set"]) != make_recipe() or row["name"] == "k = 4"
    assert len({row["name"] for row in ROWS}) == len(ROWS) >= 28


def test_w_o_staged_recovery_takes_as_many_steps(make_recipe):
    row = next(row for row in ROWS if row["name"] == "w/o staged recovery")
    default, all_at_once = load_recipe(), load_recipe(None, row["set"])
    assert default.steps == all_at_once.steps


@pytest.mark.parametrize("name", ["tiny", "wan2.1-1.3b"])
def test_a_shipped_recipe_is_valid_and_resolves_to_itself(name, tmp_path):
    recipe = load_recipe(name)
    dump_config(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_trained_bundle_comes_back_equal_and_changes_the_video(backbone, data, make_recipe, tmp_path):
    adapter, _ = train(make_recipe(), backbone, data, out=tmp_path, quiet=True)
    loaded = bundle.build(bundle.load(tmp_path / "bundle"), backbone)
    assert all(torch.equal(a, b) for a, b in zip(state(adapter).values(), state(loaded).values(), strict=True))
    base = sample(backbone, ["two balls collide"], seed=1, steps=2)
    with attach(backbone, tmp_path / "bundle"):
        assert not torch.equal(sample(backbone, ["two balls collide"], seed=1, steps=2), base)


def test_a_bundle_for_another_latent_space_is_refused(backbone, make_recipe, tmp_path):
    from backbones import WanBackbone, tiny

    save_bundle(fresh(make_recipe(), backbone), backbone, tmp_path)
    other = WanBackbone(tiny.pipeline(["a"], layers=1, ffn_dim=64, text_dim=32, text_length=8), id="other")
    with pytest.raises(ValueError, match="text_dim 16 against 32"):
        bundle.build(bundle.load(tmp_path), other)


def test_a_loss_that_is_no_number_stops_and_the_last_checkpoint_goes_on(
    backbone, data, make_recipe, tmp_path, monkeypatch
):
    recipe = make_recipe()
    whole, _ = train(recipe, backbone, data, out=tmp_path / "whole", quiet=True)
    honest, calls = losses.flow_matching, []

    def broken(velocity, target):
        calls.append(1)
        return honest(velocity, target) * (float("nan") if len(calls) == 3 else 1)  # twice a step: in the second one

    with monkeypatch.context() as patch:
        patch.setattr(losses, "flow_matching", broken)
        with pytest.raises(NonFiniteLoss, match="flow_matching") as error:
            train(recipe, backbone, data, out=tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000012"  # 6 of A, 5 of B, 1 of C
    assert not (tmp_path / "run" / "bundle").exists()
    resumed, _ = train(recipe, backbone, data, out=tmp_path / "run", resume=True, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(state(whole).values(), state(resumed).values(), strict=True))


def test_an_unknown_stage_is_refused(backbone, data, make_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"observe-0-0\.3"):
        train(make_recipe(), backbone, data, out=tmp_path, only="obsrve", quiet=True)


def _train(recipe, backbone, data, out: Path) -> None:
    torch.set_num_threads(1)
    train(recipe, backbone, data, out=out, quiet=True)


def test_a_killed_training_resumes_bit_for_bit(backbone, data, make_recipe, tmp_path):
    recipe = make_recipe("couple.steps=20")  # time to be killed in
    whole, _ = train(recipe, backbone, data, out=tmp_path / "whole", quiet=True)
    child = multiprocessing.get_context("fork").Process(
        target=_train, args=(recipe, backbone, data, tmp_path / "killed")
    )
    child.start()
    wanted = tmp_path / "killed" / "checkpoints" / "step-00000012"  # inside stage C
    deadline = time.monotonic() + 60
    while not wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not (tmp_path / "killed" / "bundle").exists()
    resumed, result = train(recipe, backbone, data, out=tmp_path / "killed", resume=True, quiet=True)
    assert result.global_step == recipe.steps
    assert all(torch.equal(a, b) for a, b in zip(state(whole).values(), state(resumed).values(), strict=True))
