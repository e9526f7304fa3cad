"""A tiny backbone with random weights, and an adapter that any backbone takes."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import physworld
from backbones import AutoencoderBlockPCA, WanBackbone, bundle, load, tiny
from backbones.loading import save


class Nudge(nn.Module):
    """Pull the velocity towards the latent by a trained factor: an adapter with one weight."""

    kind = "nudge"

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.ParameterDict({"factor": torch.zeros(())})

    @classmethod
    def from_bundle(cls, stored, backbone) -> "Nudge":
        adapter = cls()
        adapter.part.load_state_dict(stored.tensors["part"])
        return adapter

    def prepare(self, prompts, text) -> None:
        self.prompts = prompts

    def correction(self, x_s, v, sigma, text):
        return self.part["factor"] * x_s

    def groups(self) -> dict[str, nn.Module]:
        return {"part": self.part}


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A folder with a random two-layer Wan around a fitted block PCA."""
    videos = [physworld.simulate(m, 0).video for m in ("rigid_body", "thermal")]
    vae = AutoencoderBlockPCA.fit(np.stack(videos), z_dim=8)
    pipe = tiny.pipeline(physworld.captions.VOCABULARY, vae=vae, layers=1, heads=2, head_dim=32, ffn_dim=64)
    return save(WanBackbone(pipe, id="random", fps=16.0), tmp_path_factory.mktemp("backbone") / "random", id="random")


@pytest.fixture
def nudge(backbone, tmp_path, monkeypatch) -> Path:
    """A bundle of the one-weight adapter, which loads because its kind is registered."""
    entry = EntryPoint("nudge", f"{__name__}:Nudge", "physbackbones.adapters")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Nudge)
    monkeypatch.setattr(bundle, "entry_points", lambda **where: [entry] if where.get("name") == "nudge" else [])
    groups = {"part": {"factor": torch.tensor(0.2)}}
    stages = [{"name": "pull", "steps": 7}]
    return bundle.save(
        tmp_path / "nudge", kind="nudge", groups=groups, backbone=load(backbone), config={}, stages=stages
    )


@pytest.fixture
def result(backbone, nudge):
    """A demo at toy size: two mechanisms, one clip, two steps, no live training."""
    from bench import demo
    from bench.generate import Setting, System

    setting = Setting(str(backbone), clips=1, split="test", seed=0, steps=2, guidance=1.5)
    systems = (System("base"), System("nudge", nudge))
    return demo.run(setting, systems, mechanisms=("rigid_body", "thermal"), workers=1, train_live=False)
