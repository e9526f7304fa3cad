"""CogVideoX: v-prediction read as a flow, text without zero pads, both branches in one call, lead-in latents."""

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from backbones import CogVideoXBackbone, Text, noise, paths, sample, tiny

SIZE = {"frames": 9, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def made():
    return {n: CogVideoXBackbone(tiny.family(n), id=n) for n in ("cogvideox_2b", "cogvideox_5b", "cogvideox_15")}


@pytest.fixture(params=["cogvideox_2b", "cogvideox_5b", "cogvideox_15"])
def backbone(request, made):
    return made[request.param]


def call(backbone, rows=2, t=700):
    latents = torch.randn(rows, *backbone.spec.latent.shape(**SIZE)).transpose(1, 2)
    text = backbone.embed(["a red ball", "the cube falls"][:rows])
    return {
        "hidden_states": latents,
        "encoder_hidden_states": text.features,
        "timestep": torch.full((rows,), t),
    }, torch.randn_like(latents)


def test_every_training_timestep_has_a_level_and_comes_back(backbone):
    levels = paths.level(backbone.pipe.scheduler.alphas_cumprod.double()).float()
    assert torch.equal(backbone.timestep(levels), torch.arange(1000.0))
    assert levels[-1] == 1
    assert backbone.sigma_ranges == ((pytest.approx(float(levels[0])), 1.0),)


def test_a_level_between_two_timesteps_is_asked_between_them(backbone):
    levels = paths.level(backbone.pipe.scheduler.alphas_cumprod.double())
    middle = ((levels[500] + levels[501]) / 2)[None].float()
    assert backbone.timestep(middle).item() == pytest.approx(500.5, abs=1e-3)
    arguments, output = call(backbone)
    arguments["timestep"] = torch.full((2,), 500.5)
    asked = backbone.asked(backbone.transformer, arguments, output, sigma=None, branch=None)
    torch.testing.assert_close(asked.sigma, middle.expand(2))


def test_a_level_below_the_training_range_is_refused(backbone):
    low = backbone.sigma_ranges[0][0]
    with pytest.raises(ValueError, match=r"draw training noise levels from backbone\.sigma_ranges"):
        backbone.timestep(torch.tensor([0.9 * low]))
    with pytest.raises(ValueError, match="expected sigma in"):
        backbone.timestep(torch.tensor([1.1]))


def test_half_precision_timesteps_are_refused(backbone):
    arguments, output = call(backbone)
    arguments["timestep"] = arguments["timestep"].bfloat16()
    with pytest.raises(RuntimeError, match="expected integer or float32 timesteps"):
        backbone.asked(backbone.transformer, arguments, output, sigma=None, branch=None)


def test_the_level_is_the_schedulers_and_the_same_for_dpm_and_ddim(made):
    five, two = made["cogvideox_5b"], made["cogvideox_2b"]
    for backbone, sigma in ((two, 0.879), (five, 0.805)):
        arguments, output = call(backbone)
        asked = backbone.asked(backbone.transformer, arguments, output, sigma=None, branch=None)
        assert asked.sigma.tolist() == pytest.approx([sigma] * 2, abs=5e-4)
        assert asked.branch_rows == {}


def test_rows_are_told_apart_by_guidance(backbone):
    arguments, output = call(backbone)
    both = torch.cat([arguments["hidden_states"][:1]] * 2)

    def rows(guidance, hidden, branch="cond_uncond"):
        backbone.pipe._guidance_scale = guidance
        given = arguments | {"hidden_states": hidden}
        return backbone.asked(backbone.transformer, given, output, sigma=None, branch=branch).branch_rows

    assert rows(6.0, both) == {"uncond": slice(0, 1), "cond": slice(1, 2)}
    assert rows(1.0, both) == {"cond": slice(0, 2)}
    assert rows(6.0, arguments["hidden_states"]) == {"cond": slice(0, 2)}
    assert rows(6.0, both, None) == {}
    assert rows(6.0, both, "uncond") == {"uncond": slice(0, 2)}


def test_the_mask_is_the_tokenizers_although_no_row_is_zero(backbone):
    text = backbone.embed(["a red ball"])
    assert text.mask.sum() == 4
    assert bool((text.features.abs().sum(-1) > 0).all())


def test_features_that_nobody_told_are_refused_and_told_ones_are_known_in_half_precision(backbone):
    arguments, output = call(backbone)
    known = arguments["encoder_hidden_states"]
    for features in (known, known.bfloat16(), known.clone()):
        asked = backbone.asked(
            backbone.transformer, arguments | {"encoder_hidden_states": features}, output, sigma=None, branch=None
        )
        assert asked.text.mask.sum(1).tolist() == [4, 4]
    stranger = arguments | {"encoder_hidden_states": known + 1}
    with pytest.raises(ValueError, match=r"call backbone\.embed"):
        backbone.asked(backbone.transformer, stranger, output, sigma=None, branch=None)
    backbone.remember(Text(known + 1, torch.ones(2, 226, dtype=torch.bool)))
    asked = backbone.asked(backbone.transformer, stranger, output, sigma=None, branch=None)
    assert bool(asked.text.mask.all())


def test_what_is_attached_to_a_call_of_predict_sees_the_mask_that_the_call_was_given(backbone):
    features, mask = torch.randn(2, 226, 32), torch.rand(2, 226) < 0.5  # nobody told of these
    seen = []

    def look(model, args, arguments, output):
        seen.append(backbone.asked(model, arguments, output[0], sigma=None, branch=None).text.mask)

    hook = backbone.transformer.register_forward_hook(look, with_kwargs=True)
    try:
        backbone.predict(
            torch.randn(2, *backbone.spec.latent.shape(9, 32, 32)), torch.tensor([0.5, 0.9]), Text(features, mask)
        )
    finally:
        hook.remove()
    assert torch.equal(*seen, mask)


def test_a_mask_is_never_that_of_features_which_lay_in_the_same_place(backbone):
    """A tensor that was freed may leave its address to the next one."""
    arguments, output = call(backbone)
    for prompts, ends in ((["a ball", "a"], [3, 2]), (["the red ball falls", "a"], [5, 2])):
        features = backbone.embed(prompts).features
        given = arguments | {"encoder_hidden_states": features}
        asked = backbone.asked(backbone.transformer, given, output, sigma=None, branch=None)
        assert asked.text.mask.sum(1).tolist() == ends


def test_as_many_prompts_as_rows_are_wanted(backbone):
    with pytest.raises(ValueError, match="one prompt per row of features, got 1 for 2"):
        backbone.text_of(["a"], torch.zeros(2, 226, 32))


def test_a_number_of_frames_that_the_decoder_would_change_is_refused(backbone):
    """The decoder takes latents in twos after an odd first chunk: 5 frames would come back as 8."""
    assert backbone.spec.latent.frame_rule == "8n+1"
    with pytest.raises(ValueError, match="Use 1 or 9 frames"):
        backbone.encode(torch.zeros(1, 3, 5, 32, 32))


def test_a_lead_in_is_a_copy_of_the_first_latent_and_is_cut_again(made):
    backbone = made["cogvideox_15"]
    video = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    latents = backbone.encode(video)
    assert latents.shape[2] == 6
    assert torch.equal(latents[:, :, 0], latents[:, :, 1])
    assert backbone.decode(latents).shape == video.shape
    assert backbone.spec.time.latent_times(17).tolist() == [-1, 0, 0.625, 1.625, 2.625, 3.625]
    assert [list(backbone.spec.time.frames_of(j)) for j in range(3)] == [[0], [0], [1, 2, 3, 4]]
    other = latents.clone()
    other[:, :, 0] += 1
    assert torch.equal(backbone.decode(other), backbone.decode(latents))


@pytest.mark.parametrize("name", ["cogvideox_5b_i2v", "cogvideox_15_i2v"])
def test_the_condition_is_the_first_latent_scaled_as_the_vae_says_then_nothing(name):
    backbone = CogVideoXBackbone(tiny.family(name), id=name)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    channels = backbone.condition(image, 9).channels
    assert channels.shape == (2, *backbone.spec.latent.shape(**SIZE))
    posterior = backbone.pipe.vae.encode(image[:1, :, None]).latent_dist
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    scale = 1 / 0.7 if backbone.pipe.vae.config.invert_scale_latents else 0.7
    assert (scale > 1) == (name == "cogvideox_15_i2v")
    torch.testing.assert_close(channels[:1, :, :1], drawn * scale)
    assert channels[:, :, 1:].abs().max() == 0


def test_the_stochastic_scheduler_draws_a_clips_noise_from_the_clip(made):
    backbone = made["cogvideox_5b"]
    start = noise(backbone, [4, 5], **SIZE)
    once, twice = (sample(backbone, ["a ball", "a cube"], noise=start, steps=3, **SIZE) for _ in range(2))
    assert torch.equal(once, twice)
    turned = sample(backbone, ["a cube", "a ball"], noise=start.flip(0), steps=3, **SIZE)
    torch.testing.assert_close(turned.flip(0), once, atol=1e-5, rtol=0)


def test_the_frames_per_second_are_those_of_the_model(made):
    assert {n: b.spec.time.fps for n, b in made.items()} == {
        "cogvideox_2b": 8.0,
        "cogvideox_5b": 8.0,
        "cogvideox_15": 16.0,
    }


def test_a_scheduler_of_another_prediction_is_refused():
    pipe = tiny.family("cogvideox_2b", layers=1)
    pipe.scheduler = CogVideoXDDIMScheduler()
    with pytest.raises(ValueError, match="prediction_type 'v_prediction', got 'epsilon'"):
        CogVideoXBackbone(pipe)


def test_a_map_of_levels_is_refused(backbone):
    text = backbone.embed(["a ball"])
    with pytest.raises(ValueError, match="one noise level a clip"):
        backbone.predict(noise(backbone, [0], **SIZE), torch.full((1, 3), 0.5), text)
