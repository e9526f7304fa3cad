"""Laws of training: every ablation row trains, resume is exact, a bundle comes back, checkpointing changes nothing."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from backbones import attach, bundle, sample
from prophy.adapter import ProphyAdapter
from prophy.config import RECIPES, load_recipe
from prophy.generate import load_adapter
from prophy.timing import random_batch
from prophy.train import Trainer, fresh, kind_of, levels, stages, train
from trainers import InMemory

ROWS = yaml.safe_load((RECIPES / "ablations.yaml").read_text())["rows"]


def repeated(recipe, backbone):
    return InMemory(random_batch(recipe, backbone, 8))


@pytest.mark.parametrize("row", [r for r in ROWS if "when" not in r], ids=lambda r: r["name"])
def test_every_ablation_row_trains_a_step(row, backbone, make_recipe, tmp_path):
    recipe = make_recipe("steps=1", "semantic.first_steps=1", *row["set"])
    adapter, result = train(recipe, backbone, repeated(recipe, backbone), out=tmp_path, quiet=True)
    assert result.global_step == len(stages(recipe, adapter, backbone, repeated(recipe, backbone)))
    before = fresh(recipe, backbone).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in adapter.state_dict().items())
    assert len(row["what"].split()) > 4


def test_the_rows_are_different_things():
    assert len({r["name"] for r in ROWS}) == len({str(r["set"]) for r in ROWS}) == len(ROWS)
    assert kind_of(load_recipe(None, ROWS[0]["set"])) == "lora"
    assert kind_of(load_recipe(None, ["semantic.on=false"])) == "pb+reb"


@pytest.mark.parametrize("stop", [1, 4])
def test_a_killed_run_ends_with_the_same_weights(stop, backbone, make_recipe, tmp_path, monkeypatch):
    """Stopped in the semantic router's stage, or in the other one with a queue of partners."""
    recipe = make_recipe("accumulate=2", "batch=2")
    data = repeated(recipe, backbone)
    whole, _ = train(recipe, backbone, data, out=tmp_path / "whole", quiet=True)

    def dying(stock):
        def loss(self, batch, *more):
            seen.append(1)
            if len(seen) > (stop if stop < 2 else 2 * (stop - 2)):
                raise KeyboardInterrupt
            return stock(self, batch, *more)

        return loss

    seen: list[int] = []
    owner, name = (ProphyAdapter, "first") if stop < 2 else (Trainer, "loss")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, backbone, data, out=tmp_path / "cut", quiet=True)
    assert not (tmp_path / "cut/bundle").exists()
    cut, result = train(recipe, backbone, data, out=tmp_path / "cut", quiet=True, resume=True)
    assert result.global_step == 5
    for key, value in whole.state_dict().items():
        assert torch.equal(cut.state_dict()[key], value), key


def test_a_bundle_comes_back(backbone, make_recipe, tmp_path):
    for sets in ((), ("adapter=plain",), ("branch.kind=lora",), ("adapter=wisa",)):
        recipe = make_recipe("store=float32", *sets)
        out = tmp_path / kind_of(recipe)
        adapter, _ = train(recipe, backbone, repeated(recipe, backbone), out=out, quiet=True, teacher="exact fields")
        with attach(backbone, adapter.eval()):
            video = sample(backbone, ["a red ball"], seed=0, steps=2)
        with attach(backbone, load_adapter(out / "bundle", backbone)):
            assert torch.equal(sample(backbone, ["a red ball"], seed=0, steps=2), video)
        meta = bundle.load(out / "bundle").meta
        assert [stage["teacher"] for stage in meta["stages"]] == ["exact fields"] * len(meta["stages"])
        assert not torch.equal(sample(backbone, ["a red ball"], seed=0, steps=2), video)


def test_half_precision_halves_a_bundle(backbone, make_recipe, tmp_path):
    size = {}
    for store in ("float32", "float16"):
        recipe = make_recipe(f"store={store}", "steps=1")
        train(recipe, backbone, repeated(recipe, backbone), out=tmp_path / store, quiet=True)
        size[store] = (tmp_path / store / "bundle/bundle.safetensors").stat().st_size
    assert size["float16"] < 0.55 * size["float32"]
    weights = load_adapter(tmp_path / "float16/bundle", backbone).physical.projections[0].weight
    assert weights.dtype == torch.float32


def test_a_bundle_is_refused_by_another_transformer(backbone, families, make_recipe, tmp_path):
    recipe = make_recipe("steps=1")
    train(recipe, backbone, repeated(recipe, backbone), out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="was made for tiny-test"):
        load_adapter(tmp_path / "bundle", families["wan21_t2v"][0])
    with pytest.raises(ValueError, match="do not fit this recipe"):
        load_adapter(tmp_path / "bundle", backbone, recipe=make_recipe("semantic.experts=5"))


