"""Random models of some ten thousand parameters with the layout of the real ones: for tests and for trying things.

What a random model looks at means nothing. The tokenizer knows bytes and the special tokens, its chat template writes
what the checkpoints' templates write for one video and one question; a cell is 8 pixels squared instead of 28 or 32.
"""

import string
from typing import Any, Literal

import torch

from vlmdistill.vlm import Vlm, wrap

__all__ = ["tiny"]

_SPECIAL = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny(family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl", *, seed: int = 0, layers: int = 3) -> Vlm:
    """Build a random Qwen2.5-VL or Qwen3-VL; the generator of torch is left as it was.

    >>> vlm = tiny()
    >>> sum(p.numel() for p in vlm.model.parameters()) < 100_000
    True
    """
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    tokenizer = _tokenizer(_SYSTEM + _TEMPLATE if family == "qwen2_5_vl" else _TEMPLATE)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("im_end", "endoftext", "video_pad", "image_pad", "vision_start", "vision_end")
    }
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": rope,
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
        "pad_token_id": ids["endoftext"],
        "initializer_range": 0.3,  # 0.02 in so small a model gives flat attention, which would hide mistakes
    }
    vision = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "intermediate_size": 32,
        "hidden_size": 16,
        "out_hidden_size": 32,
    }
    places = {f"{kind}_token_id": ids[f"{kind}_pad"] for kind in ("video", "image")}
    places |= {f"vision_{side}_token_id": ids[f"vision_{side}"] for side in ("start", "end")}
    kwargs: dict[str, Any] = {"text_config": text, "tie_word_embeddings": True, "attn_implementation": "sdpa", **places}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "qwen2_5_vl":
            vision |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, **kwargs))
        elif family == "qwen3_vl":
            vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
            model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, **kwargs))
        else:
            raise ValueError(f"expected 'qwen2_5_vl' or 'qwen3_vl', got {family!r}")
    letters = {tokenizer.convert_tokens_to_ids("Ġ"), *tokenizer.convert_tokens_to_ids(list(string.ascii_letters))}
    model.generation_config.suppress_tokens = sorted(
        {*range(len(tokenizer))} - letters
    )  # an answer that can be printed
    return wrap(model.eval(), tokenizer, name=f"tiny random {family}", tokens=(1, 768))


def _tokenizer(template: str) -> Any:
    """Qwen's tokenizer without merges: one token a byte, and the special ones."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())
    return Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate(letters)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL),
        chat_template=template,
    )
