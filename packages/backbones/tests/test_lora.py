"""A LoRA that was trained on a stock transformer is loaded by a stock pipeline and gives the same output."""

import pytest
import torch
from safetensors import safe_open

peft = pytest.importorskip("peft", reason="LoRA needs peft (physbackbones[lora])")

from backbones import bundle, lora, tiny  # noqa: E402

WORDS = ["a", "red", "ball"]
SIZE = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 4, "output_type": "latent"}


def base(two=False):
    pipe = tiny.pipeline(WORDS, layers=1, heads=2, head_dim=64, ffn_dim=32, text_dim=16, text_length=8)
    if two:
        second = tiny.transformer(16, layers=1, heads=2, head_dim=64, ffn_dim=32, text_dim=16)
        second.load_state_dict(pipe.transformer.state_dict())
        pipe.register_modules(transformer_2=second)
        pipe.register_to_config(boundary_ratio=0.5, expand_timesteps=False)
    return pipe


def trained(transformer, seed, *, rank=4, alpha=16):
    """A LoRA whose scale is not 1, with weights as after training."""
    transformer.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "to_v"]))
    generator = torch.Generator().manual_seed(seed)
    for name, p in transformer.named_parameters():
        if "lora_" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return transformer


def sampled(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe("a red ball", generator=generator, max_sequence_length=8, guidance_scale=1.0, **SIZE).frames


def test_a_stock_pipeline_loads_it_and_gives_the_same_output(tmp_path):
    pipe = base()
    plain = sampled(pipe)
    trained(pipe.transformer, 1)
    lora.save(tmp_path, {"transformer": pipe.transformer})
    stock = base()
    stock.load_lora_weights(str(tmp_path))
    assert torch.equal(sampled(stock), sampled(pipe))
    assert (sampled(pipe) - plain).abs().max() > 0.01
    stock.unload_lora_weights()
    assert torch.equal(sampled(stock), plain)


def test_both_experts_get_their_own_lora(tmp_path):
    pipe = base(two=True)
    parts = {"transformer": trained(pipe.transformer, 1), "transformer_2": trained(pipe.transformer_2, 2, alpha=2)}
    assert [p.name for p in lora.save(tmp_path, parts)] == [*lora.FILES.values()]
    stock = base(two=True)
    assert lora.load(stock, tmp_path) == ["transformer", "transformer_2"]
    assert torch.equal(sampled(stock), sampled(pipe))
    by_hand = base(two=True)
    by_hand.load_lora_weights(str(tmp_path))
    assert not torch.equal(sampled(by_hand), sampled(pipe)), "the second file has a part in the output"
    by_hand.load_lora_weights(str(tmp_path), weight_name=lora.FILES["transformer_2"], load_into_transformer_2=True)
    assert torch.equal(sampled(by_hand), sampled(pipe))


def test_a_part_for_a_transformer_that_is_not_there_is_refused(tmp_path):
    pipe = base(two=True)
    lora.save(tmp_path, {"transformer_2": trained(pipe.transformer_2, 2)})
    with pytest.raises(ValueError, match="is for a `transformer_2`, and WanPipeline here has none"):
        lora.load(base(), tmp_path)
    with pytest.raises(ValueError, match="got neither"):
        lora.load(base(), tmp_path / "nowhere")


def test_rank_and_alpha_travel_and_where_the_base_lay_does_not(tmp_path):
    pipe = base()
    trained(pipe.transformer, 1)
    pipe.transformer.peft_config["default"].base_model_name_or_path = "/home/somebody/model"
    [path] = lora.save(tmp_path, {"transformer": pipe.transformer})
    with safe_open(path, "pt") as file:
        about = file.metadata()["lora_adapter_metadata"]
        assert all(name.startswith("transformer.blocks.0.attn") for name in file.keys())  # noqa: SIM118
    assert '"transformer.lora_alpha": 16' in about
    assert "somebody" not in about


def test_a_bundle_carries_lora_parts_and_notices_others(backbone, tmp_path):
    pipe = base()
    parts = {"transformer": trained(pipe.transformer, 1)}
    made = {"kind": "x", "groups": {"g": {"a": torch.ones(1)}}, "backbone": backbone, "config": {}}
    folder = bundle.save(tmp_path / "b", **made, lora_parts=parts)
    assert set(bundle.load(folder).meta["lora"]) == {"pytorch_lora_weights.safetensors"}
    stock = base()
    stock.load_lora_weights(str(folder))  # finds its file beside bundle.safetensors
    assert torch.equal(sampled(stock), sampled(pipe))
    path = folder / "pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"pytorch_lora_weights\.safetensors is not the file"):
        bundle.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match="names the LoRA part"):
        bundle.load(folder)
    bundle.save(folder, **made, lora_parts=parts)
    bundle.save(folder, **made)
    assert not path.exists(), "what an earlier bundle left here would be loaded with this one"


def test_a_transformer_without_lora_is_refused():
    pipe = base()
    with pytest.raises(ValueError, match="with a LoRA 'default', it has: none"):
        lora.state(pipe.transformer)
    with pytest.raises(ValueError, match="among transformer, transformer_2, got text_encoder"):
        lora.serialise({"text_encoder": pipe.text_encoder})
