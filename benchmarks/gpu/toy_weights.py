"""Write random checkpoints of the real classes in a size that a CPU runs: what rows with weights try themselves on.

uv run python benchmarks/gpu/toy_weights.py wan vlm instruct --out runs/toy
"""

import argparse
from pathlib import Path

import torch

CHARACTERS = [chr(code) for code in range(33, 127)]


def wan(folder: Path) -> None:
    """A Wan2.1 pipeline for text of two layers."""
    from backbones import tiny_families
    from backbones.loading import save, wrap

    save(wrap(tiny_families.family("wan21_t2v")), folder, id="toy")


def vlm(folder: Path) -> None:
    """A Qwen2.5-VL with a byte-wise tokenizer."""
    from vlmdistill import tiny

    made = tiny("qwen2_5_vl")
    made.model.save_pretrained(folder)
    made.reader.tokenizer.save_pretrained(folder)


def instruct(folder: Path) -> None:
    """A Llama of one layer whose tokens are single characters, with a chat template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<end>", "<unk>", *CHARACTERS]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(tokens), max_position_embeddings=8192, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)


MAKERS = {"wan": wan, "vlm": vlm, "instruct": instruct}


def main() -> None:
    """Write those that are named, each into its folder; what is there stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=MAKERS)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for name in given.names:
        if not (given.out / name).is_dir():
            torch.manual_seed(0)
            part = given.out / f".{name}"
            MAKERS[name](part)
            part.rename(given.out / name)


if __name__ == "__main__":
    main()
