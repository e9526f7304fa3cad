"""Runs that others have reported, against what the plan says of them: the table of docs/plan.md.

    uv run python benchmarks/plan_known_runs.py                     # one JSON line a run
    uv run python benchmarks/plan_known_runs.py --write docs/plan.md

Every run is one whose model, size of clips and GPU are said where it is reported; nothing is fitted to a single run.
What was reported without one of them stands in docs/plan.md with the reason.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backbones import configs
from backbones.sizes import weightless
from trainers import gpus
from trainers import plan as plans
from trainers.dryrun import DryRun

GIB = 2**30
WITHIN = 0.3
"""How far a plan may be from a run, relative to it."""
BEGIN, END = "<!-- known runs: benchmarks/plan_known_runs.py -->\n", "<!-- end of known runs -->"
FACTORY = "cogvideox-factory, README, AdamW (memory before validation)"
COGVIDEO = "CogVideo, README"
DIFFSYNTH = "DiffSynth-Studio issue 435 (the script's own size)"


@dataclass(frozen=True)
class Run:
    """A reported run: `planned` gives its figure as the plan has it, in `unit`."""

    name: str
    gpu: str
    source: str
    reported: float
    unit: str
    planned: Callable[[], float]


def runs() -> list[Run]:
    """All of them: hours, seconds, memory."""
    return [
        Run("PILA on Wan2.1-1.3B, 80,000 clips, cache and training", "8 x A100-80GB", "PILA, B.3", 40, "h", pila_hours),
        Run(
            "LoRA on Wan2.1-1.3B, rank 16 on attention and feed-forward, 81 x 480 x 832, checkpointed, a step",
            "A100-40GB", DIFFSYNTH, 8.3, "s", lambda: lora("wan").seconds("A100-40GB"),
        ),
        Run(
            "LoRA on CogVideoX1.5-5B, rank 128, 81 x 768 x 1360, checkpointed, a step",
            "A100-80GB (A800)", "CogVideo issue 715", 40, "s", lambda: lora("cogvideox-1.5").seconds("A100-80GB"),
        ),
        Run(
            "CogVideoX-2B, 49 x 480 x 720, 50 steps, a video", "A100-80GB", "diffusers documentation", 96.89, "s",
            lambda: sampled("cogvideox-2b", "A100-80GB", batch=2, calls=50),
        ),
        Run(
            "CogVideoX-2B, 49 x 480 x 720, 50 steps, a video", "H100", COGVIDEO, 45, "s",
            lambda: sampled("cogvideox-2b", "H100", batch=2, calls=50),
        ),
        Run(
            "CogVideoX-5B, 49 x 480 x 720, 50 steps, a video", "A100-80GB", COGVIDEO, 180, "s",
            lambda: sampled("cogvideox-5b", "A100-80GB", batch=2, calls=50),
        ),
        Run(
            "CogVideoX-5B, 49 x 480 x 720, 50 steps, a video", "H100", COGVIDEO, 90, "s",
            lambda: sampled("cogvideox-5b", "H100", batch=2, calls=50),
        ),
        Run(
            "CogVideoX1.5-5B, 81 x 768 x 1360, 50 steps, a video", "A100-80GB", COGVIDEO, 1000, "s",
            lambda: sampled("cogvideox1.5-5b", "A100-80GB", batch=2, calls=50),
        ),
        Run(
            "CogVideoX1.5-5B, 81 x 768 x 1360, 50 steps, a video", "H100", COGVIDEO, 550, "s",
            lambda: sampled("cogvideox1.5-5b", "H100", batch=2, calls=50),
        ),
        Run(
            "Wan2.1-1.3B, 81 x 480 x 832, 50 steps, a video", "RTX-4090", "Wan2.1, README (about 4 minutes)", 240, "s",
            lambda: sampled("wan2.1-t2v-1.3b", "RTX-4090", batch=1, calls=100),
        ),
        Run("LoRA on CogVideoX-2B, rank 16, batch 1", "A100-80GB", FACTORY, 43.764, "GiB",
            lambda: lora("cogvideox-2b", rank=16, checkpointing=False).memory()),
        Run("LoRA on CogVideoX-2B, rank 256, batch 1", "A100-80GB", FACTORY, 45.826, "GiB",
            lambda: lora("cogvideox-2b", rank=256, checkpointing=False).memory()),
        Run("LoRA on CogVideoX-2B, rank 64, batch 4, checkpointed", "A100-80GB", FACTORY, 22.254, "GiB",
            lambda: lora("cogvideox-2b", rank=64, batch=4).memory()),
        Run("LoRA on CogVideoX-5B, rank 16, batch 4, checkpointed", "A100-80GB", FACTORY, 46.492, "GiB",
            lambda: lora("cogvideox-5b", rank=16, batch=4).memory()),
        Run("LoRA on CogVideoX-5B, rank 256, batch 4, checkpointed", "A100-80GB", FACTORY, 47.268, "GiB",
            lambda: lora("cogvideox-5b", rank=256, batch=4).memory()),
        Run("full training of CogVideoX-2B, batch 1, checkpointed", "A100-80GB", FACTORY, 33.934, "GiB",
            lambda: lora("cogvideox-2b", kind="full").memory()),
        Run("full training of CogVideoX-2B, batch 4, checkpointed", "A100-80GB", FACTORY, 38.281, "GiB",
            lambda: lora("cogvideox-2b", kind="full", batch=4).memory()),
    ]  # fmt: skip


def pila_hours() -> float:
    """Hours of filling the cache and of training, on eight A100 that share the recipe's clips of a step."""
    from pila.config import load_recipe
    from pila.plan import describe

    job = describe(load_recipe("wan2.1-1.3b", ["accumulate=1"]), clips=80_000)
    made = plans.make(job, [gpus.named("A100-80GB")], engine="zero2-offload", processes=8)
    row = made.rows[0]
    assert row.cache_hours is not None
    return row.hours + row.cache_hours


