"""A tiny backbone with random weights, and an adapter that any backbone takes."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import physworld
from backbones import AutoencoderBlockPCA, WanBackbone, bundle, load, tiny
from backbones.loading import save
from bench import demo, results
from bench.compare import differences, figure
from bench.generate import Setting, System
from bench.results import Item, PromptSet, Rater, Result


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


@pytest.fixture(scope="session")
def known() -> Iterator[None]:
    """The one-weight adapter's kind, registered as an installed app's is."""
    entry, real = SimpleNamespace(load=lambda: Nudge), bundle.entry_points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "entry_points", lambda **at: [entry] if at.get("name") == "nudge" else real(**at))
        yield


@pytest.fixture(scope="session")
def nudge(backbone, known, tmp_path_factory) -> Path:
    """A bundle of the one-weight adapter."""
    return bundled(tmp_path_factory.mktemp("bundles") / "nudge", backbone, 0.2)


@pytest.fixture(scope="session")
def bundle_of(backbone, known):
    """Give what writes further bundles of the one-weight adapter."""
    return lambda folder, factor, **given: bundled(folder, backbone, factor, **given)


@pytest.fixture(scope="session")
def eight():
    """Give what makes a result with eight clips a mechanism."""
    return eight_clips


def bundled(folder: Path, backbone: Path, factor: float, *, steps: int = 7, seed: int = 0) -> Path:
    """Write a bundle of the one-weight adapter."""
    groups = {"part": {"factor": torch.tensor(factor)}}
    stages = [{"name": "pull", "steps": steps}]
    config = {"seed": seed}
    return bundle.save(folder, kind="nudge", groups=groups, backbone=load(backbone), config=config, stages=stages)


@pytest.fixture(scope="session")
def setting(backbone) -> Setting:
    """One clip, two steps."""
    return Setting(str(backbone), clips=1, splits=("test",), seeds=(0,), steps=2, guidance=1.5)


@pytest.fixture(scope="session")
def folder(setting, nudge, tmp_path_factory) -> Path:
    """The result of a demo at toy size: two mechanisms, one clip, two steps, no live training."""
    systems = (System("base"), System("nudge", (nudge,)))
    out = tmp_path_factory.mktemp("demo")
    chosen = {"mechanisms": ("rigid_body", "thermal"), "workers": 1, "train_live": False, "quiet": True}
    return demo.run(setting, systems, out, **chosen)


def eight_clips(
    shift: float = 0.2, *, name: str = "nudge", groups: tuple[str, ...] = ("rigid_body", "thermal")
) -> Result:
    """A result with eight clips a mechanism whose second system is ahead by about `shift`, without videos."""
    rng = np.random.default_rng(0)
    base = {g: rng.random(8) for g in groups}
    ahead = {g: values + shift + 0.02 * rng.standard_normal(8) for g, values in base.items()}
    tables = {n: {"score": {g: v[g][None] for g in groups}} for n, v in (("base", base), (name, ahead))}
    systems = tuple(
        results.System(
            name=n,
            metrics={"score": figure("score", list(by["score"].values()))},
            groups={g: {"score": figure("score", [by["score"][g]])} for g in groups},
            items=tuple(
                Item(id=f"{g}-{i}", group=g, values={"score": float(by["score"][g][0, i])})
                for g in groups
                for i in range(8)
            ),
        )
        for n, by in tables.items()
    )
    return Result(
        benchmark="world",
        title="eight",
        prompt_set=PromptSet(name="world test", count=8 * len(groups)),
        rater=Rater(name="physworld", kind="law"),
        systems=systems,
        comparisons=tuple(differences(tables)),
        settings={"group": "mechanism"},
    )
