"""A bundle of PILA belongs to a latent space: it goes from Wan2.1 to both experts of A14B, and not to 48 channels."""

import pytest
import torch

import backbones
from backbones import attach, bundle, configs, sample
from backbones.skeleton import skeleton
from backbones.tiny_families import family
from pila.adapter import PilaAdapter
from pila.config import load_recipe
from pila.train import fresh, save_bundle

PROMPT = "a red ball is thrown to the left"
MILLIONS = {  # parameters of PILA in 10^6, of one base transformer in 10^9
    "wan2.1-t2v-1.3b": (5.24, 1.419),
    "wan2.2-ti2v-5b": (5.58, 5.000),
    "wan2.2-t2v-a14b": (5.24, 14.288),
    "cogvideox-2b": (5.24, 1.694),
    "cogvideox-5b": (5.24, 5.570),
}
LIGHT = "ignore:this pila bundle was trained on other weights"


def wrapped(name):
    return backbones.wrap(family(name, layers=1), id=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle made on a Wan2.1 with weights as after training: the last layers are no longer zero."""
    recipe = load_recipe(
        None,
        ["network.width=8", "network.blocks=1", "network.groups=2", "network.frequencies=4", "network.head_width=4",
         "network.condition_width=8", "network.operator_width=4"],
    )  # fmt: skip
    backbone = wrapped("wan21_t2v")
    adapter = fresh(recipe, backbone)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapter.decoder.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return save_bundle(adapter, backbone, tmp_path_factory.mktemp("bundle"))


@pytest.mark.filterwarnings(LIGHT)
def test_a_bundle_of_wan21_corrects_both_experts_of_a14b(trained):
    a14b = wrapped("wan22_a14b")
    x_s = torch.randn(1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    text = a14b.embed([PROMPT])
    answers = {}
    with torch.no_grad():
        for attached in (False, True):
            host = attach(a14b, trained) if attached else None
            if host is not None:
                host.prepare([PROMPT], text)
            for expert, t in zip(a14b.transformers, (950.0, 300.0), strict=True):
                out = expert(x_s, torch.tensor([t]), text.features, return_dict=False)[0]
                answers[attached, t] = out
            if host is not None:
                host.detach()
    for t in (950.0, 300.0):
        assert (answers[True, t] - answers[False, t]).abs().max() > 1e-4, t


@pytest.mark.filterwarnings(LIGHT)
def test_the_stock_pipeline_of_a14b_samples_with_it(trained):
    a14b = wrapped("wan22_a14b")
    size = {"frames": 17, "height": 32, "width": 32, "steps": 3, "seed": 0}
    plain = sample(a14b, [PROMPT], **size)
    seen = []
    with attach(a14b, trained) as attached:
        attached.adapter.watch = lambda sigma, anatomy: seen.append(sigma)
        corrected = sample(a14b, [PROMPT], **size)
    assert max(seen) >= 0.875 > min(seen), "both experts were asked"
    assert not torch.equal(corrected, plain)
    assert torch.equal(sample(a14b, [PROMPT], **size), plain)


def test_a_bundle_of_16_channels_is_refused_where_there_are_48(trained):
    with pytest.raises(ValueError, match=r"made for wan21_t2v, not for wan22_ti2v: channels 16 against 48"):
        attach(wrapped("wan22_ti2v"), trained)


def test_a_bundle_of_wan_is_refused_on_cogvideox_with_as_many_channels(trained):
    with pytest.raises(ValueError, match="not for cogvideox_2b: mean"):
        attach(wrapped("cogvideox_2b"), trained)


def test_what_it_needs_is_the_latent_space_alone(trained):
    assert bundle.load(trained).meta["requires"] == "latent"


@pytest.mark.parametrize("name", MILLIONS)
def test_pila_builds_on_the_real_sizes(name):
    pipe, about = skeleton(name)
    backbone = backbones.wrap(pipe, id=name)
    with torch.device("meta"):
        adapter = PilaAdapter(backbone.spec, load_recipe("wan2.1-1.3b"))
    count = sum(p.numel() for p in adapter.parameters())
    base = sum(p.numel() for p in backbone.transformer.parameters())
    assert {p.device.type for p in adapter.parameters()} == {"meta"}
    assert (round(count / 1e6, 2), round(base / 1e9, 3)) == MILLIONS[name]
    assert about["hub"] == configs.read(name)["hub"]
    c, t, h, w = backbone.spec.latent.shape(about["frames"], about["height"], about["width"])
    with torch.device("meta"):
        x0, sigma = torch.empty(1, c, t, h, w), torch.empty(1)
        features = adapter.encoder(x0, sigma)
    assert features.shape[2:] == (t, h, w)
