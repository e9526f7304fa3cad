"""Seconds and peak memory of MMPhysVideo's training steps, and what a student costs beside the base: nothing.

    uv run python benchmarks/gpu/mmphysvideo_step.py --model wan2.1-t2v-1.3b|cogvideox-2b [--rounds 3] [--out FILE.json]

The transformer has its real size and random bfloat16 weights, made from the configuration in `backbones.configs`; the
other parts of the pipeline stay tiny, none of them runs, and zeros of the real length stand for the text. Sizes are
those of the recipe (81 x 480 x 832 or 49 x 480 x 720), a micro-batch is one clip, and blocks are checkpointed. A
training step is loss, backward and AdamW; the student's asks its teacher, too. Base and student take turns, round by
round; the first step of each is not timed. `--toy` shrinks clip and model and runs on a CPU.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from backbones import Text, configs, tiny_families
from backbones.loading import wrap
from mmphysvideo.config import Recipe, load_recipe
from mmphysvideo.timing import measure

MODELS = {"wan2.1-t2v-1.3b": ("wan2.1-1.3b", "wan21_t2v"), "cogvideox-2b": ("cogvideox-2b", "cogvideox_2b")}
TOY = ["data.frames=9", "data.height=32", "data.width=32", "dtype=float32", "teacher.links.every=1"]
TOY += ["student.align.place=0", "student.align.teacher_place=0", "student.align.cells=null"]


def build(model: str, *, toy: bool, device: str) -> Any:
    """The stock pipeline around a transformer of the real size."""
    pipe = tiny_families.family(MODELS[model][1])
    if not toy:
        pipe.register_modules(transformer=configs.transformer(model, device=device).to(torch.bfloat16))
    pipe.transformer.requires_grad_(False)
    backbone: Any = wrap(pipe.to(device))
    spec = backbone.spec

    def embed(prompts: list[str]) -> Text:
        rows = (len(prompts), spec.text_length)
        return Text(torch.zeros(*rows, spec.text_dim, device=device), torch.ones(rows, dtype=torch.bool))

    backbone.embed = embed
    return backbone


def one_round(recipe: Recipe, backbone: Any, steps: int) -> dict[str, dict[str, Any]]:
    """Both stages and both forwards: seconds, peak memory, parameters."""
    found: dict[str, dict[str, Any]] = {}
    for stage in ("teacher", "student"):
        line = measure(recipe, backbone, stage, steps=steps)
        for name, figures in line["seconds_a_step"].items():
            trained = line["parameters"] if name == stage else 0
            found[name] = {"seconds": figures["wall_s"], "peak": figures["peak_bytes"], "trained": trained}
    return found


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="wan2.1-t2v-1.3b")
    parser.add_argument("--steps", type=int, default=3, help="timed a round and variant, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    torch.manual_seed(0)
    sets = [f"backbone={args.model}", f"device={device}", "batch=1", "accumulate=1", *(TOY if args.toy else [])]
    recipe, backbone = load_recipe(MODELS[args.model][0], sets), build(args.model, toy=args.toy, device=device)
    rounds = [one_round(recipe, backbone, args.steps) for _ in range(args.rounds)]
    d = recipe.data
    about = {"model": args.model, "size": [d.frames, d.height, d.width], "torch": torch.__version__, "toy": args.toy}
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    table = {}
    for name, figures in rounds[0].items():
        ratios = sorted(r[name]["seconds"] / r["base_forward"]["seconds"] for r in rounds)
        table[name] = {
            "seconds": round(statistics.median(r[name]["seconds"] for r in rounds), 4),
            "ratio_to_base_forward": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
            "peak_gib": round(max(r[name]["peak"] for r in rounds) / 2**30, 2),
            "trained": figures["trained"],
        }
        print(json.dumps({**about, "variant": name, **table[name]}))
    if args.out:
        args.out.write_text(json.dumps({**about, "variants": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
