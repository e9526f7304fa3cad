"""The Wan backbone against the stock pipeline that it wraps."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

from backbones import Backbone, Text, WanBackbone, load, noise, paths, sample, tiny
from backbones.loading import save
from backbones.stock import pictures
from backbones.wan import level_of


def test_the_tiny_wan_keeps_the_contract(backbone):
    assert isinstance(backbone, Backbone)
    assert isinstance(backbone.pipe, WanPipeline)
    assert backbone.spec.latent.frame_rule == "4n+1"
    assert backbone.spec.per_token_time


def test_latent_times_are_the_centres_of_the_frames_that_latents_cover(backbone):
    assert backbone.spec.time.latent_times(17).tolist() == [0, 0.625, 1.625, 2.625, 3.625]


def test_x0_and_eps_come_back_from_the_noised_sample():
    x0, eps, sigma = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0.1, 0.5, 1.0])
    x_s, v = paths.noise(x0, eps, sigma), paths.target(x0, eps)
    torch.testing.assert_close(paths.to_x0(x_s, v, sigma), x0)
    torch.testing.assert_close(paths.to_eps(x_s, v, sigma), eps)


def test_text_is_what_the_pipeline_embeds(backbone):
    prompts = ["a large blue ball", "A red ball is thrown."]
    text = backbone.embed(prompts)
    with torch.no_grad():  # another mode rounds differently
        stock, _ = backbone.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=32)
    assert torch.equal(text.features, stock)
    assert text.mask.sum(1).tolist() == [5, 6]  # words and </s>; the full stop is dropped
    assert not text.features[~text.mask].any()


def test_words_outside_the_vocabulary_are_named(backbone):
    with pytest.warns(UserWarning, match="green, sphere"):
        backbone.embed(["a green sphere", "a red ball"])
    with pytest.warns(UserWarning, match="purple"):
        sample(backbone, ["a purple ball"], seed=0, steps=1, frames=1, height=16, width=16)


def test_uniform_per_token_timesteps_equal_one_timestep(backbone):
    x_s, text = torch.randn(2, 16, 5, 8, 8), backbone.embed(["a ball", "a red ball"])
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        per_token = backbone.predict(x_s, sigma, text)
        one = backbone.transformer(x_s, 1000 * sigma, text.features, return_dict=False)[0]
        grid = backbone.predict(x_s, sigma[:, None, None, None].expand(-1, 5, 4, 4), text)
    torch.testing.assert_close(per_token, one, atol=1e-6, rtol=1e-6)
    assert torch.equal(grid, per_token)


def test_one_euler_step_of_the_pipeline_is_the_predicted_velocity(backbone):
    start, text = noise(backbone, [5]), backbone.embed(["a ball"])
    with torch.no_grad():
        v = backbone.predict(start, torch.tensor([1.0]), text)
        out = backbone.pipe(
            "a ball",
            latents=start,
            height=32,
            width=32,
            num_frames=17,
            num_inference_steps=1,
            guidance_scale=1.0,
            max_sequence_length=32,
            output_type="latent",
        ).frames
    torch.testing.assert_close(out, paths.to_x0(start, v, torch.tensor([1.0])))


def test_the_noise_of_a_clip_does_not_depend_on_its_batch(backbone):
    both, alone = noise(backbone, [3, 4]), noise(backbone, [4])
    assert torch.equal(both[1:], alone)
    prompts = ["a ball", "a red ball"]
    videos = sample(backbone, prompts, seed=3, steps=2)
    single = sample(backbone, prompts[1:], noise=alone, steps=2)
    cut = sample(backbone, prompts, seed=[3, 4], steps=2, batch_size=1)
    torch.testing.assert_close(videos[1:], single, atol=1e-5, rtol=0)
    assert torch.equal(cut[1:], single)


def test_a_first_frame_is_kept(backbone, video):
    first = video[:2, :, 0]
    clips = sample(backbone, ["a ball", "a red ball"], seed=0, steps=2, image=first)
    kept = backbone.decode(backbone.encode(first[:, :, None]))[:, :, 0]
    torch.testing.assert_close(clips[:, :, 0], kept, atol=1e-5, rtol=0)
    assert clips.shape == (2, 3, 17, 32, 32)


def test_sampling_wants_a_seed_or_noise_of_the_right_shape(backbone):
    with pytest.raises(ValueError, match="either `seed` or `noise`"):
        sample(backbone, ["a ball"])
    with pytest.raises(ValueError, match="Use 13 or 17 frames"):
        sample(backbone, ["a ball"], seed=0, frames=15)
    with pytest.raises(ValueError, match="multiple of 8, got 30"):
        sample(backbone, ["a ball"], seed=0, height=30)
    with pytest.raises(ValueError, match="expected noise of shape"):
        sample(backbone, ["a ball", "a ball"], seed=[1])


def test_a_saved_backbone_is_the_same_after_loading(backbone, tmp_path):
    save(backbone, tmp_path / "b", id="saved")
    again = load(tmp_path / "b")
    assert again.id == "saved"
    assert again.words == backbone.words
    assert (again.config_hash, again.digest) == (backbone.config_hash, backbone.digest)
    start = noise(backbone, [1])
    assert torch.equal(*(sample(b, ["a red ball"], noise=start, steps=2) for b in (backbone, again)))


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-user/no-such-model"])
def test_a_name_that_is_neither_folder_nor_reachable_model_says_what_a_name_may_be(name):
    with pytest.raises(ValueError, match="'world', a folder with a diffusers pipeline or a hub id"):
        load(name)


def test_a_saved_backbone_does_not_say_where_it_lay_before(backbone, tmp_path):
    save(backbone, tmp_path / "first", id="tiny")
    save(load(tmp_path / "first"), tmp_path / "second", id="tiny")
    configs = list((tmp_path / "second").rglob("*.json"))
    assert configs
    assert not [path.name for path in configs if str(tmp_path) in path.read_text()]


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match="model_index"):
        load(tmp_path)


def test_a_transformer_too_narrow_for_its_tokens_is_refused():
    with pytest.raises(ValueError, match=r">= 2 \* channels \* patch volume = 128, got 96"):
        tiny.pipeline(["a"], heads=3)


def test_building_a_tiny_model_leaves_the_callers_random_state_alone():
    before = torch.random.get_rng_state()
    tiny.pipeline(["a"], layers=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_frozen_weights_that_change_are_noticed(backbone):
    weight = backbone.transformer.proj_out.weight
    with backbone.frozen():
        assert not weight.requires_grad
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="frozen weights of tiny changed"), backbone.frozen():
        weight.data.add_(1)


def test_config_hash_names_the_architecture_and_digest_the_weights(backbone, vae):
    other = WanBackbone(tiny.pipeline(["a"], vae=vae, layers=2, seed=2))
    deeper = WanBackbone(tiny.pipeline(["a"], vae=vae, layers=3, seed=2))
    assert other.config_hash == backbone.config_hash
    assert other.digest != backbone.digest
    assert deeper.config_hash != backbone.config_hash
    assert deeper.latent_hash == backbone.latent_hash


def test_two_transformers_are_chosen_by_the_noise_level(vae):
    pipe = tiny.pipeline(["a"], vae=vae, layers=1)
    low = tiny.transformer(16, layers=1)
    pipe.register_modules(transformer_2=low)
    pipe.register_to_config(boundary_ratio=0.8)
    backbone = WanBackbone(pipe)
    x_s, text = torch.randn(1, 16, 1, 4, 4), backbone.embed(["a"])
    with torch.no_grad():
        v = backbone.predict(x_s, torch.tensor([0.5]), text)
        torch.testing.assert_close(v, low(x_s, torch.tensor([500.0]), text.features).sample, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="one side of the boundary"):
        backbone.predict(x_s.expand(2, -1, -1, -1, -1), torch.tensor([0.5, 0.9]), text[[0, 0]])


def test_text_keeps_its_mask_when_cut():
    text = Text.of(torch.tensor([[[1.0], [0.0]], [[2.0], [3.0]]]))
    assert text[1:].mask.tolist() == [[True, True]]
    assert len(text) == 2


def test_loading_says_nothing_when_all_is_well(backbone, tmp_path):
    save(backbone, tmp_path / "b", id="tiny")
    program = f"import backbones; assert backbones.load({str(tmp_path / 'b')!r}).id == 'tiny'"
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_VERBOSITY"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout + ran.stderr == ""


def test_a_missing_default_names_the_commands_that_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr("backbones.loading.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="uv run world export --run RUN --out"):
        load("world")


def live_calls(backbone, call):
    """Run `call` and give (arguments, output) of every call of the transformers, with the scheduler's next level."""
    seen, scheduler = [], backbone.pipe.scheduler

    def hook(model, args, kwargs, out):
        step = scheduler.step_index or 0
        seen.append((model, kwargs, out[0], scheduler.sigmas[step].item()))

    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in backbone.transformers]
    try:
        call()
    finally:
        for h in hooks:
            h.remove()
    return seen


