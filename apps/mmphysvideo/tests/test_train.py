"""Training: the cache, losses, exact resume, what must not move, bundles, and a step of every ablation."""

import json

import numpy as np
import pytest
import torch
import yaml

import physworld
from backbones import Text, attach, bundle, load, wrap
from backbones.tiny_families import family
from mmphysvideo.adapter import MMPhysVideo
from mmphysvideo.config import RECIPES, Recipe, load_recipe
from mmphysvideo.data import prepare
from mmphysvideo.features import encoder_of
from mmphysvideo.generate import load_teacher, load_trained, methods_of, sample
from mmphysvideo.pseudo_world import of_clip
from mmphysvideo.streams import diffusion, levels
from mmphysvideo.student import Student
from mmphysvideo.teacher import Teacher
from mmphysvideo.train import Trainer, kind_of, learner, save_bundle, stage_of, train
from trainers import Progress, override, video

ROWS = yaml.safe_load((RECIPES / "ablations.yaml").read_text())["rows"]
CONTROL = ["student.align.source=none"]


def changed(recipe, *sets):
    return override(recipe, list(sets))


def batch_of(clips, n=4):
    items = [clips[i] for i in range(n)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def progress(seed=0):
    return Progress("student", 0, 0, 4, 0.0, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def taught(backbone, recipe, prepared, tmp_path_factory):
    """The bundle of a teacher that was trained for two steps."""
    out = tmp_path_factory.mktemp("teacher")
    train(recipe, backbone, learner(recipe, backbone, "teacher"), prepared, out=out, quiet=True)
    return out / "bundle"


def test_the_cache_is_filled_once_and_each_modality_beside_the_others(backbone, recipe, root, prepared):
    assert prepare(recipe, backbone, root, perceived=True, quiet=True).computed == 0
    item = prepared[0]
    assert item["latent"].shape == item["perception"].shape == (16, 5, 8, 8)
    drawn = of_clip(physworld.simulate("rigid_body", 0), "unified").signal
    wanted = backbone.encode(torch.from_numpy(drawn).permute(3, 0, 1, 2)[None])[0]
    assert torch.allclose(item["perception"], wanted, atol=1e-5)
    seg = prepare(changed(recipe, "data.modality=seg"), backbone, root, perceived=True, quiet=True)
    assert seg.computed == 8  # the videos' own latents are there
    assert not torch.equal(seg.data[0]["perception"], item["perception"])
    alone = prepare(recipe, backbone, root, perceived=False, quiet=True)
    assert (alone.computed, set(alone.data[0])) == (0, {"latent", "text"})


def test_the_loss_is_the_backbone_s_own(backbone):
    v, target = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    sigma = torch.tensor([[0.0, 0.5], [0.25, 0.25]])
    each = (v - target).square().mean((1, 3, 4))
    assert torch.allclose(diffusion(v, target, sigma, "flow"), (each[0, 1] + each[1].sum()) / 3)
    s = torch.tensor([0.25])  # of x0: a x_t - r v_t, so the error of x0 over 1 - alpha_bar is that of v_t
    k = (s**2 + (1 - s) ** 2).rsqrt()
    r = s * k
    x0_error = (r * (v[1:] - target[1:]) / k).square().mean() / r**2
    assert torch.allclose(diffusion(v[1:], target[1:], s[:, None].expand(1, 2), "v"), x0_error.squeeze())
    cog = wrap(family("cogvideox_2b"))
    drawn = levels(load_recipe(None), cog, 50, torch.Generator().manual_seed(0))
    assert torch.allclose(cog.timestep(drawn), cog.timestep(drawn).round())  # levels that its schedule has
    plain = levels(load_recipe(None, ["noise.shift=3"]), backbone, 2000, torch.Generator().manual_seed(0))
    assert float(plain.median()) == pytest.approx(0.75, abs=0.03)


def test_student_and_control_draw_the_same_noise(backbone, recipe, prepared, taught, monkeypatch):
    found = {}
    for name, sets, teacher in (("student", [], taught), ("control", CONTROL, None)):
        own = changed(recipe, *sets)
        model = learner(own, backbone, "student", teacher=load_teacher(teacher, backbone) if teacher else None)
        trainer, seen = Trainer(own, model, backbone), []
        honest = trainer.terms
        monkeypatch.setattr(
            trainer, "terms", lambda batch, noised, h=honest, s=seen: (s.append(noised), h(batch, noised))[1]
        )
        batch = batch_of(prepared)
        if teacher is None:
            del batch["perception"]
        terms = trainer.loss(batch, progress())
        found[name] = (seen[0], terms, model.weights.state_dict())
    (a, with_, w1), (b, without, w2) = found["student"], found["control"]
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.sigma, b.sigma)
    assert torch.equal(a.text, b.text)
    assert torch.equal(with_["video"], without["video"])
    assert set(with_) - set(without) == {"align"}
    assert all(torch.equal(w1[k], w2[k]) for k in w1)


def test_observed_latents_are_clean_and_do_not_count(backbone, recipe, prepared):
    model = learner(recipe, backbone, "teacher")
    trainer, batch = Trainer(recipe, model, backbone), batch_of(prepared)
    lengths, kept = torch.tensor([2, 0, 0, 0]), torch.zeros(4, dtype=torch.bool)
    seen = trainer.noised(batch, torch.full((4,), 0.5), lengths, kept, torch.Generator().manual_seed(0))
    assert torch.equal(seen.x[0, :, :2], batch["latent"][0, :, :2])
    assert seen.sigma[0].tolist() == [0, 0, 0.5, 0.5, 0.5]
    before = trainer.terms(batch, seen)
    seen.target[0, :, :2] += 100
    assert torch.equal(before["video"], trainer.terms(batch, seen)["video"])
    seen.q_target[0, :, :2] += 100
    assert not torch.equal(before["perception"], trainer.terms(batch, seen)["perception"])


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_run_resumes_to_the_same_bits_and_moves_neither_backbone_nor_teacher(
    backbone, recipe, prepared, taught, tmp_path, stage
):
    constant = [f"{stage}.optim.schedule=constant", f"{stage}.optim.warmup_steps=0"]
    recipe, digest = changed(recipe, *constant, f"{stage}.steps=3"), backbone.digest
    teacher = load_teacher(taught, backbone) if stage == "student" else None
    before = {k: v.clone() for k, v in teacher.state_dict().items()} if teacher else {}

    def run(own, out, **how):
        model = learner(own, backbone, stage, teacher=teacher)
        result = train(own, backbone, model, prepared, out=out, quiet=True, **how)
        return model, result

    whole, _ = run(recipe, tmp_path / "whole")
    run(changed(recipe, f"{stage}.steps=2"), tmp_path / "halves")
    again, result = run(recipe, tmp_path / "halves", resume=True)
    assert result.global_step == 3
    for group in whole.groups():
        a, b = whole.groups()[group].state_dict(), again.groups()[group].state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert backbone.digest == digest
    if teacher:
        assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
        meta = json.loads((tmp_path / "whole" / "bundle" / "bundle.json").read_text())
        assert meta["stages"][0]["teacher"] == teacher.origin["sha256"]
        assert meta["groups"] == ["weights"]


def test_bundles_come_back_as_what_they_were(backbone, recipe, prepared, taught, stirred, tmp_path):
    teacher = load_trained(taught, backbone)
    assert isinstance(teacher, Teacher)
    model = learner(recipe, backbone, "student", teacher=teacher)
    stirred(model.weights)
    save_bundle(recipe, backbone, model.groups(), tmp_path / "student", teacher=teacher)
    student = load_trained(tmp_path / "student", backbone)
    assert isinstance(student, Student)
    x, sigma, text = torch.randn(1, 16, 5, 8, 8), torch.tensor([0.5]), backbone.embed(["a ball"])
    with torch.no_grad():
        v, _ = model(x, sigma, text.features)
    with attach(backbone, tmp_path / "student"):  # found by its entry point
        pass
    own, backbone.pipe.transformer = backbone.pipe.transformer, student.model
    try:
        with torch.no_grad():
            assert torch.allclose(backbone.predict(x, sigma, text), v, atol=1e-5)
    finally:
        backbone.pipe.transformer = own
    with pytest.raises(ValueError, match="expected a teacher's bundle for --teacher, got a student's"):
        load_teacher(tmp_path / "student", backbone)


def test_bundles_of_one_recipe_are_seeds_of_one_method(backbone, recipe, tmp_path):
    students = {}
    plain = changed(recipe, *CONTROL)
    for folder, own in (("a", plain), ("b", changed(plain, "seed=1")), ("c", changed(plain, "data.modality=seg"))):
        model = learner(own, backbone, "student")
        save_bundle(own, backbone, model.groups(), tmp_path / folder)
        students[folder] = load_trained(tmp_path / folder, backbone)
    name = "student without alignment"
    assert {m: len(runs) for m, runs in methods_of(students).items()} == {f"{name} (a)": 2, f"{name} (c)": 1}
    del students["c"]
    assert {m: len(runs) for m, runs in methods_of(students).items()} == {name: 2}


def test_the_teacher_of_another_backbone_is_refused(backbone, taught):
    other = wrap(family("wan21_t2v"))
    with pytest.raises(ValueError, match="this mmphysvideo bundle was made for world, not for"):
        load_teacher(taught, other)
    larger = changed(Recipe.model_validate(bundle.load(taught).meta["config"]), "teacher.weights.rank=7")
    with pytest.raises(ValueError, match="sizes and structure come from training"):
        load_trained(taught, backbone, recipe=larger)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_every_ablation_row_trains_a_step(backbone, recipe, root, taught, tmp_path, row):
    own = changed(recipe, *row["set"], "teacher.steps=1", "student.steps=1")
    stage, source = row["stage"], own.student.align.source
    encoder = encoder_of(own.student.align, "cpu") if stage == "student" else None
    perceived = stage == "teacher" or source == "teacher"
    data = prepare(own, backbone, root, perceived=perceived, encoder=encoder, quiet=True).data
    teacher = load_teacher(taught, backbone) if stage == "student" and source == "teacher" else None
    model = learner(own, backbone, stage, teacher=teacher, width=encoder.dim if encoder else 0)
    result = train(own, backbone, model, data, out=tmp_path, quiet=True)
    assert all(np.isfinite(value) for value in result.losses.values())
    back = MMPhysVideo.from_bundle(bundle.load(tmp_path / "bundle"), backbone)
    assert isinstance(back, Teacher if stage == "teacher" else Student)
    if row["set"] and not row["set"][0].startswith(("data", "student.align.stream")):
        assert kind_of(own, stage) != kind_of(recipe, stage)


def test_full_training_moves_a_copy(backbone, recipe, prepared, tmp_path):
    own, digest = changed(recipe, *CONTROL, "student.weights.kind=full"), backbone.digest
    model = learner(own, backbone, "student")
    train(own, backbone, model, prepared, out=tmp_path, quiet=True)
    assert backbone.digest == digest
    assert not torch.equal(model.weights.state_dict()["proj_out.weight"], backbone.transformer.proj_out.weight)
    student = load_trained(tmp_path / "bundle", backbone)
    film = sample(backbone, student, ["a ball"], [3], own)
    assert not torch.equal(film, sample(backbone, None, ["a ball"], [3], own))


def test_checkpointing_changes_no_gradient(backbone, recipe, prepared, taught, stirred):
    found = []
    for on in (False, True):
        teacher = load_teacher(taught, backbone)
        model = learner(recipe, backbone, "student", teacher=teacher)
        stirred(model.weights)
        (
            model.stream.model.enable_gradient_checkpointing
            if on
            else model.stream.model.disable_gradient_checkpointing
        )()
        sum(Trainer(recipe, model, backbone).loss(batch_of(prepared), progress()).values()).backward()
        found.append([p.grad for p in model.weights.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_half_precision_trains_both_stages(recipe, root, tmp_path):
    half = load("world", dtype=torch.bfloat16)
    own = changed(recipe, "dtype=bfloat16")
    data = prepare(own, half, root, perceived=True, quiet=True).data
    teacher = learner(own, half, "teacher")
    train(own, half, teacher, data, out=tmp_path / "t", quiet=True)
    frozen = load_teacher(tmp_path / "t" / "bundle", half)
    for kind in ("lora", "full"):
        one = changed(own, f"student.weights.kind={kind}")
        model = learner(one, half, "student", teacher=frozen)
        result = train(one, half, model, data, out=tmp_path / kind, quiet=True)
        assert np.isfinite(result.losses["align"])
        assert {p.dtype for p in model.weights.parameters()} == {torch.float32}
        assert load_trained(tmp_path / kind / "bundle", half).model.dtype == torch.bfloat16


def test_a_row_that_names_a_clip_again_costs_the_row_and_not_the_clip(backbone, recipe, tmp_path):
    clip = physworld.simulate("rigid_body", 0)
    video.write(tmp_path / "0.mp4", clip.video, 16, lossless=True)
    rows = [{"path": "0.mp4", "caption": text} for text in (clip.caption, "a red ball")]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = changed(recipe, f"data.source={tmp_path / 'kept.jsonl'}")
    found = prepare(own, backbone, tmp_path / "cache", perceived=False, quiet=True)
    assert (found.clips, [s.path for s in found.skipped]) == (1, ["0.mp4"])


def test_clips_without_perception_are_listed_and_left_out(backbone, recipe, tmp_path):
    home, lines = tmp_path / "clips", []
    home.mkdir()
    for seed in range(3):
        clip = physworld.simulate("rigid_body", seed)
        video.write(home / f"{seed}.mp4", clip.video, 16, lossless=True)
        video.write(home / f"{seed}-unified.mp4", of_clip(clip).frames, 16, lossless=True)
        lines.append({"path": f"{seed}.mp4", "caption": clip.caption, "perception": f"{seed}-unified.mp4"})
    del lines[1]["perception"]
    lines[2]["perception"] = "../elsewhere.mp4"
    (home / "kept.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = changed(recipe, f"data.source={home / 'kept.jsonl'}")
    found = prepare(own, backbone, tmp_path / "cache", perceived=True, quiet=True)
    assert (found.clips, len(found.skipped)) == (1, 2)
    assert "make it with `mmphysvideo pipe`" in found.skipped[0].why
    assert "in the data folder" in found.skipped[1].why
    drawn = torch.from_numpy(of_clip(physworld.simulate("rigid_body", 0)).signal).permute(3, 0, 1, 2)[None]
    assert torch.allclose(found.data[0]["perception"], backbone.encode(drawn)[0], atol=0.05)
    for line in lines:
        line.pop("perception", None)
    (home / "kept.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="none of the 3 clips"):
        prepare(own, backbone, tmp_path / "cache", perceived=True, quiet=True)


def test_a_family_that_predicts_v_trains_and_samples_both_streams(recipe, tmp_path):
    cog = wrap(family("cogvideox_2b"))
    sets = [
        "data.frames=9",
        "data.height=32",
        "data.width=32",
        "student.align.place=1",
        "student.align.teacher_place=0",
    ]
    own = changed(recipe, *sets, "noise.observed=0.5", "batch=2")
    shape = cog.spec.latent.shape(9, 32, 32)
    g = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(2, *shape, generator=g) for name in ("latent", "perception")}
    batch["text"] = cog.embed(["a ball", "a red ball"]).features.float()
    teacher = learner(own, cog, "teacher")
    sum(Trainer(own, teacher, cog).loss(batch, progress()).values()).backward()
    assert all(bool(p.grad.any()) for name, p in teacher.links.named_parameters() if name.endswith("weight"))
    student = learner(own, cog, "student", teacher=teacher.eval().requires_grad_(False))
    assert set(Trainer(own, student, cog).loss(batch, progress())) == {"video", "align"}
    assert isinstance(Text.of(batch["text"]), Text)
    assert stage_of(own, student, cog, [batch]).name == "student"


@pytest.mark.parametrize("name", ["tiny", "cogvideox-2b", "cogvideox-5b", "wan2.1-1.3b", "videorepa"])
def test_shipped_recipes_are_valid(name):
    assert isinstance(load_recipe(name), Recipe)
