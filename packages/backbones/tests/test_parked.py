"""What waits in a training: everything of a pipeline but its transformers, and it comes back to where it was."""

import pytest
import torch

import backbones
from backbones import tiny_families
from backbones.parked import idle, parked


def test_all_but_the_transformers_waits():
    for name, waits in (
        ("wan22_a14b", {"text_encoder", "vae"}),
        ("wan21_i2v", {"text_encoder", "vae", "image_encoder"}),
        ("cogvideox_5b", {"text_encoder", "vae"}),
    ):
        backbone = backbones.wrap(tiny_families.family(name, layers=1))
        assert set(idle(backbone)) == waits


def test_a_parked_module_moves_to_the_host_and_back(monkeypatch):
    """No GPU here: one module says that it is on one, and writes down where it is sent."""
    backbone = backbones.wrap(tiny_families.family("wan21_t2v", layers=1))
    sent = []
    vae, place = backbone.pipe.vae, torch.device("cuda", 0)

    class Far:
        device = place

    monkeypatch.setattr(vae, "parameters", lambda: iter([Far()]))
    monkeypatch.setattr(vae, "to", lambda where: sent.append(torch.device(where)))
    with parked(backbone):
        assert sent == [torch.device("cpu")]
    assert sent == [torch.device("cpu"), place]
    try:
        with parked(backbone):
            raise ValueError
    except ValueError:
        assert sent[-1] == place


def test_what_finds_no_room_afterwards_stays_on_the_host_and_that_is_said(monkeypatch):
    backbone = backbones.wrap(tiny_families.family("wan21_t2v", layers=1))
    sent = []

    class Far:
        device = torch.device("cuda", 0)

    def to(where):
        sent.append(torch.device(where))
        if sent[-1].type == "cuda":
            raise torch.OutOfMemoryError

    monkeypatch.setattr(backbone.pipe.vae, "parameters", lambda: iter([Far()]))
    monkeypatch.setattr(backbone.pipe.vae, "to", to)
    with pytest.warns(UserWarning, match="stays in the host's memory: cuda:0 has no room"), parked(backbone):
        pass
    assert [where.type for where in sent] == ["cpu", "cuda", "cpu"]