@pytest.mark.parametrize("name", ["wan21_i2v", "wan22_i2v_a14b", "wan22_ti2v"])
@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_image_pipelines_that_pass_no_level_are_read_exactly(name, kind):
    backbone = WanBackbone(tiny.family(name, layers=1), id=name)
    if kind is FlowMatchEulerDiscreteScheduler:
        backbone.pipe.scheduler = kind(shift=3.0)
    image = torch.zeros(1, 3, 32, 32)
    call = {"seed": 0, "steps": 5, "frames": 5, "image": image, "guidance": 2.0}
    seen = live_calls(backbone, lambda: sample(backbone, ["a red ball"], **call))
    assert len(seen) == 10
    prefix = backbone.encode(image[:, :, None]) if name == "wan22_ti2v" else None
    for i, (model, arguments, output, level) in enumerate(seen):
        asked = backbone.asked(model, arguments, output, sigma=None, branch=("cond", "uncond")[i % 2])
        assert asked.sigma.tolist() == [level]
        assert asked.x_s.shape == asked.v.shape == output.shape
        if prefix is None:
            assert asked.noisy is None
        else:
            assert asked.noisy is not None
            assert asked.noisy[0, 0, :, 0, 0].tolist() == [0, 1]
            torch.testing.assert_close(asked.x_s[:, :, :1], prefix)
            answer = backbone.answer(asked, torch.ones_like(asked.v))
            assert answer[0, 0, :, 0, 0].tolist() == [0, 1]
    if kind is UniPCMultistepScheduler:
        rounded = [a["timestep"].reshape(-1).max().item() / 1000 for _, a, *_ in seen]
        assert rounded != [level for *_, level in seen]


