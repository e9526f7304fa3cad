"""Two flows in lockstep: the video stream is itself at the start, z walks beside it, and what is observed is kept."""

import copy

import pytest
import torch

import backbones
from backbones import attach, sample
from phantom.config import Physics, load_recipe
from phantom.force import Point, tensor
from phantom.latent import PhysicsLatent, cells_of, encoder_size

SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1"]

PROMPTS = ["a large blue ball is thrown to the left", "a small red ball is thrown to the right"]
FEW = {"seed": 3, "steps": 3, "guidance": 2.0}


def test_a_fresh_adapter_changes_no_bit_of_text_to_video(backbone, make, recipe):
    base = sample(backbone, PROMPTS, **FEW)
    with attach(backbone, make(recipe)):
        assert torch.equal(sample(backbone, PROMPTS, **FEW), base)
    assert torch.equal(sample(backbone, PROMPTS, **FEW), base)


def test_a_fresh_adapter_changes_no_bit_of_image_to_video(backbone, make, recipe, clips):
    base = sample(backbone, PROMPTS, image=clips[:, :, 0], **FEW)
    with attach(backbone, make(recipe)):
        assert torch.equal(sample(backbone, PROMPTS, image=clips[:, :, 0], **FEW), base)


def test_a_trained_adapter_changes_the_video(backbone, make, recipe):
    base = sample(backbone, PROMPTS, **FEW)
    with attach(backbone, make(recipe, stirred=True)):
        assert not torch.equal(sample(backbone, PROMPTS, **FEW), base)


@pytest.mark.parametrize("way", ["both", "joint", "to_video", "to_physics"])
def test_every_coupling_is_the_identity_at_the_start_and_moves_what_it_says(backbone, make, way):
    recipe = load_recipe(None, [*SMALL, f"couple.way={way}"])
    adapter = make(recipe)
    with torch.no_grad():  # the stream speaks, the couplings are at their zero start
        for p in adapter.branch.stream.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    before = outputs(backbone, adapter)
    with torch.no_grad():
        for coupling in adapter.branch.couplings:
            for side in (coupling.video, coupling.physics):
                side.out.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    after = outputs(backbone, adapter)
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved[0] == (way in ("both", "joint", "to_video"))
    # what reaches the video in one block reaches nothing of the physics in the next, unless that way is open, too
    assert moved[1] == (way in ("both", "joint", "to_physics"))


def outputs(backbone, adapter):
    with attach(backbone, adapter):
        video = sample(backbone, PROMPTS, **FEW)
        return video, adapter.physics_latent()


def test_without_coupling_lockstep_is_two_separate_samplings(backbone, make):
    adapter = make(load_recipe(None, [*SMALL, "couple.way=none"]), stirred=True)
    base = sample(backbone, PROMPTS, **FEW)
    video, z = outputs(backbone, adapter)
    assert torch.equal(video, base)
    # the physics stream by itself, on the same scheduler
    text, empty = backbone.embed(PROMPTS), backbone.embed([""] * 2)
    scheduler = copy.deepcopy(backbone.pipe.scheduler)
    scheduler.set_timesteps(3)
    noise = backbones.sampling.noise(backbone, [3, 4])
    from phantom.adapter import _noise

    alone = torch.stack([_noise(clip, (8, 5, 4, 4)) for clip in noise])
    with torch.no_grad():
        for t in scheduler.timesteps:
            u = []
            for side in (text, empty):
                timestep = t.float().repeat(2, 5)
                joint = adapter.branch.begin(
                    alone, timestep, side.features, video_grid=(5, 4, 4), times_s=adapter.times_s(5)
                )
                tokens, stack = joint.tokens, adapter.branch.stack
                for k in range(len(stack)):
                    tokens = stack.block(k, tokens)
                u.append(stack.end(tokens))
            alone = scheduler.step(u[1] + 2.0 * (u[0] - u[1]), t, alone, return_dict=False)[0]
    assert torch.allclose(z, alone, atol=1e-5)


def test_a_multistep_scheduler_has_one_state_a_stream(backbone, make, recipe):
    from diffusers import UniPCMultistepScheduler

    adapter = make(recipe, stirred=True)
    with torch.no_grad():
        for coupling in adapter.branch.couplings:
            coupling.way = "none"
    stock = backbone.pipe.scheduler
    backbone.pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    try:
        base = sample(backbone, PROMPTS, **FEW)
        video, z = outputs(backbone, adapter)
    finally:
        backbone.pipe.scheduler = stock
    assert torch.equal(video, base)
    assert bool(z.isfinite().all())


def test_z_belongs_to_a_clip_and_not_to_its_batch(backbone, make, recipe):
    adapter = make(recipe, stirred=True)
    _, both = outputs(backbone, adapter)
    with attach(backbone, adapter):
        sample(backbone, PROMPTS[1:], **(FEW | {"seed": 4}))
        alone = adapter.physics_latent()
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_an_observed_frame_stays_observed_in_both_streams(backbone, make, recipe, clips, encoder, basis):
    adapter = make(recipe, stirred=True)
    with attach(backbone, adapter):
        sample(backbone, PROMPTS[:1], image=clips[:1, :, 0], **FEW)
        z = adapter.physics_latent()
    seen = backbone.decode(backbone.encode(clips[:1, :, :1])).clamp(-1, 1)
    assert torch.allclose(z[:, :, :1], PhysicsLatent(encoder, basis)(seen), atol=1e-4)


