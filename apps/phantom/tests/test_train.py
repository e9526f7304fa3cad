"""Training: what is observed does not count, the backbone does not move, runs resume bit for bit, controls train."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from backbones import VJEPA2Encoder, attach, load
from phantom import data as phantom_data
from phantom.adapter import PhantomAdapter, basis_of
from phantom.config import RECIPES, Recipe, kind_of, load_recipe
from phantom.data import noise_of, prepare
from phantom.generate import load_adapter, read
from phantom.latent import source_of
from phantom.sample import cut, sample
from phantom.train import Trainer, begin_from, fresh, save_bundle, stages, train
from trainers import Progress, Ramp, video

SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1"]
SMALL += ["data.clips=16", "batch=4", "steps=4", "save_every=2", "weight.ramp_steps=2", "weight.measure_every=1"]
ROWS = yaml.safe_load((RECIPES / "ablations.yaml").read_text())["rows"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(backbone, encoder, root):
    return prepare(load_recipe(None, SMALL), backbone, encoder, root, quiet=True).data


def batch_of(clips, n=4):
    items = [clips[i] for i in range(n)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def progress(seed=0, alpha=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Progress("joint", 0, 0, 4, 0.0, generator, {"physics": Ramp(alpha, alpha)})


def test_the_cache_is_filled_once_and_the_beginnings_come_from_their_frames_alone(backbone, encoder, root, prepared):
    again = prepare(load_recipe(None, SMALL), backbone, encoder, root, quiet=True)
    assert (again.clips, again.computed) == (16, 0)
    item = again.data[0]
    assert item["latent"].shape == (16, 5, 8, 8)
    assert item["z"].shape == (8, 5, 4, 4)
    assert item["observed"].shape == (8, 1 + 2 + 3, 4, 4)
    clip = phantom_data.physworld.simulate("rigid_body", 0)
    frames = video.from_bytes(clip.video[None])
    latent = phantom_data.PhysicsLatent(encoder, again.data.basis)
    assert torch.allclose(item["observed"][:, 1:3], latent(frames[:, :, :5])[0], atol=0.02)  # stored in half precision
    assert torch.allclose(item["z"], latent(frames)[0], atol=0.02)


def test_what_is_observed_does_not_count(backbone, encoder, prepared):
    recipe = load_recipe(None, [*SMALL, "condition.share=1.0", "condition.most_latents=3"])
    adapter = fresh(recipe, backbone, prepared.basis, encoder)
    trainer, batch = Trainer(recipe, adapter, backbone), batch_of(prepared)
    lengths, kept = torch.tensor([3, 3, 3, 3]), torch.zeros(4, dtype=torch.bool)
    flows = trainer.flows(batch, torch.full((4,), 0.5), lengths, kept, torch.Generator().manual_seed(0))
    assert bool((flows.sigma[:, :3] == 0).all())
    assert bool((flows.sigma[:, 3:] > 0).all())
    assert torch.equal(flows.x[:, :, :3], batch["latent"][:, :, :3])
    assert torch.equal(flows.z[:, :, :3], batch["observed"][:, :, 3:6])
    before = trainer.errors(flows)
    flows.video_target[:, :, :3] += 100
    flows.physics_target[:, :, :3] += 100
    assert torch.equal(torch.stack(before), torch.stack(trainer.errors(flows)))
    flows.video_target[:, :, 3:] += 1
    assert not torch.equal(before[0], trainer.errors(flows)[0])


def test_only_the_branch_gets_gradients_and_both_losses_reach_it(backbone, encoder, prepared):
    recipe = load_recipe(None, SMALL)
    adapter = fresh(recipe, backbone, prepared.basis, encoder)
    with torch.no_grad():
        for coupling in adapter.branch.couplings:
            coupling.video.out.weight.normal_(0, 0.1)
    backbone.transformer.requires_grad_(False)
    terms = Trainer(recipe, adapter, backbone).loss(batch_of(prepared), progress())
    terms["video"].backward(retain_graph=True)
    named = dict(adapter.branch.named_parameters())
    touched = {name for name, p in named.items() if p.grad is not None and bool(p.grad.any())}
    assert any(name.startswith("stream.blocks") for name in touched)
    assert any(name.startswith("couplings") for name in touched)
    assert all(p.grad is None for p in backbone.transformer.parameters())
    adapter.zero_grad()
    terms["physics"].backward()
    assert bool(named["stream.proj_out.weight"].grad.any())


def test_joint_checkpointing_changes_no_gradient(backbone, encoder, prepared):
    found = []
    for on in (False, True):
        adapter = fresh(load_recipe(None, SMALL), backbone, prepared.basis, encoder)
        with torch.no_grad():
            for p in adapter.branch.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        for model in (backbone.transformer, adapter.branch.stream):
            model.requires_grad_(model is adapter.branch.stream)
            (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()
        adapter.branch.train()
        terms = Trainer(adapter.recipe, adapter, backbone).loss(batch_of(prepared), progress())
        (terms["video"] + terms["physics"]).backward()
        found.append([p.grad for p in adapter.branch.parameters()])
    backbone.transformer.disable_gradient_checkpointing()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_a_run_resumes_to_the_same_bits_and_leaves_the_backbone_as_it_was(backbone, encoder, prepared, tmp_path):
    recipe = load_recipe(None, [*SMALL, "optim.schedule=constant", "optim.warmup_steps=0"])
    digest = backbone.digest
    whole, _ = train(recipe, backbone, encoder, prepared, out=tmp_path / "whole", quiet=True)
    half = recipe.model_copy(update={"steps": 3})
    train(half, backbone, encoder, prepared, out=tmp_path / "halves", quiet=True)
    again, result = train(recipe, backbone, encoder, prepared, out=tmp_path / "halves", resume=True, quiet=True)
    a, b = whole.branch.state_dict(), again.branch.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert result.global_step == 4
    assert backbone.digest == digest


def test_a_bundle_comes_back_and_refuses_another_encoder(backbone, encoder, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(VJEPA2Encoder, "load", lambda *_, **__: encoder)
    recipe = load_recipe(None, SMALL)
    adapter, _ = train(recipe, backbone, encoder, prepared, out=tmp_path, quiet=True)
    loaded = load_adapter(tmp_path / "bundle", backbone)
    prompts, seeds = ["a large blue ball is thrown to the left"], [3]
    few = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"steps": 3})})
    assert torch.equal(sample(backbone, loaded, prompts, seeds, few), sample(backbone, adapter, prompts, seeds, few))
    with attach(backbone, tmp_path / "bundle"):  # found by its entry point
        pass
    other = VJEPA2Encoder.tiny(seed=1)
    assert not torch.equal(source_of(other), source_of(encoder))
    monkeypatch.setattr(VJEPA2Encoder, "load", lambda *_, **__: other)
    with pytest.raises(ValueError, match="got features of another encoder"):
        load_adapter(tmp_path / "bundle", backbone)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_every_ablation_row_changes_one_thing_and_trains_a_step(backbone, encoder, root, row):
    recipe = load_recipe(None, [*SMALL, *row["set"], "steps=1"])
    assert (kind_of(recipe) == "phantom") == (not row["set"])
    used = None if recipe.physics.kind == "fields" else encoder
    clips = prepare(recipe, backbone, used, root, quiet=True).data
    adapter = fresh(recipe, backbone, clips.basis, used)
    plain = fresh(load_recipe(None, SMALL), backbone, clips.basis, encoder)
    count = [sum(p.numel() for p in a.branch.parameters()) for a in (adapter, plain)]
    assert count[0] == count[1]
    (stage,) = stages(recipe, adapter, backbone, clips)
    terms = stage.loss(batch_of(clips), progress())
    total = sum(value for name, value in terms.items() if not name.startswith("log/"))
    assert bool(torch.isfinite(total))
    assert ("physics" in terms) == (recipe.weight.end > 0)


def test_noise_says_nothing_of_its_clip_and_is_always_the_same():
    a, b = noise_of("a", (8, 5, 4, 4)), noise_of("b", (8, 5, 4, 4))
    assert torch.equal(a, noise_of("a", (8, 5, 4, 4)))
    assert abs(float((a * b).mean())) < 0.1


def test_an_observed_beginning_comes_back_exactly_in_the_latents(backbone, encoder, prepared, clips):
    recipe = load_recipe(None, SMALL)
    recipe = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"steps": 2})})
    adapter = fresh(recipe, backbone, prepared.basis, encoder)
    beginning = clips[:1, :, :9]
    for who in (None, adapter):
        film = sample(backbone, who, ["a large blue ball is thrown to the left"], [3], recipe, observed=beginning)
        wanted = backbone.decode(backbone.encode(beginning)).clamp(-1, 1)
        assert torch.allclose(film[:, :, :9], wanted, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected 4m\+1 observed frames"):
        sample(backbone, None, ["a ball"], [3], recipe, observed=clips[:1, :, :8])
    with pytest.raises(ValueError, match="expected fewer observed frames than the 17"):
        sample(backbone, None, ["a ball"], [3], recipe, observed=clips[:1])
    assert [cut(n) for n in (1, 2, 8, 9)] == [1, 1, 5, 9]


@pytest.mark.parametrize("name", ["tiny", "wan2.2-ti2v-5b"])
def test_shipped_recipes_are_valid(name):
    assert isinstance(load_recipe(name), Recipe)


def test_something_must_be_left_to_predict(backbone, encoder, tmp_path):
    with pytest.raises(ValueError, match="something must be left to predict"):
        prepare(load_recipe(None, [*SMALL, "condition.most_latents=5"]), backbone, encoder, tmp_path)


def test_an_adapter_without_an_encoder_wants_the_observed_physics_from_its_caller(backbone, basis):
    adapter = PhantomAdapter(load_recipe(None, [*SMALL, "physics.kind=fields"]), backbone, basis, None)
    with pytest.raises(ValueError, match="expected a V-JEPA 2 for observed frames"):
        _ = adapter.latent


def test_the_force_stage_teaches_the_injector_and_its_control_gives_the_forces_of_others(
    backbone, encoder, prepared, root, tmp_path
):
    pushed = [*SMALL, "force.kind=point", "force.clips=8", "force.steps=2", "steps=2", "weight.end=1.0"]
    recipe = load_recipe(None, pushed)
    balls = prepare(recipe, backbone, encoder, root, basis=prepared.basis, pushed=True, quiet=True).data
    assert balls[0]["force"].shape == (3, 17, 32, 32)
    shuffled = load_recipe(None, [*pushed, "force.shuffled=true"])
    others = prepare(shuffled, backbone, encoder, root, basis=prepared.basis, pushed=True, quiet=True).data
    assert torch.equal(others[0]["force"], balls[1]["force"])
    adapter, result = train(recipe, backbone, encoder, prepared, out=tmp_path, pushed=balls, quiet=True)
    assert [record.name for record in result.history] == ["joint", "force"]
    assert adapter.injector is not None
    assert bool(adapter.injector.out.weight.any())
    assert Path(tmp_path / "bundle" / "bundle.json").is_file()
    with pytest.raises(ValueError, match="expected a stage among joint, force, got 'x'"):
        train(recipe, backbone, encoder, prepared, out=tmp_path / "x", pushed=balls, only="x", quiet=True)


PUSHED = [*SMALL, "force.kind=point", "force.clips=8", "force.steps=2"]


@pytest.fixture(scope="module")
def balls(backbone, encoder, prepared, root):
    recipe = load_recipe(None, PUSHED)
    return prepare(recipe, backbone, encoder, root, basis=prepared.basis, pushed=True, quiet=True).data


def test_the_force_stage_observes_one_frame_at_most_and_prefers_noise(backbone, prepared, balls):
    recipe = load_recipe(None, [*PUSHED, "force.observed=0.5", "force.noisy=3", "force.weight=0.25"])
    trainer, seen = Trainer(recipe, fresh(recipe, backbone, prepared.basis, None), backbone), []
    trainer.errors = lambda flows: (seen.append(flows), (flows.x.new_tensor(2.0), flows.z.new_tensor(4.0)))[1]
    joint, force = stages(recipe, trainer.adapter, backbone, prepared, balls)
    assert force.loss.__func__ is Trainer.force_loss
    assert (force.groups["injector"], force.optim) == (recipe.force.injector_rate, recipe.force.optim)
    assert force.ramps["physics"].at(0) == 0.25
    batch = batch_of(balls, 8)
    for seed in range(32):
        generator = torch.Generator().manual_seed(seed)
        where = Progress("force", 0, 0, 4, 0.0, generator, force.ramps)
        terms = trainer.force_loss(batch, where)
        assert float(terms["physics"]) == pytest.approx(1.0)
    opened = torch.cat([flows.open for flows in seen])
    assert bool(opened[:, 1:].all())
    assert 0.35 < float((~opened[:, 0]).float().mean()) < 0.65
    sigma = torch.cat([flows.sigma[:, -1] for flows in seen])
    assert float(sigma.mean()) == pytest.approx(3 / 4, abs=0.05)  # of u^(1/3)
    for f in joint, force:
        assert f.batch_size == recipe.batch


def test_a_push_is_dropped_with_the_text(backbone, prepared, balls):
    recipe = load_recipe(None, PUSHED)
    trainer = Trainer(recipe, fresh(recipe, backbone, prepared.basis, None), backbone)
    dropped = torch.tensor([True, False, True, False])
    lengths, u = torch.ones(4, dtype=torch.long), torch.full((4,), 0.5)
    flows = trainer.flows(batch_of(balls), u, lengths, dropped, torch.Generator().manual_seed(0))
    assert [bool(f.any()) for f in flows.force] == [False, True, False, True]
    assert torch.equal(flows.force[1], balls[1]["force"])
    assert torch.equal(flows.text.features[0], trainer.empty[0])


def test_a_bundle_is_taught_forces_from_its_own_weights_and_says_both_stages(
    backbone, encoder, prepared, balls, tmp_path
):
    first = load_recipe(None, SMALL)
    adapter, _ = train(first, backbone, encoder, prepared, out=tmp_path / "a", quiet=True)
    begun = read(tmp_path / "a" / "bundle")
    recipe = load_recipe(None, [*PUSHED, "steps=0"])
    given = {"recipe": recipe, "basis": prepared.basis, "encoder": encoder}
    start = begin_from(begun, backbone, **given)
    for name, value in adapter.branch.state_dict().items():
        assert torch.equal(start.branch.state_dict()[name], value)
    assert not bool(start.injector.out.weight.any())
    data = {"out": tmp_path / "b", "pushed": balls, "begun": begun, "quiet": True}
    taught, result = train(recipe, backbone, encoder, balls, **data)
    assert [record.name for record in result.history] == ["force"]
    assert read(tmp_path / "b" / "bundle").origin["steps"] == {"joint": 4, "force": 2}
    moved = [not torch.equal(p, adapter.branch.state_dict()[name]) for name, p in taught.branch.state_dict().items()]
    assert any(moved)
    again = begin_from(read(tmp_path / "b" / "bundle"), backbone, **given)  # goes on with what it was taught
    assert torch.equal(again.injector.out.weight, taught.injector.out.weight)
    wider = load_recipe(None, [*PUSHED, "steps=0", "branch.ffn_dim=64"])
    with pytest.raises(ValueError, match="the weights of the bundle do not fit this recipe"):
        train(wider, backbone, encoder, balls, **data | {"out": tmp_path / "c"})
    one_way = load_recipe(None, [*PUSHED, "steps=0", "couple.way=to_physics"])  # the same shapes
    with pytest.raises(ValueError, match=r"trained with couple\.way=both; go on with the same: --set couple\.way=both"):
        train(one_way, backbone, encoder, balls, **data | {"out": tmp_path / "c"})
    noise = load_recipe(None, [*PUSHED, "physics.kind=noise"])
    with pytest.raises(ValueError, match=r"expected the physics latent of the bundle .* got noise with 8"):
        basis_of(begun, noise, None)


def test_a_spike_of_the_physics_gradient_resets_the_weight_which_a_resumed_run_goes_on_with(
    backbone, encoder, prepared, tmp_path, monkeypatch
):
    """At the fourth step the physics is a thousand times as loud; the run is stopped behind it and resumed."""
    recipe = load_recipe(
        None, [*SMALL, "steps=9", "save_every=5", "weight.threshold=20", "weight.ramp_steps=4", "weight.end=0.01"]
    )
    honest, seen = Trainer.errors, []

    def spiky(self, flows):
        video, physics = honest(self, flows)
        return video, physics * (1000.0 if len(seen) == 3 else 1.0)

    def weigh(self, batch, progress):
        terms = loss(self, batch, progress)
        seen.append(progress.ramp("physics"))
        return terms

    loss = Trainer.loss
    monkeypatch.setattr(Trainer, "errors", spiky)
    monkeypatch.setattr(Trainer, "loss", weigh)
    train(recipe, backbone, encoder, prepared, out=tmp_path / "whole", quiet=True)
    whole = list(seen)
    assert whole[:4] == pytest.approx([0.0, 0.0025, 0.005, 0.0075])  # so small that a weighted spike would not be felt
    assert whole[4] == 0.0  # from the next step on
    assert sorted(whole[4:]) == whole[4:]
    seen.clear()
    half = recipe.model_copy(update={"steps": 5})
    train(half, backbone, encoder, prepared, out=tmp_path / "halves", quiet=True)
    train(recipe, backbone, encoder, prepared, out=tmp_path / "halves", resume=True, quiet=True)
    assert seen == whole


def test_the_noise_control_needs_no_encoder_and_goes_on_from_frames(backbone, root, clips, tmp_path):
    recipe = load_recipe(None, [*SMALL, "physics.kind=noise", "sampling.steps=1", "steps=1"])
    data = prepare(recipe, backbone, None, root, quiet=True).data
    assert data[0]["z"].shape == (8, 5, 4, 4)
    assert torch.equal(data[0]["observed"][:, 1:3], data[0]["z"][:, :2])
    adapter = fresh(recipe, backbone, data.basis, None)
    film = sample(backbone, adapter, ["a ball"], [3], recipe, observed=clips[:1, :, :5])
    assert film.shape == (1, 3, 17, 32, 32)
    z = adapter.physics_latent()
    assert z.shape == (1, 8, 5, 4, 4)


def test_a_row_that_names_a_clip_again_costs_the_row_and_not_the_clip(backbone, clips, tmp_path):
    (tmp_path / "films").mkdir()
    video.write(tmp_path / "films" / "a.mp4", video.to_bytes(clips[0]), 16)
    rows = [{"path": "a.mp4", "caption": text} for text in ("a ball", "the same ball")]
    (tmp_path / "films" / "captions.json").write_text(json.dumps(rows))
    recipe = load_recipe(None, [*SMALL, "physics.kind=noise", f"data.source={tmp_path / 'films'}"])
    found = prepare(recipe, backbone, None, tmp_path / "cache", quiet=True)
    assert (found.clips, [s.path for s in found.skipped]) == (1, ["a.mp4"])


def test_another_encoder_under_the_same_name_fills_the_cache_anew(backbone, encoder, root, prepared):
    recipe = load_recipe(None, SMALL)
    other = VJEPA2Encoder.tiny(seed=5)
    assert phantom_data.producers(recipe, backbone, other) != phantom_data.producers(recipe, backbone, encoder)
    fewer = recipe.model_copy(update={"data": recipe.data.model_copy(update={"clips": 8})})
    assert prepare(fewer, backbone, other, root, quiet=True).computed == 8
    assert prepare(fewer, backbone, encoder, root, quiet=True).computed == 0


def test_a_bundle_samples_in_its_backbone_s_half_precision(backbone, encoder, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(VJEPA2Encoder, "load", lambda *_, **__: encoder)
    recipe = load_recipe(None, [*SMALL, "sampling.steps=1"])
    adapter = fresh(recipe, backbone, prepared.basis, encoder)
    with torch.no_grad():
        for p in adapter.branch.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    half = load("world", dtype=torch.bfloat16)
    save_bundle(adapter, half, tmp_path / "b")
    loaded = load_adapter(tmp_path / "b", half)
    assert {p.dtype for p in loaded.branch.couplings.parameters()} == {torch.bfloat16}
    assert loaded.branch.stream.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert bool(sample(half, loaded, ["a ball"], [3], recipe).isfinite().all())
    batch, sigma = batch_of(prepared, 2), torch.full((2, 5), 0.5)
    given = batch["latent"], batch["z"], sigma
    with torch.no_grad():
        wanted = adapter.velocities(*given, backbone.embed(["a ball"] * 2))
        found = loaded.velocities(*given, half.embed(["a ball"] * 2))
    for a, b in zip(wanted, found, strict=True):
        assert (a - b).norm() < 0.08 * a.norm()