@pytest.mark.parametrize("family", ["wan-ti2v", "cogvideox_5b"])
def test_checkpointing_gives_the_same_gradients(family, families, make_recipe, move, batch_of, progress):
    backbone, sets = families[family]
    recipe = make_recipe(*sets, "semantic.token_dropout=0")
    adapter, found = move(fresh(recipe, backbone)).train(), []
    for on in (False, True):
        getattr(backbone.transformer, f"{'enable' if on else 'disable'}_gradient_checkpointing")()
        adapter.zero_grad()
        with backbone.frozen(), attach(backbone, adapter, in_predict=True):
            adapter.train()
            terms = Trainer(recipe, adapter, backbone).loss(batch_of(recipe, backbone), progress())
            sum(t for name, t in terms.items() if not name.startswith("log/")).backward()
        found.append([p.grad.clone() for p in adapter.parameters() if p.grad is not None])
    backbone.transformer.disable_gradient_checkpointing()
    assert len(found[0]) == len(found[1])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("kind", ["prophy", "wisa"])
def test_an_adapter_trains_as_it_trains_and_not_as_it_samples(kind, backbone, make_recipe, tmp_path, monkeypatch):
    seen, stock = [], Trainer.loss

    def loss(self, batch, progress):
        seen.append(self.adapter.training)
        return stock(self, batch, progress)

    monkeypatch.setattr(Trainer, "loss", loss)
    recipe = make_recipe("steps=1", f"adapter={kind}", "semantic.first_steps=0")
    train(recipe, backbone, repeated(recipe, backbone), out=tmp_path, quiet=True)
    assert seen == [True]


def test_the_held_out_loss_is_logged_by_level_and_leaves_the_run_as_it_is(backbone, make_recipe, tmp_path):
    recipe = make_recipe("semantic.first_steps=1")
    data = repeated(recipe, backbone)
    alone, _ = train(recipe, backbone, data, out=tmp_path / "alone", quiet=True)
    watched, _ = train(recipe, backbone, data, held=data, out=tmp_path / "watched", quiet=True)
    for key, value in alone.state_dict().items():
        assert torch.equal(watched.state_dict()[key], value), key
    lines = [json.loads(line) for line in (tmp_path / "watched/log.jsonl").read_text().splitlines()]
    found = next(line["held_out"] for line in lines if "held_out" in line)
    assert set(found) == {"diffusion", "align"}
    assert list(found["diffusion"]) == [f"0.{i}" for i in range(1, 10)]
    assert all(0 < value < float("inf") for value in found["diffusion"].values())


def test_noise_levels_are_the_backbones_own(families, make_recipe):
    generator = torch.Generator().manual_seed(0)
    wan, sets = families["wan21_t2v"]
    sigma = levels(make_recipe(*sets), wan, 4000, generator)
    shift = float(wan.pipe.scheduler.config.flow_shift)
    assert abs(float(sigma.median()) - shift * 0.5 / (1 + (shift - 1) * 0.5)) < 0.02
    cog, sets = families["cogvideox_5b"]
    sigma = levels(make_recipe(*sets), cog, 4000, generator)
    low, high = cog.sigma_ranges[0]
    assert low - 1e-6 <= float(sigma.min()) <= float(sigma.max()) <= high + 1e-6


def test_an_empty_prompt_leaves_the_pairs(backbone, make_recipe, batch_of, progress):
    recipe = make_recipe("noise.text_dropout=0.999")
    adapter = fresh(recipe, backbone)
    with torch.no_grad(), attach(backbone, adapter, in_predict=True):
        terms = Trainer(recipe, adapter, backbone).loss(batch_of(recipe, backbone), progress())
    assert float(terms["coarse"]) == 0
    assert isinstance(adapter, ProphyAdapter)


def test_recipes_for_real_backbones_are_the_papers(tmp_path):
    for name, blocks in (("wan2.1-1.3b", 10), ("cogvideox-5b", 8)):
        recipe = load_recipe(name)
        weights = recipe.losses
        assert (weights.coarse, weights.align, weights.balance) == (0.1, 0.02, 0.01)
        assert (recipe.branch.blocks, recipe.data.vocabulary, recipe.targets.source) == (blocks, "laws", "vlm")
        text = (Path(RECIPES) / f"{name}.yaml").read_text()
        values = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#")]
        bare = [v for v in values if not v.rstrip().endswith(":") and "#" not in v]
        allowed = ("device:", "seed:", "save_every:", "store:", "encode_batch:", "kind:", "extends:")
        assert all(v.lstrip().startswith(allowed) for v in bare), bare