@dataclass(frozen=True)
class Trained:
    """A job of plain training."""

    job: Any

    def seconds(self, gpu: str) -> float:
        row = plans.make(self.job, [gpus.named(gpu)]).rows[0]
        return sum(row.seconds.values())

    def memory(self) -> float:
        return plans.make(self.job, [gpus.named("A100-80GB")]).rows[0].footprint.total / GIB


def lora(model: str, *, rank: int = 128, batch: int = 1, checkpointing: bool = True, kind: str = "lora") -> Trained:
    """Plain LoRA, or training of all weights: MMPhysVideo's control without alignment is no more than that. Others keep
    no frozen copy of what they train.
    """
    from mmphysvideo.config import load_recipe
    from mmphysvideo.plan import describe

    attention = "to_q,to_k,to_v,to_out.0"
    recipe, own = {
        "wan": (
            "wan2.1-1.3b",
            ["student.weights.rank=16", f"student.weights.targets=[{attention},ffn.net.0.proj,ffn.net.2]"],
        ),
        "cogvideox-1.5": (
            "cogvideox-5b",
            ["backbone=zai-org/CogVideoX1.5-5B", "data.frames=81", "data.height=768", "data.width=1360", "data.fps=16"],
        ),
        "cogvideox-2b": ("cogvideox-2b", [f"student.weights.rank={rank}"]),
        "cogvideox-5b": ("cogvideox-5b", [f"student.weights.rank={rank}"]),
    }[model]
    sets = ["student.align.source=none", f"student.weights.kind={kind}", f"batch={batch}", "accumulate=1", *own]
    job = describe(load_recipe(recipe, [*sets, f"checkpointing={str(checkpointing).lower()}"]), "student", clips=1)
    return Trained(replace(job, frozen={}) if kind == "full" else job)


def sampled(name: str, gpu: str, *, batch: int, calls: int) -> float:
    """Seconds of a video of the usual size: so many calls of the transformer (a batch of both branches of guidance, or
    one branch), and decoding.
    """
    about = configs.read(name)
    clip = (about["frames"], about["height"], about["width"])
    backbone = weightless(name, dtype=torch.bfloat16)
    with DryRun() as dry, torch.no_grad():
        dry.weights(backbone.transformer, backbone.pipe.vae)
        shape = backbone.spec.latent.shape(*clip)
        x, text = dry.tensor(batch, *shape), backbone.embed(["a ball"] * batch)
        forward = dry.step(lambda: backbone.predict(x, torch.full((batch,), 0.5), text).sum())
        z = dry.tensor(1, *shape)
        decoding = dry.step(lambda: backbone.decode(z).sum())
    chip = gpus.named(gpu)
    seconds = [plans.seconds_of("", work, chip, shape="", batch=1)[0] for work in (forward, decoding)]
    return calls * seconds[0] + seconds[1]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, with the error of hours and seconds and that of memory below them."""
    lines = [
        "| run | GPU | reported | planned | planned / reported | within 30 % | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["planned"] / row["reported"]
        lines.append(
            f"| {row['run']} | {row['gpu']} | {row['reported']:g} {row['unit']} | {row['planned']:.3g} {row['unit']} |"
            f" {ratio:.2f} | {'yes' if abs(ratio - 1) <= WITHIN else 'no'} | {row['source']} |"
        )
    said = []
    for what, units in (("Hours and seconds", ("h", "s")), ("memory", ("GiB",))):
        ratios = [row["planned"] / row["reported"] for row in rows if row["unit"] in units]
        rms = math.exp(math.sqrt(sum(math.log(r) ** 2 for r in ratios) / len(ratios))) - 1
        most = max(abs(r - 1) for r in ratios)
        said.append(
            f"{what}: {len(ratios)} runs, off by {rms:.0%} (root mean square of logarithms), {most:.0%} at most"
        )
    return "\n".join([*lines, "", f"{'; '.join(said)}.", ""])


def main() -> None:
    """Print the runs, or write the table into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page whose table is written anew")
    page = parser.parse_args().write
    rows = []
    for run in runs():
        about = {"run": run.name, "gpu": run.gpu, "reported": run.reported, "unit": run.unit, "source": run.source}
        rows.append(about | {"planned": run.planned()})
        print(json.dumps(rows[-1]), flush=True)
    if page is not None:
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}{table(rows)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
