"""A recorded bundle proves itself elsewhere, and one that does something else is found out."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from backbones import bundle, load_for, verify
from backbones.verify import Probe, Verification


class Push(nn.Module):
    kind = "push"

    def __init__(self, value=0.0):
        super().__init__()
        self.number = nn.ParameterDict({"value": nn.Parameter(torch.tensor(value))})

    @classmethod
    def from_bundle(cls, made, backbone):
        adapter = cls()
        adapter.number.load_state_dict(made.tensors["number"])
        return adapter

    def prepare(self, prompts, text):
        pass

    def correction(self, x_s, v, sigma, text):
        return torch.zeros_like(v) + self.number["value"]

    def groups(self):
        return {"number": self.number}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    entry = type("Entry", (), {"name": "push", "load": lambda self: Push})()
    found = {bundle.ADAPTERS: [entry]}
    monkeypatch.setattr(bundle, "entry_points", lambda *, group, name=None: found.get(group, []))


def save(folder, backbone, adapter):
    groups = {name: module.state_dict() for name, module in adapter.groups().items()}
    return bundle.save(folder, kind="push", groups=groups, backbone=backbone, config={})


@pytest.fixture
def recorded(backbone, tmp_path):
    adapter = Push(0.2)
    folder = save(tmp_path / "b", backbone, adapter)
    verify.record(folder, backbone, adapter, probe=Probe(prompts=("a red ball", "the ball is thrown to the left")))
    return folder


def edit(folder, change):
    path = folder / "verify.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_was_recorded_holds_bit_for_bit_after_a_reload(recorded, backbone):
    found = verify.verify(recorded, backbone)
    assert (found.bit_for_bit, found.plain_error, found.corrected_error) == (True, 0.0, 0.0)
    assert found.holds
    assert found.difference == found.recorded > 0.001


def test_a_bundle_that_lost_what_was_trained_is_found_out(backbone, tmp_path):
    """The record is of the adapter in memory, so a bundle that saved something else does not pass."""
    folder = save(tmp_path, backbone, Push(0.0))
    verify.record(folder, backbone, Push(0.2))
    found = verify.verify(folder, backbone)
    assert not found.holds
    assert found.plain_error == 0.0 < found.corrected_error
    assert "NOT as recorded" in str(found)


def test_an_adapter_that_changes_nothing_is_held_to_the_bit(backbone, tmp_path):
    folder = save(tmp_path, backbone, Push(0.0))
    verify.record(folder, backbone)
    assert verify.verify(folder, backbone).holds
    edit(folder, lambda c: c["plain"].update(sha256="0"))
    assert not verify.verify(folder, backbone).holds


def test_another_rounding_passes_and_with_never_passes_for_without(recorded, backbone):
    def rounded(content):
        for key in ("plain", "corrected"):
            content[key]["sha256"] = "of another machine"
            content[key]["values"] = [v + 0.01 * content["difference"] for v in content[key]["values"]]

    edit(recorded, rounded)
    found = verify.verify(recorded, backbone)
    assert found.holds
    assert not found.bit_for_bit
    assert "up to rounding" in str(found)
    edit(recorded, lambda c: c.update(corrected=c["plain"]))
    assert not verify.verify(recorded, backbone).holds


def test_the_change_of_an_adapter_or_of_its_folder_is_what_it_does_to_the_video(recorded, backbone):
    assert verify.change(backbone, Push(0.0)) == 0.0
    small, large = (verify.change(backbone, Push(value)) for value in (0.1, 0.2))
    assert 0 < small < large
    assert verify.change(backbone, recorded) == large


class Deep(Push):
    """Acts between blocks, which has no mode `conditional`."""

    needs_blocks = True

    def begin(self, call, tokens, stack):
        return None

    def after_block(self, k, tokens, state, stack):
        return replace(tokens, h=tokens.h + self.number["value"]), state


def test_adapters_of_the_hidden_states_are_recorded_and_proved_too(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Push, "from_bundle", classmethod(lambda cls, made, _: Deep(float(made.tensors["number"]["value"])))
    )
    folder = save(tmp_path / "deep", backbone, Deep(0.2))
    verify.record(folder, backbone, Deep(0.2))
    assert verify.verify(folder, backbone).bit_for_bit
    assert verify.change(backbone, folder) > 0


def test_other_tensors_or_weights_than_recorded_are_refused(recorded, backbone, vae):
    from backbones import WanBackbone, tiny

    other = WanBackbone(tiny.pipeline(backbone.words, vae=vae, layers=2, seed=7), id="other")
    with pytest.raises(ValueError, match=r"recorded on tiny .*this is other"):
        verify.verify(recorded, other)
    edit(recorded, lambda c: c.update(bundle="0"))
    with pytest.raises(ValueError, match="recorded for other tensors"):
        verify.verify(recorded, backbone)
    edit(recorded, lambda c: c.update(format=2))
    with pytest.raises(ValueError, match="format 1, got 2"):
        verify.verify(recorded, backbone)
    (recorded / "verify.json").unlink()
    with pytest.raises(ValueError, match="--record"):
        verify.verify(recorded, backbone)


def test_saving_again_takes_the_old_record_away(recorded, backbone):
    save(recorded, backbone, Push(0.3))
    assert not (recorded / "verify.json").exists()


def test_the_probe_is_a_small_legal_clip(backbone):
    probe = Probe().on(backbone)
    assert (probe.frames, probe.height, probe.width) == (17, 32, 32)
    assert Probe(frames=9, height=16, width=24).on(backbone) == Probe(frames=9, height=16, width=24)


def test_a_sampling_that_is_no_number_does_not_hold():
    assert Verification(False, 0.0, 0.0, 0.1, 0.1).holds
    assert not Verification(False, float("nan"), 0.0, 0.1, 0.1).holds
    assert not Verification(False, 0.0, float("nan"), 0.1, 0.1).holds


@pytest.mark.parametrize("content", ["[]", '{"format": 1}'])
def test_a_record_that_lacks_something_is_refused(recorded, backbone, content):
    (recorded / "verify.json").write_text(content)
    with pytest.raises(ValueError, match=r"format|lacks"):
        verify.verify(recorded, backbone)


def test_an_adapter_that_changes_nothing_is_told_from_one_that_does(backbone):
    probe = Probe.of(SimpleNamespace(frames=5, height=32, width=32), steps=1)
    assert (probe.frames, probe.height, probe.width, probe.steps) == (5, 32, 32, 1)
    assert verify.unchanged(backbone, Push(0.0), probe)
    assert not verify.unchanged(backbone, Push(0.1), probe)


def test_a_recipe_s_backbone_has_its_precision_and_none_is_taken_for_another():
    world = load_for(SimpleNamespace(backbone="world", device="cpu", dtype="bfloat16"))
    assert world.transformer.dtype == torch.bfloat16
    assert world.pipe.vae.dtype == torch.float32
    with pytest.raises(ValueError, match="expected 'world', a folder"):
        load_for(SimpleNamespace(backbone="no/such/place", device="cpu", dtype="float32"))