def test_a_given_physics_latent_is_followed(backbone, make, recipe, clips, encoder, basis):
    adapter = make(recipe, stirred=True)
    wanted = PhysicsLatent(encoder, basis)(clips)
    pipe, text = backbone.pipe, {"num_frames": 17, "height": 32, "width": 32, "num_inference_steps": 3}
    with attach(backbone, adapter):
        given = {"attention_kwargs": {"physics": {"z": wanted}}, "output_type": "latent", **text}
        pipe(PROMPTS, latents=backbones.sampling.noise(backbone, [3, 4]), **given)
        assert torch.allclose(adapter.physics_latent(), wanted)
        with pytest.raises(ValueError, match=r"expected a physics latent \(b, 8, 5, 4, 4\)"):
            pipe(PROMPTS, attention_kwargs={"physics": {"z": wanted[:, :4]}}, **text)
        with pytest.raises(ValueError, match="expected physics among observed, z, force, got zz"):
            pipe(PROMPTS, attention_kwargs={"physics": {"zz": 1}}, **text)


def test_a_push_is_told_to_the_side_that_hears_the_text(backbone, make, clips):
    adapter, sides = make(load_recipe(None, [*SMALL, "force.kind=point"]), stirred=True), []
    honest = adapter.branch.begin

    def listen(z, timestep, text, **given):
        sides.append((text, given["added"]))
        return honest(z, timestep, text, **given)

    adapter.branch.begin = listen
    force = tensor(Point(0.5, 0.5, 90, 1.0), 17, 32, 32)[None]
    text = {"num_frames": 17, "height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}
    with attach(backbone, adapter):
        backbone.pipe(PROMPTS[:1], attention_kwargs={"physics": {"force": force}}, output_type="latent", **text)
    asked = backbone.embed(PROMPTS[:1]).features
    for features, added in sides:
        assert (added is not None) == torch.equal(features[:, : asked.shape[1]], asked.to(features))
    assert [added is not None for _, added in sides].count(True) == 2
    assert len(sides) == 4


def test_the_branch_must_be_as_wide_as_twice_its_channels(backbone):
    with pytest.raises(ValueError, match=r"2 x physics.channels = 64, got 32"):
        load_recipe(None, ["branch.heads=1"])


def test_a_backbone_without_a_timestep_for_each_token_is_refused(recipe, basis, encoder):
    from backbones import wrap
    from backbones.tiny_families import family
    from phantom.adapter import PhantomAdapter

    with pytest.raises(ValueError, match="expected a TI2V backbone"):
        PhantomAdapter(recipe, wrap(family("wan21_t2v")), basis, encoder)


def test_what_is_observed_does_not_depend_on_the_future(encoder, basis, clips):
    """The encoder looks both ways: the observed part of a clip must come from the observed frames alone."""
    latent = PhysicsLatent(encoder, basis)
    other = clips.clone()
    other[:, :, 9:] = -other[:, :, 9:]
    assert torch.equal(latent(clips[:, :, :9]), latent(other[:, :, :9]))
    assert not torch.allclose(latent(clips)[:, :, :3], latent(other)[:, :, :3])  # cutting the whole would leak
    assert not torch.allclose(latent(clips)[:, :, :3], latent(clips[:, :, :9]))


def test_one_frame_and_odd_lengths(encoder, basis, clips):
    latent = PhysicsLatent(encoder, basis)
    assert latent(clips[:, :, :1]).shape == (2, 8, 1, 4, 4)
    assert latent(clips[:, :, :13]).shape == (2, 8, 4, 4, 4)
    with pytest.raises(ValueError, match=r"expected 4m\+1 observed frames .*, got 8; cut to 5"):
        latent(clips[:, :, :8])


def test_the_whole_frame_is_seen_on_the_encoder_s_grid_or_refused(encoder, basis, clips):
    wide = torch.nn.functional.interpolate(clips[:1], size=(17, 32, 64))
    assert PhysicsLatent(encoder, basis, size=(16, 32)).grid() == (2, 4)
    assert PhysicsLatent(encoder, basis, size=(16, 32))(wide).shape == (1, 8, 5, 2, 4)
    pooled, fine = (PhysicsLatent(encoder, basis, pool=n).features(clips) for n in (2, 1))
    assert torch.allclose(pooled[:, :, 0, 0], fine[:, :, :2, :2].mean((2, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="expected a height that is a multiple of 8 to encode at, got 20"):
        PhysicsLatent(encoder, basis, size=(20, 32))(wide)
    with pytest.raises(ValueError, match=r"expected a pool that divides the encoder's grid \(4, 4\), got 3"):
        PhysicsLatent(encoder, basis, pool=3).grid()


def test_the_grid_of_z_is_known_without_the_encoder():
    assert encoder_size("world")[:2] == (32, 8)
    assert cells_of(Physics()) == (4, 4)
    assert cells_of(Physics(kind="fields", size=(64, 64))) == (4, 4)
    assert cells_of(load_recipe("wan2.2-ti2v-5b").physics) == (8, 14)
    assert encoder_size("facebook/vjepa2-vitg-fpc64-384") == (384, 16, 1408)
    with pytest.raises(ValueError, match=r"expected physics.encoder to be 'world', a folder"):
        encoder_size("nothing")


def test_z_has_unit_variance_and_comes_back(encoder, basis, clips):
    latent = PhysicsLatent(encoder, basis)
    z = latent(clips)
    assert torch.allclose(z.mean((0, 2, 3, 4)), torch.zeros(8), atol=1e-3)
    std = z.std((0, 2, 3, 4))
    assert float(std[0]) == pytest.approx(1, abs=0.05)
    assert float(std.max()) < 1.05
    features = latent.features(clips)
    left = (basis.inverse(z.permute(0, 2, 3, 4, 1)) - features) / basis.std
    whole = (features - basis.mean) / basis.std
    assert float(left.square().sum() / whole.square().sum()) == pytest.approx(1 - float(basis.explained), abs=1e-3)
