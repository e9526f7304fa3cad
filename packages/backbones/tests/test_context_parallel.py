"""Context parallel on two gloo ranks: this file is the test, and, run as a script, one of the two ranks.

`enable_parallelism` asks for an accelerator, so the ranks do by hand, on a mesh of CPU processes, what it does.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

CASES = (("wan21_t2v", False), ("wan22_ti2v", True))


class Velocity(nn.Module):
    """D = weight (x_s + its neighbour in x): not token by token."""

    kind = "velocity"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def prepare(self, prompts, text):
        pass

    def correction(self, x_s, v, sigma, text):
        return self.weight * (x_s + x_s.roll(1, -1) + sigma.view(-1, 1, 1, 1, 1))

    def groups(self):
        return {"velocity": self}


class Deep(nn.Module):
    """Adds weight * tanh(h) inside and after every block."""

    kind, needs_blocks, token_wise, seams = "deep", True, True, ("after_self_attention",)

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = nn.Parameter(torch.zeros(())), []

    def prepare(self, prompts, text):
        pass

    def begin(self, call, tokens, stack):
        return None

    def after_self_attention(self, k, a, tokens, state):
        return a + self.weight * a.tanh()

    def after_block(self, k, tokens, state, stack):
        self.sizes.append(tokens.h.shape[1])
        return replace(tokens, h=tokens.h + self.weight * tokens.h.tanh()), state

    def groups(self):
        return {"deep": self}


def test_two_ranks_sample_what_one_samples_with_an_adapter(tmp_path):
    script, store = str(Path(__file__).resolve()), str(tmp_path / "store")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), store],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for rank in (0, 1)
    ]
    try:
        said = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [r.returncode for r in ranks] == [0, 0], "\n".join(said)
    expected = [f"{name} {image} {kind} holds" for name, image in CASES for kind in ("Velocity", "Deep")]
    for text in said:
        assert [line for line in text.splitlines() if "holds" in line] == [*expected, "refusal holds"]


def work(rank, store):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    from backbones import attach

    for name, image in CASES:
        for kind in (Velocity, Deep):
            pipe, adapter = build(name, image), kind()
            split(pipe.transformer, rank, mesh)
            alone = sample(pipe, image)

            pipe = build(name, image)
            plain = sample(pipe, image)
            with attach(pipe, adapter):
                nn.init.constant_(adapter.weight, 0.3)
                whole = sample(pipe, image)
            torch.testing.assert_close(alone, plain, atol=1e-5, rtol=1e-4)
            assert (whole - plain).abs().mean() > 1e-3

            with attach(pipe, adapter):
                split(pipe.transformer, rank, mesh)
                nn.init.zeros_(adapter.weight)
                assert torch.equal(sample(pipe, image), alone)
                nn.init.constant_(adapter.weight, 0.3)
                torch.testing.assert_close(sample(pipe, image), whole, atol=2e-5, rtol=1e-3)
            if kind is Deep:
                assert min(adapter.sizes) < max(adapter.sizes), "no rank saw a shard"
            assert torch.equal(sample(pipe, image), alone)
            print(name, image, kind.__name__, "holds", flush=True)

    pipe, adapter = build("wan21_t2v", False), Deep()
    adapter.token_wise = False
    with attach(pipe, adapter):
        split(pipe.transformer, rank, mesh)
        with pytest.raises(RuntimeError, match="does not say that it treats tokens one by one"):
            sample(pipe, False)
    print("refusal holds", flush=True)
    dist.destroy_process_group()


def build(name, image):
    from diffusers import WanImageToVideoPipeline

    from backbones import tiny_families

    pipe = tiny_families.family(name)
    if image:
        pipe = WanImageToVideoPipeline(**pipe.components, expand_timesteps=True)
        pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, image):
    from PIL import Image

    given = {"image": Image.new("RGB", (32, 32), (200, 60, 30))} if image else {}
    with torch.no_grad():
        return pipe(
            prompt="a red ball",
            height=32,
            width=32,
            num_frames=13,  # four latents, so that two ranks share the tokens
            num_inference_steps=2,
            guidance_scale=3.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **given,
        ).frames


def split(model, rank, mesh):
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig

    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    config.setup(rank, 2, torch.device("cpu"), mesh=mesh)
    for module in model.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = config
    apply_context_parallel(model, config.context_parallel_config, model._cp_plan)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
