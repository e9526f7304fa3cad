"""One contract for all generator families: the same laws, on tiny models in the real folder layout."""

import inspect
import json

import pytest
import torch

from backbones import Backbone, configs, laws, load, noise, paths, sample, tiny
from backbones.contract import Condition
from backbones.loading import save, wrap
from backbones.tiny_families import FAMILIES

PROMPTS = ["a red ball", "the blue cube rolls left"]
FRAMES, HEIGHT, WIDTH = 9, 32, 32
MILLIONS = {  # of parameters, of one transformer
    "wan2.1-t2v-1.3b": 1419,
    "wan2.2-ti2v-5b": 5000,
    "wan2.2-t2v-a14b": 14288,
    "cogvideox-2b": 1694,
    "cogvideox-5b": 5570,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Each family once, saved and loaded."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "pipe"
            save(wrap(tiny.family(name)), folder, id=name)
            made[name] = load(folder), folder
        return made[name]

    return get


@pytest.fixture(params=FAMILIES)
def family(request, loaded):
    return loaded(request.param)[0]


@pytest.fixture
def clips():
    return torch.rand(2, 3, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1


def settings(family, clips, n=2):
    given = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "steps": 3}
    return given | ({"image": clips[:n, :, 0]} if family.conditioned else {})


def watch(family, call):
    """Run `call` and give, for every step: arguments and output of the model's calls, and the scheduler's x0."""
    calls, x0 = [], []
    scheduler, name = family.pipe.scheduler, "convert_model_output" if family.spec.prediction == "flow" else "step"
    stock = getattr(type(scheduler), name)

    def spy(*args, **kwargs):
        out = stock(scheduler, *args, **kwargs)
        x0.append(out if name == "convert_model_output" else out[1].transpose(1, 2))
        return out

    def hook(model, args, kwargs, out):
        calls.append((model, kwargs, out[0], scheduler.step_index if name != "step" else None))

    spy.__signature__ = inspect.signature(getattr(scheduler, name))  # CogVideoX looks for `generator` in it
    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in family.transformers]
    setattr(scheduler, name, spy)
    try:
        call()
    finally:
        delattr(scheduler, name)
        for h in hooks:
            h.remove()
    return calls, x0


def test_the_contract_holds(family):
    assert isinstance(family, Backbone)
    assert len(family.sigma_ranges) == len(family.transformers)
    assert family.sigma_ranges[0][1] == 1.0
    assert family.conditioned == family.id.endswith(("_i2v", "i2v_a14b"))
    assert len(family.spec.latent.mean) == len(family.spec.latent.std) == family.spec.latent.channels


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["wan21_t2v", "cogvideox_5b"])
def test_a_law_for_new_families_holds_for_those_that_are_here(loaded, name, law):
    law(loaded(name)[0], (FRAMES, HEIGHT, WIDTH))


def test_the_folder_is_what_a_hub_repository_holds(loaded, family):
    index = json.loads((loaded(family.id)[1] / "model_index.json").read_text())
    wan = family.id.startswith("wan")
    image = family.conditioned
    assert index["_class_name"] == (
        ("WanImageToVideoPipeline" if image else "WanPipeline")
        if wan
        else ("CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline")
    )
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel" if wan else "CogVideoXTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan" if wan else "AutoencoderKLCogVideoX"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel" if wan else "T5EncoderModel"]
    assert index["tokenizer"][0] == "transformers"
    assert index["tokenizer"][1].startswith("T5Tokenizer")
    assert (index.get("transformer_2", [None])[0] is not None) == ("a14b" in family.id)


def test_what_is_saved_is_loaded(loaded, family):
    again = load(loaded(family.id)[1])
    assert (again.id, again.config_hash, again.latent_hash, again.digest, again.text_digest) == (
        family.id,
        family.config_hash,
        family.latent_hash,
        family.digest,
        family.text_digest,
    )
    assert again.spec == family.spec


def test_latents_have_the_shape_of_the_spec_and_videos_come_back_whole(family, clips):
    latents = family.encode(clips)
    assert latents.shape == (2, *family.spec.latent.shape(FRAMES, HEIGHT, WIDTH))
    assert family.decode(latents).shape == clips.shape
    assert family.decode(1e3 * latents).abs().max() <= 1
    assert len(family.spec.time.latent_times(FRAMES)) == latents.shape[2]
    with pytest.raises(ValueError, match="Use 9 or"):
        family.encode(clips[:, :, [*range(FRAMES), 0]])
    with pytest.raises(ValueError, match=r"expected a video in \[-1, 1\]"):
        family.encode(clips * 2)


