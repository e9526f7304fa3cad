"""Each guard catches its mistake, says the remedy, and lets the right thing pass."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from backbones import CogVideoXBackbone, Text, WanBackbone, guards, load, tiny


def test_a_good_round_trip_reports_what_it_kept(backbone, video):
    latents = backbone.encode(video)
    found = guards.round_trip(backbone, video)
    assert found.psnr > 25
    assert (found.mean, found.std) == pytest.approx((float(latents.mean()), float(latents.std())))
    assert guards.round_trip(backbone, video, latents=latents.bfloat16()).psnr == pytest.approx(found.psnr, abs=1)


def test_a_video_in_zero_to_one_is_noticed(backbone, video):
    with pytest.raises(ValueError, match=r"looks like \[0, 1\]\. Use video \* 2 - 1"):
        guards.round_trip(backbone, (video + 1) / 2)


def test_raw_latents_in_a_cache_are_noticed(backbone, video):
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (backbone.spec.latent.mean, backbone.spec.latent.std))
    with pytest.raises(ValueError, match="they are not normalised"):
        guards.round_trip(backbone, video, latents=backbone.encode(video) * std + mean)


def test_latents_of_another_size_are_noticed(backbone, video):
    with pytest.raises(ValueError, match="make the cache again"):
        guards.round_trip(backbone, video, latents=backbone.encode(video[:, :, :13]))


def test_a_vae_that_loses_the_picture_is_noticed(video):
    with pytest.raises(ValueError, match="keep 20 dB of these clips, got "):
        guards.round_trip(WanBackbone(tiny.family("wan21_t2v", layers=1)), video)


@pytest.mark.parametrize(("factor", "shift"), [(8.0, 0.0), (0.1, 0.0), (1.0, 2.0)])
def test_a_normalisation_that_is_not_the_vaes_is_noticed(vae, video, factor, shift):
    backbone = WanBackbone(tiny.pipeline(["a"], vae=vae, layers=1))
    latent = backbone.spec.latent
    wrong = {"mean": tuple(shift * s for s in latent.std), "std": tuple(factor * s for s in latent.std)}
    backbone.spec = type(backbone.spec)(**(vars(backbone.spec) | {"latent": type(latent)(**(vars(latent) | wrong))}))
    with pytest.raises(ValueError, match="latents_mean and latents_std"):
        guards.round_trip(backbone, video)


@pytest.mark.parametrize("low", [-1.5, float("nan")])
def test_values_outside_the_range_are_named(low):
    with pytest.raises(ValueError, match=r"expected a video in \[-1, 1\], got .* video / 127\.5 - 1"):
        guards.value_range(torch.tensor([low, 0.0]))
    guards.value_range(torch.tensor([-1.0, 1.0]))


def test_integers_are_told_how_to_become_a_video():
    with pytest.raises(ValueError, match=r"got torch\.uint8\. From uint8: video / 127\.5 - 1"):
        guards.value_range(torch.zeros(3, dtype=torch.uint8))


def test_the_nearest_legal_frame_counts_are_named(backbone):
    guards.frame_count(17, backbone.spec.latent)
    with pytest.raises(ValueError, match=r"expected 4n\+1 frames, got 18: .* Use 17 or 21"):
        guards.frame_count(18, backbone.spec.latent)


UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def test_a_shift_that_from_config_lost_is_noticed_both_ways():
    unipc, euler = UniPCMultistepScheduler(**UNIPC), FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert guards.flow_shift(unipc) == 3.0
    assert guards.flow_shift(euler, expected=5.0) == 5.0
    with pytest.raises(ValueError, match=r"expected shift 3, got 1 .* from_config\(config, shift=3\)"):
        guards.flow_shift(FlowMatchEulerDiscreteScheduler.from_config(unipc.config))
    lost = UniPCMultistepScheduler.from_config(euler.config, use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"expected shift 5, got 1 .* from_config\(config, flow_shift=5\)"):
        guards.flow_shift(lost)
    kept = FlowMatchEulerDiscreteScheduler.from_config(unipc.config, shift=3.0)
    assert guards.flow_shift(kept) == 3.0


def test_a_shift_other_than_the_recipes_is_noticed():
    with pytest.raises(ValueError, match="expected shift 12, got 3"):
        guards.flow_shift(UniPCMultistepScheduler(**UNIPC), expected=12.0)


def test_a_scheduler_that_walks_no_flow_is_noticed():
    with pytest.raises(ValueError, match="use_flow_sigmas=True"):
        guards.flow_shift(UniPCMultistepScheduler())
    with pytest.raises(ValueError, match="expected a flow scheduler"):
        guards.flow_shift(CogVideoXDDIMScheduler())


def test_text_as_it_was_trained_on_passes_and_other_text_does_not():
    backbone = WanBackbone(tiny.family("wan21_i2v", layers=1))
    text = backbone.embed(["a red ball"])
    guards.padded_text(text, backbone)
    with pytest.raises(ValueError, match=r"expected 512 rows of text for .*, got 226"):
        guards.padded_text(Text(text.features[:, :226], text.mask[:, :226]), backbone)
    with pytest.raises(ValueError, match="expected zero rows after the end of the text"):
        guards.padded_text(Text(text.features + 1, text.mask), backbone)
    with pytest.raises(ValueError, match="got one with gaps"):
        guards.padded_text(Text(text.features, text.mask.flip(1)), backbone)


def test_pads_that_are_not_zero_are_right_for_cogvideox():
    backbone = CogVideoXBackbone(tiny.family("cogvideox_2b", layers=1))
    text = backbone.embed(["a red ball"])
    assert bool((text.features[~text.mask] != 0).any())
    guards.padded_text(text, backbone)


LAYOUTS = {
    "wan21": (
        {"config.json": {"_class_name": "WanModel"}, "Wan2.1_VAE.pth": ""},
        "an original Wan checkpoint: convert",
    ),
    "wan22": ({"high_noise_model/config.json": {}, "low_noise_model/config.json": {}}, "convert_wan_to_diffusers"),
    "wan_text": ({"models_t5_umt5-xxl-enc-bf16.pth": ""}, "an original Wan checkpoint"),
    "sat": ({"latest": "1", "1/mp_rank_00_model_states.pt": ""}, "convert_cogvideox_to_diffusers"),
    "part": ({"config.json": {"_class_name": "WanTransformer3DModel"}}, "one component .*: give the folder above it"),
    "bundle": ({"bundle.json": {}, "bundle.safetensors": ""}, "attach it to a backbone"),
    "lora": ({"pytorch_lora_weights.safetensors": ""}, "load_lora_weights"),
    "nothing": ({"notes.txt": ""}, "no model_index.json: give a folder"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_lies_in_a_folder_without_a_pipeline_is_named_with_the_way_out(tmp_path, name):
    files, message = LAYOUTS[name]
    for place, content in files.items():
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        guards.checkpoint_layout(tmp_path)
    with pytest.raises(ValueError, match="expected a diffusers pipeline folder with a model_index"):
        load(tmp_path)


def test_a_single_file_is_told_where_it_belongs(tmp_path):
    single = tmp_path / "wan2.1_t2v_1.3b_bf16.safetensors"
    single.touch()
    with pytest.raises(ValueError, match=r"got the single file .* from_single_file"):
        load(single)


def test_a_pipeline_folder_and_a_hub_id_pass(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    guards.checkpoint_layout(tmp_path)
    guards.checkpoint_layout(Path("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"))