def test_two_steps_with_one_rounded_timestep_are_told_apart_by_the_scheduler():
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12)
    scheduler.set_timesteps(100)
    steps = scheduler.timesteps.tolist()
    assert steps[0] == steps[1]
    scheduler.set_begin_index(0)
    latents = torch.randn(1, 4)
    for i, t in enumerate(scheduler.timesteps):
        found = level_of(scheduler, t.expand(2))
        assert found.tolist() == [scheduler.sigmas[i].item()] * 2
        rough = level_of(scheduler, t.expand(2).bfloat16())  # modular Wan's cast, off by up to 2 of 1000
        assert rough.tolist() == found.tolist()
        latents = scheduler.step(torch.zeros_like(latents), t, latents).prev_sample


def test_the_first_of_two_equal_timesteps_is_the_one_that_the_scheduler_will_take():
    """Without `set_begin_index` (the image pipeline) diffusers looks the timestep up and takes the second."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12)
    scheduler.set_timesteps(100)
    first = level_of(scheduler, scheduler.timesteps[:1])
    scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(1, 4))
    assert first.item() == scheduler.sigmas[scheduler.step_index - 1].item() == scheduler.sigmas[1].item()


def test_a_half_precision_timestep_that_no_table_explains_is_refused(backbone):
    x_s, text = torch.randn(1, 16, 1, 4, 4), backbone.embed(["a"])
    given = {"hidden_states": x_s, "timestep": torch.tensor([501.0]), "encoder_hidden_states": text.features}
    asked = backbone.asked(backbone.transformer, given, x_s, sigma=None, branch=None)
    assert asked.sigma.item() == pytest.approx(0.501)
    assert asked.branch_rows == {}
    given["timestep"] = given["timestep"].bfloat16()
    with pytest.raises(RuntimeError, match="Pass float32 timesteps"):
        backbone.asked(backbone.transformer, given, x_s, sigma=None, branch=None)
    backbone.pipe.scheduler.set_timesteps(4)
    with pytest.raises(RuntimeError, match="noise level is not known exactly"):
        backbone.asked(backbone.transformer, given | {"timestep": torch.tensor([501])}, x_s, sigma=None, branch="cond")
    asked = backbone.asked(backbone.transformer, given, x_s, sigma=0.5003, branch="cond")
    assert asked.sigma.item() == pytest.approx(0.5003)


def test_the_two_experts_declare_their_levels_and_each_answers_in_its_own():
    backbone = WanBackbone(tiny.family("wan22_a14b", layers=1))
    assert backbone.sigma_ranges == ((0.875, 1.0), (0.0, 0.875))
    seen = live_calls(backbone, lambda: sample(backbone, ["a red ball"], seed=0, steps=6, frames=5, guidance=1.0))
    chosen = [backbone.transformers.index(model) for model, *_ in seen]
    assert chosen == [next(i for i, (low, _) in enumerate(backbone.sigma_ranges) if level >= low) for *_, level in seen]
    assert set(chosen) == {0, 1}


def test_an_image_is_read_alike_by_clip_and_by_the_vae():
    """A tensor in [0, 1] would be scaled to black by CLIP's processor."""
    backbone = WanBackbone(tiny.family("wan21_i2v", layers=1))
    bright, dark = (backbone.condition(torch.full((1, 3, 32, 32), v), 5) for v in (1.0, -1.0))
    assert bright.image is not None
    assert dark.image is not None
    assert bright.channels.shape == (1, 20, 2, 4, 4)
    assert (
        bright.channels[0, :4].flatten(1).mean(1).tolist() == [0.5] * 4
    )  # the mask: frame 0 is known, the rest is not
    processed = backbone.pipe.image_processor(images=pictures(torch.ones(1, 3, 32, 32), as_pil=True))
    assert float(processed["pixel_values"][0].max()) > 1.5
    assert (bright.image - dark.image).abs().max() > 1e-3