def test_latents_are_normalised_as_the_pipeline_does(family, clips):
    """The pipelines decode z * std + mean, CogVideoX's z / scaling_factor."""
    latents = family.encode(clips)
    z = family.pipe.vae.encode(clips).latent_dist.mode()
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (family.spec.latent.mean, family.spec.latent.std))
    lead = family.spec.latent.lead
    torch.testing.assert_close(latents[:, :, lead:] * std + mean, z)
    assert all(torch.equal(latents[:, :, j], latents[:, :, lead]) for j in range(lead))


def test_text_is_the_pipelines_and_its_mask_the_tokenizers(family):
    text = family.embed(PROMPTS)
    with torch.no_grad():
        stock, _ = family.pipe.encode_prompt(
            PROMPTS, do_classifier_free_guidance=False, max_sequence_length=family.spec.text_length
        )
    assert torch.equal(text.features, stock)
    assert text.features.shape == (2, family.spec.text_length, family.spec.text_dim)
    assert text.mask.sum(1).tolist() == [4, 6]  # words and </s>
    again = family.text_of(PROMPTS, stock, "uncond")
    assert torch.equal(again.mask, text.mask)
    assert again.branch == "uncond"


def test_predict_gives_the_pipelines_own_x0(family, clips):
    start = noise(family, [1, 2], FRAMES, HEIGHT, WIDTH)
    given = settings(family, clips)
    calls, x0 = watch(family, lambda: sample(family, PROMPTS, noise=start, guidance=1.0, **given))
    per_call = len(x0) // 3  # one, or one a clip with an image
    assert len(x0) in (3, 6)
    assert len(calls) == len(x0)
    text = family.embed(PROMPTS)
    draws = family.spec.prediction == "v"  # CogVideoX's condition is a draw from the VAE's posterior: taken as it came
    condition = family.condition(clips[:, :, 0], FRAMES) if family.conditioned and not draws else None
    for i, ((model, call, _, step), expected) in enumerate(zip(calls, x0, strict=True)):
        rows = [0, 1] if per_call == 1 else [i // 3]
        if family.spec.prediction == "flow":
            x_s = call["hidden_states"][:, : start.shape[1]]
            sigma = family.pipe.scheduler.sigmas[i % 3].expand(len(rows))
            at = call["timestep"].reshape(len(rows), -1)[:, 0] / 1000  # UniPC truncates to integer timesteps
            assert step in (None, i % 3)
        else:
            sigma = paths.level(family.pipe.scheduler.alphas_cumprod[call["timestep"]]).float()
            x_s = call["hidden_states"][:, :, : start.shape[1]].transpose(1, 2)
            x_s, at = x_s / paths.spread(paths.v_scale(sigma), x_s), sigma
        mine = condition[rows] if condition is not None else None
        if family.conditioned and mine is None:
            channels = call["hidden_states"][:, :, start.shape[1] :].transpose(1, 2)
            mine = Condition(channels)
        elif mine is not None:
            torch.testing.assert_close(mine.channels, call["hidden_states"][:, start.shape[1] :])
        with torch.no_grad():
            v = family.predict(x_s, at, text[rows], mine)
        assert model is family.transformers[0 if sigma[0] >= family.sigma_ranges[0][0] else 1]
        torch.testing.assert_close(paths.to_x0(x_s, v, sigma), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_call_of_the_pipeline_is_read_and_answered_in_flow_space(family, clips, guidance):
    text = {"cond": family.embed(PROMPTS[:1]), "uncond": family.embed([""])}
    given = settings(family, clips, 1)
    calls, x0 = watch(family, lambda: sample(family, PROMPTS[:1], seed=3, guidance=guidance, **given))
    sides = 2 if guidance > 1 else 1
    flow = family.spec.prediction == "flow"
    assert len(calls) == 3 * (sides if flow else 1)
    for i, (model, call, output, _) in enumerate(calls):
        step = i // sides if flow else i
        name = ("cond", "uncond")[i % sides] if flow else "cond_uncond"
        family.pipe._guidance_scale = guidance
        asked = family.asked(model, call, output, sigma=None, branch=name)
        assert {s for s in ("x_s", "v", "sigma") if getattr(asked, s).dtype == torch.float32} == {"x_s", "v", "sigma"}
        assert asked.noisy is None
        if flow:
            assert asked.sigma.tolist() == [family.pipe.scheduler.sigmas[step].item()]
        assert set(asked.branch_rows) == ({name} if flow else {"cond", "uncond"} if sides == 2 else {"cond"})
        for branch in asked.branch_rows:
            part = asked.part(branch)
            assert torch.equal(part.text.mask, text[branch].mask)
            assert torch.equal(part.text.features, text[branch].features)
            assert part.text.branch == branch
        if sides == 1:
            torch.testing.assert_close(paths.to_x0(asked.x_s, asked.v, asked.sigma), x0[step], atol=2e-5, rtol=2e-5)
        delta = torch.randn_like(asked.v)
        moved = family.velocity(asked, output + family.answer(asked, delta))
        torch.testing.assert_close(moved, asked.v + delta, atol=1e-5, rtol=1e-5)
        assert family.answer(asked, torch.zeros_like(delta)).abs().max() == 0
        assert family.answer(asked, delta).shape == output.shape


def test_a_clip_is_the_same_alone_and_in_a_batch(family, clips):
    start, given = noise(family, [1, 2], FRAMES, HEIGHT, WIDTH), settings(family, clips)
    both = sample(family, PROMPTS, noise=start, guidance=2.0, **given)
    assert both.shape == clips.shape
    assert both.abs().max() <= 1
    if "image" in given:
        given["image"] = given["image"][1:]
    alone = sample(family, PROMPTS[1:], seed=2, guidance=2.0, **given)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)


def test_an_image_model_wants_an_image_and_a_text_model_none(family, clips):
    text, x_s = family.embed(PROMPTS), noise(family, [1, 2], FRAMES, HEIGHT, WIDTH)
    given = settings(family, clips)
    if family.conditioned:
        del given["image"]
        with pytest.raises(ValueError, match="pass `image`"):
            sample(family, PROMPTS, seed=0, **given)
        with pytest.raises(ValueError, match="pass condition="):
            family.predict(x_s, torch.tensor([0.9, 0.9]), text)
    else:
        with pytest.raises(ValueError, match="reads no image channels"):
            family.condition(clips[:, :, 0], FRAMES)
    if not family.conditioned and not family.spec.per_token_time:
        with pytest.raises(ValueError, match="Sample it without `image`"):
            sample(family, PROMPTS, seed=0, image=clips[:, :, 0], **given)


def test_sampling_and_predicting_leave_every_weight_alone(family, clips):
    with family.frozen():
        sample(family, PROMPTS[:1], seed=0, **settings(family, clips, 1))
        assert not any(p.requires_grad for m in family.transformers for p in m.parameters())
    assert all(p.requires_grad for m in family.transformers for p in m.parameters())
    parameter = family.transformers[-1].proj_out.weight
    with pytest.raises(RuntimeError, match="frozen weights"), family.frozen():
        parameter.data.neg_()
    parameter.data.neg_()


def test_half_precision_is_loaded_under_both_names(loaded, family, clips):
    folder = loaded(family.id)[1]
    half = load(folder, dtype=torch.bfloat16)
    assert load(folder, torch_dtype=torch.bfloat16).transformer.dtype == half.transformer.dtype == torch.bfloat16
    wan = family.id.startswith("wan")
    assert half.pipe.vae.dtype == (torch.float32 if wan else torch.bfloat16)
    assert not wan or torch.equal(next(half.pipe.vae.parameters()), next(family.pipe.vae.parameters()))
    video = sample(half, PROMPTS[:1], seed=1, **settings(family, clips, 1))
    assert video.dtype == torch.float32
    assert video.isfinite().all()


def test_families_with_one_vae_and_text_encoder_share_a_latent_space(loaded):
    def space(name):
        return loaded(name)[0].latent_hash

    sixteen = {space(n) for n in ("wan21_t2v", "wan21_i2v", "wan22_a14b", "wan22_i2v_a14b")}
    assert len(sixteen) == 1
    others = {space(n) for n in ("wan22_ti2v", "cogvideox_2b", "cogvideox_5b", "cogvideox_15")}
    assert len(sixteen | others) == 5


def test_a_family_that_is_none_is_named():
    with pytest.raises(ValueError, match="wan21_t2v, wan21_i2v"):
        tiny.family("wan23")
    with pytest.raises(ValueError, match="WanPipeline, WanImageToVideoPipeline, CogVideoXPipeline"):
        wrap(object())


@pytest.mark.parametrize("name", MILLIONS)
def test_real_transformers_have_the_known_number_of_parameters(name):
    model = configs.transformer(name)
    assert next(model.parameters()).is_meta
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == MILLIONS[name]
    assert configs.read(name)["transformers"] == (2 if "a14b" in name else 1)


@pytest.mark.parametrize("name", configs.NAMES)
def test_real_configurations_build_and_agree_with_themselves(name):
    config = configs.read(name)
    model, vae = configs.transformer(name), configs.vae(name)
    noisy = vae.config.get("z_dim") or vae.config["latent_channels"]
    assert model.config["out_channels"] == noisy
    assert (model.config["in_channels"] > noisy) == ("ImageToVideo" in config["pipeline"])
    assert (config["boundary_ratio"] is not None) == (config["transformers"] == 2)
    assert (config["frames"] - 1) % 8 == 0
    assert config["source"]


def test_an_unknown_configuration_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="cogvideox-2b, "):
        configs.read("wan3")
