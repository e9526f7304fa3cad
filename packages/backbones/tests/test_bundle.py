"""Bundles: what was saved is what comes back, and only where it belongs."""

import inspect
import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from torch import nn

from backbones import WanBackbone, attach, bundle, load, sample, tiny
from backbones.loading import save


class Offset(nn.Module):
    """The smallest adapter: one learned number, in a group of its own, and a group without tensors."""

    kind = "offset"

    def __init__(self, start):
        super().__init__()
        self.offset = nn.ParameterDict({"value": nn.Parameter(torch.tensor(start))})
        self.router = nn.Identity()

    @classmethod
    def from_bundle(cls, made, backbone):
        adapter = cls(made.config["start"])
        for name, module in adapter.groups().items():
            module.load_state_dict(made.tensors[name])
        return adapter

    def prepare(self, prompts, text):
        pass

    def correction(self, x_s, v, sigma, text):
        return torch.zeros_like(v) + self.offset["value"]

    def groups(self):
        return {"offset": self.offset, "router": self.router}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Register the adapter class and a shipped bundle as installed packages do."""

    def entry_points(*, group, name=None):
        entries = [
            EntryPoint("offset", f"{__name__}:Offset", bundle.ADAPTERS),
            EntryPoint("some", f"{__name__}:SHIPPED", bundle.SHIPPED),
        ]
        monkeypatch.setattr(EntryPoint, "load", lambda self: {"offset": Offset, "some": "/somewhere"}[self.name])
        return EntryPoints(entries).select(**{"group": group, **({"name": name} if name else {})})

    monkeypatch.setattr(bundle, "entry_points", entry_points)


@pytest.fixture
def saved(backbone, tmp_path):
    adapter = Offset(0.0)
    adapter.offset["value"].data.fill_(0.75)
    state = {name: module.state_dict() for name, module in adapter.groups().items()}
    return bundle.save(
        tmp_path / "b",
        kind="offset",
        groups=state,
        backbone=backbone,
        config={"start": 0.0},
        stages=[{"name": "A", "steps": 3}],
    )


def test_a_bundle_comes_back_as_it_was_saved(saved, backbone):
    made = bundle.load(saved)
    assert made.tensors == {"offset": {"value": torch.tensor(0.75)}, "router": {}}
    assert (made.kind, made.config, made.meta["stages"]) == ("offset", {"start": 0.0}, [{"name": "A", "steps": 3}])
    assert made.meta["backbone"]["spec"] == backbone.spec.to_dict()
    assert sorted(p.name for p in saved.iterdir()) == ["bundle.json", "bundle.safetensors"]


def test_a_folder_is_attached_in_one_call(saved, backbone):
    x_s, sigma, text = torch.randn(1, 16, 2, 4, 4), torch.full((1, 8), 500.0), backbone.embed(["a ball"])
    with torch.no_grad():
        plain = backbone.transformer(x_s, sigma, text.features).sample
        with attach(backbone.pipe, saved) as attached:
            torch.testing.assert_close(backbone.transformer(x_s, sigma, text.features).sample, plain + 0.75)
            assert isinstance(attached.adapter, Offset)


def test_another_architecture_is_refused_and_what_differs_is_named(saved, vae, videos):
    deeper = WanBackbone(tiny.pipeline(["a"], vae=vae, layers=3), id="deeper")
    with pytest.raises(ValueError, match="made for tiny, not for deeper: the transformer's config differs"):
        attach(deeper, saved)
    narrow = WanBackbone(tiny.pipeline(["a"], vae=type(vae).fit(videos, z_dim=8), layers=2), id="narrow")
    with pytest.raises(ValueError, match="channels 16 against 8"):
        bundle.check(bundle.load(saved), narrow)


def test_a_velocity_bundle_fits_every_model_of_its_latent_space(backbone, vae, videos, tmp_path):
    folder = bundle.save(tmp_path, kind="offset", groups={}, backbone=backbone, config={}, requires="latent")
    made = bundle.load(folder)
    deeper = WanBackbone(tiny.pipeline(["a"], vae=vae, layers=3), id="deeper")
    with pytest.warns(UserWarning, match="trained on other weights"):
        bundle.check(made, deeper)
    narrow = WanBackbone(tiny.pipeline(["a"], vae=type(vae).fit(videos, z_dim=8), layers=2), id="narrow")
    with pytest.raises(ValueError, match="channels 16 against 8"):
        bundle.check(made, narrow)


def test_other_weights_of_the_same_architecture_draw_a_warning(saved, vae, backbone):
    other = WanBackbone(tiny.pipeline(backbone.words, vae=vae, layers=2, seed=9), id="other")
    with pytest.warns(UserWarning, match="trained on other weights"):
        bundle.check(bundle.load(saved), other)


@pytest.mark.parametrize("part", ["encoder", "vocabulary"])
def test_another_text_encoder_or_vocabulary_behind_the_same_model_draws_a_warning(tmp_path, vae, part):
    made = WanBackbone(tiny.pipeline(["a", "red", "ball"], vae=vae, layers=1, seed=1))
    other = WanBackbone(tiny.pipeline(["a", "red", "ball"][:: -1 if part == "vocabulary" else 1], vae=vae, layers=1,
                                      seed=1))  # fmt: skip
    if part == "encoder":
        next(other.pipe.text_encoder.parameters()).data.neg_()
    assert other.digest == made.digest
    folder = bundle.save(tmp_path, kind="offset", groups={}, backbone=made, config={})
    bundle.check(bundle.load(folder), made)
    with pytest.warns(UserWarning, match="another text encoder"):
        bundle.check(bundle.load(folder), other)
    old = bundle.load(folder)
    del old.meta["backbone"]["text_digest"]  # bundles of before
    bundle.check(old, other)


def test_an_unknown_kind_is_answered_with_the_install_line(backbone, tmp_path):
    folder = bundle.save(tmp_path, kind="pilates", groups={}, backbone=backbone, config={})
    with pytest.raises(ValueError, match="uv pip install pilates"):
        attach(backbone, folder)


def test_damaged_and_foreign_folders_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"without bundle\.json and bundle\.safetensors"):
        bundle.load(tmp_path)
    tensors = saved / "bundle.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="copy the bundle again"):
        bundle.load(saved)
    tensors.write_bytes(content)
    meta = json.loads((saved / "bundle.json").read_text())
    (saved / "bundle.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(ValueError, match="format 1, got 99"):
        bundle.load(saved)


@pytest.mark.parametrize("name", ["stranger.value", "nodot"])
def test_tensors_of_no_group_are_refused(saved, name):
    from hashlib import sha256

    from safetensors.torch import save as write

    content = write({"offset.value": torch.zeros(()), name: torch.ones(1)})
    (saved / "bundle.safetensors").write_bytes(content)
    meta = json.loads((saved / "bundle.json").read_text()) | {"sha256": sha256(content).hexdigest()}
    (saved / "bundle.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=f"{name}.*groups offset, router"):
        bundle.load(saved)


def test_a_bundle_json_that_lacks_a_key_is_refused_by_name(saved):
    meta = json.loads((saved / "bundle.json").read_text())
    for key in ("kind", "groups", "sha256", "backbone", "requires", "config"):
        (saved / "bundle.json").write_text(json.dumps({k: v for k, v in meta.items() if k != key}))
        with pytest.raises(ValueError, match=f"without {key}"):
            bundle.load(saved)


def test_tied_tensors_are_saved_one_by_one(backbone, tmp_path):
    tied = torch.randn(3)
    folder = bundle.save(
        tmp_path / "t", kind="offset", groups={"offset": {"a": tied, "b": tied, "c": tied[:2]}}, backbone=backbone,
        config={},
    )  # fmt: skip
    loaded = bundle.load(folder).tensors["offset"]
    assert torch.equal(loaded["a"], tied)
    assert torch.equal(loaded["b"], tied)
    assert torch.equal(loaded["c"], tied[:2])


def test_a_group_name_with_a_dot_is_refused(backbone, tmp_path):
    with pytest.raises(ValueError, match=r"without dots, got 'a\.b'"):
        bundle.save(tmp_path, kind="offset", groups={"a.b": {}}, backbone=backbone, config={})


def test_shipped_bundles_are_found_by_name():
    assert str(bundle.shipped("some")) == "/somewhere"
    with pytest.raises(ValueError, match="no installed package ships a bundle 'other'; shipped are: some"):
        bundle.shipped("other")


def test_backbone_and_bundle_from_disk_give_the_same_video(saved, backbone, tmp_path):
    again = load(save(backbone, tmp_path / "backbone", id="tiny"))
    size = {"frames": 5, "height": 16, "width": 16, "steps": 2}
    videos = []
    for each in (backbone, again):
        with attach(each, saved):
            videos.append(sample(each, ["a red ball"], seed=0, **size))
    assert torch.equal(*videos)
    assert not torch.equal(videos[0], sample(backbone, ["a red ball"], seed=0, **size))


@pytest.mark.parametrize("bad", [{"requires": "weights"}, {"kind": ""}, {"backbone": object()}])
def test_a_bundle_that_would_not_come_back_is_not_saved(backbone, tmp_path, bad):
    given = {"kind": "calm", "groups": {}, "backbone": backbone, "config": {}} | bad
    save = inspect.unwrap(bundle.save)  # the tests' type checks answer before it
    with pytest.raises(ValueError, match="expected a "):
        save(tmp_path / "b", **given)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("change", [{"requires": "weights"}, {"backbone": {}}, {"backbone": "x"}])
def test_a_bundle_that_does_not_say_what_it_was_made_for_is_refused(saved, change):
    path = saved / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="expected requires among"):
        bundle.load(saved)


def test_an_app_reads_its_own_kinds_and_says_where_bundles_are(saved, tmp_path):
    how = {"app": "pila", "kinds": ("push", "offset"), "shipped": saved}
    assert bundle.read(None, **how).meta == bundle.read(saved, **how).meta == bundle.load(saved).meta
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="`pila train --out RUN` writes one into RUN/bundle"):
        bundle.read(run, **how)
    saved.rename(run / "bundle")
    with pytest.raises(ValueError, match=f"did you mean --bundle {run / 'bundle'}"):
        bundle.read(run, **how)
    with pytest.raises(ValueError, match=r"no bundle is shipped in .* yet; train one with `pila train`"):
        bundle.read(None, **how)
    with pytest.raises(ValueError, match="expected a bundle of kind 'prophy' or 'wisa', got '"):
        bundle.read(run / "bundle", **(how | {"kinds": ("prophy", "wisa")}))


def test_weights_that_do_not_fit_are_the_recipes_fault_and_are_said_so(saved, backbone):
    made = bundle.load(saved)

    def narrow(made, backbone, width):
        layer = nn.Linear(width, 1)
        layer.load_state_dict({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)})
        return layer

    assert bundle.build(made, backbone, make=narrow, width=3).in_features == 3
    with pytest.raises(ValueError, match="the weights of the bundle do not fit this recipe"):
        bundle.build(made, backbone, make=narrow, width=4)