def test_an_image_model_with_tokens_counts_on_512_rows_of_text():
    backbone = WanBackbone(tiny.family("wan21_i2v", layers=1))
    assert backbone.spec.text_length == 512
    text, condition = backbone.embed(["a ball"]), backbone.condition(torch.zeros(1, 3, 32, 32), 5)
    short = Text(text.features[:, :226], text.mask[:, :226])
    x_s, sigma = noise(backbone, [0], 5), torch.tensor([0.5])
    with pytest.raises(ValueError, match="expected 512 rows of text"):
        backbone.predict(x_s, sigma, short, condition)
    assert backbone.predict(x_s, sigma, text, condition[:1]).shape == x_s.shape


def test_first_frames_of_another_size_are_refused(backbone):
    with pytest.raises(ValueError, match="expected first frames of 32 x 32"):
        sample(backbone, ["a ball"], seed=0, image=torch.zeros(1, 3, 16, 16))


def test_a_ti2v_model_in_an_image_pipeline_keeps_first_frames_and_wants_them(backbone, video):
    image = WanBackbone(WanImageToVideoPipeline(**backbone.pipe.components, expand_timesteps=True), id="image")
    call = {"seed": 0, "steps": 1, "frames": 5}
    with pytest.raises(ValueError, match="through WanPipeline"):
        sample(image, ["a ball"], **call)
    first = video[:1, :, 0]
    assert torch.equal(
        sample(image, ["a ball"], image=first, **call), sample(backbone, ["a ball"], image=first, **call)
    )


def test_one_dtype_is_wanted(backbone):
    with pytest.raises(ValueError, match="expected one dtype"):
        load("world", dtype=torch.float16, torch_dtype=torch.bfloat16)


def test_what_predict_would_broadcast_or_crop_in_silence_is_refused(backbone):
    text, x, half = backbone.embed(["a ball"]), torch.zeros(1, 16, 5, 8, 8), torch.tensor([0.5])
    asks = [
        (x[:, :3], half, text, "expected latents"),
        (x[..., :7], half, text, "multiples of 2"),
        (x, torch.tensor([0.5, 0.5]), text, "one noise level a clip"),
        (x, torch.tensor([500.0]), text, r"expected sigma in \[0, 1\]"),
        (x, half, backbone.embed(["a ball", "a ball"]), "text of 1 prompts"),
    ]
    for latent, sigma, words, sentence in asks:
        with pytest.raises(ValueError, match=sentence):
            backbone.check_asked(latent, sigma, words)
    with pytest.raises(ValueError, match="text of 1 prompts"):
        backbone.predict(x, half, asks[-1][2])


def test_a_bare_string_is_no_list_of_prompts(backbone):
    with pytest.raises(ValueError, match="expected a list of one or more prompts"):
        sample(backbone, "a ball", seed=0)
    with pytest.raises(ValueError, match="expected a list of one or more prompts"):
        backbone.embed([])


def test_a_first_frame_of_0_to_255_is_refused(backbone):
    with pytest.raises(ValueError, match=r"got \[255, 255\]"):
        sample(backbone, ["a ball"], seed=0, image=torch.full((1, 3, 32, 32), 255.0))
