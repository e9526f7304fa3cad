"""V-JEPA 2: places are right on every grid, whole frames are seen, tubelets line up with latents."""

import json

import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from backbones import vjepa2
from backbones.vjepa2 import SIZES, VJEPA2Encoder, latent_of, prefix, tubelets_of


@pytest.fixture(scope="module")
def encoder():
    return VJEPA2Encoder.tiny()


@pytest.fixture(scope="module")
def clip():
    return torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random checkpoint in the layout of the published ones, with its predictor."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vjepa2")
    VJEPA2Model(vjepa2.tiny_config()).save_pretrained(path)
    return path


def pixels(video):
    """The stock normalisation, frames before channels."""
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (vjepa2.MEAN, vjepa2.STD))
    return (((video + 1) / 2 - mean) / std).transpose(1, 2)


def with_masks(encoder, video, grid, crop):
    """Explicit token ids on a larger square grid, through the stock encoder's own path for masked tokens."""
    side = crop // encoder.patch
    t, y, x = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    ids = (t * side * side + y * side + x).flatten()[None]
    config = VJEPA2Config(**{**vjepa2.tiny_config().to_dict(), "crop_size": crop})
    stock = VJEPA2Model(config).encoder.eval()
    stock.load_state_dict(encoder.encoder.state_dict())
    h = stock.embeddings(pixels(video))
    for layer in stock.layer:
        h = layer(h, ids)[0]
    return stock.layernorm(h).unflatten(1, grid)


def test_at_its_own_size_the_encoder_is_the_stock_model_bit_for_bit(folder, clip):
    stock = VJEPA2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = stock(pixels(clip), skip_predictor=True, output_hidden_states=True)
        found = VJEPA2Encoder.load(folder).encode(clip, layers=[0, -1])
    assert found.grid == (2, 4, 4)
    assert torch.equal(found.last.flatten(1, 3), expected.last_hidden_state)
    assert list(found.layers) == [0, 1]
    for k, features in found.layers.items():
        assert torch.equal(features.flatten(1, 3), expected.hidden_states[k + 1])


@pytest.mark.parametrize(("size", "crop"), [((16, 24), 32), ((24, 56), 64), ((40, 40), 64)])
@torch.no_grad()
def test_on_another_grid_tokens_have_the_places_of_an_explicit_reference(encoder, size, crop):
    video = torch.rand(1, 3, 4, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = encoder.encode(video, size=size)
    assert found.grid == (2, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(found.last, with_masks(encoder, video, found.grid, crop), atol=1e-5, rtol=1e-5)
    stock = encoder.encoder(pixels(video)).last_hidden_state.unflatten(1, found.grid)
    assert (found.last - stock).abs().max() > 0.01, "the stock ids would have done: the test sees nothing"


@pytest.mark.parametrize("cell", [(0, 0, 0), (1, 2, 5), (0, 1, 6)])
@torch.no_grad()
def test_a_spot_is_felt_most_in_the_cell_where_it_is(encoder, cell):
    ground = torch.zeros(1, 3, 4, 24, 56)
    spotted = ground.clone()
    t, y, x = cell
    spotted[:, :, 2 * t : 2 * t + 2, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 0.8
    change = [encoder.encode(v, size=(24, 56)).last for v in (ground, spotted)]
    where = (change[1] - change[0]).norm(dim=-1)[0]
    assert [int(i) for i in torch.unravel_index(where.argmax(), where.shape)] == list(cell)


def test_the_stock_positions_come_back(encoder, clip):
    def patched():
        return [m for m in encoder.encoder.modules() if "get_position_ids" in vars(m)]

    encoder.encode(clip, size=(16, 24))
    assert patched() == []
    with vjepa2.positions(encoder.encoder, (1, 1, 1)):
        assert len(patched()) == 2
    with pytest.raises(RuntimeError, match="inside"), vjepa2.positions(encoder.encoder, (1, 1, 1)):
        raise RuntimeError("inside")
    assert patched() == []


@torch.no_grad()
def test_the_whole_frame_is_seen(encoder):
    """What stands at the very edge of a wide frame changes the features: nothing is cropped away."""
    wide = torch.zeros(1, 3, 2, 32, 128)
    marked = wide.clone()
    marked[..., -4:] = 1.0
    change = (encoder.encode(marked).last - encoder.encode(wide).last).norm(dim=-1)[0, 0]
    assert change.sum(0).argmax() == 3, "the last column of the square that it was resized to"


def test_frame_zero_in_front_lines_tubelets_up_with_latents(encoder, backbone):
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        found = encoder.encode(clip, pad="first")
        whole = encoder.encode(torch.cat([clip[:, :, :1], clip], 2))
    assert torch.equal(found.last, whole.last)
    assert found.times.tolist() == [0.0, 1.5, 3.5, 5.5, 7.5]
    for latent in range(3):
        assert {latent_of(k) for k in tubelets_of(latent)} == {latent}
        frames = backbone.spec.time.frames_of(latent)
        centre = found.times[list(tubelets_of(latent))].mean()
        assert centre == (frames[0] + frames[-1]) / 2
    assert found.per_latent().shape == (1, 3, 4, 4, 24)
    torch.testing.assert_close(found.per_latent()[:, 2], found.last[:, 3:5].mean(1))
    assert [prefix(p) for p in range(4)] == [0, 1, 3, 5]
    without = encoder.encode(clip[:, :, :8])
    with pytest.raises(ValueError, match="pad='first'"):
        without.per_latent()


def test_an_odd_count_of_frames_is_refused(encoder, clip):
    with pytest.raises(ValueError, match=r"multiple of 2 frames, got 3.*pad='first'"):
        encoder.encode(clip[:, :, :3])
    with pytest.raises(ValueError, match="multiple of 2 frames, got 5"):
        encoder.encode(clip, pad="first")


def test_bad_input_is_answered_with_what_to_do(encoder, clip):
    with pytest.raises(ValueError, match=r"\[-1, 1\], got \[.*127\.5"):
        encoder.encode(clip * 100)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        encoder.encode(clip * torch.nan)
    with pytest.raises(ValueError, match="Use 24 or 32"):
        encoder.encode(clip, size=(32, 30))
    with pytest.raises(ValueError, match=r"0\.\.1 .*got 2"):
        encoder.encode(clip, layers=[2])
    with pytest.raises(ValueError, match="pad None or 'first'"):
        encoder.encode(clip, pad="last")
    with pytest.raises(ValueError, match="latent >= 0"):
        tubelets_of(-1)
    with pytest.raises(ValueError, match="tubelet >= 0"):
        latent_of(-1)


def test_gradients_reach_the_video_and_no_weight(encoder, clip):
    video = clip.clone().requires_grad_()
    encoder.encode(video, size=(16, 24)).last.square().mean().backward()
    assert video.grad is not None
    assert float(video.grad.abs().amin((0, 1, 2)).max()) > 0
    assert all(p.grad is None and not p.requires_grad for p in encoder.encoder.parameters())


def test_the_predictor_is_not_kept(folder):
    names = {name for name, _ in VJEPA2Encoder.load(folder).encoder.named_parameters()}
    assert names == {n.removeprefix("encoder.") for n, _ in VJEPA2Model(vjepa2.tiny_config()).named_parameters()
                     if n.startswith("encoder.")}  # fmt: skip


def test_an_incomplete_or_foreign_checkpoint_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    part = {k: v for k, v in tensors.items() if "layer.1.mlp" not in k}
    save_file(part, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="lacks 4 encoder weights"):
        VJEPA2Encoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="it is a 'bert', not a 'vjepa2'"):
        VJEPA2Encoder.load(tmp_path)
    with pytest.raises(ValueError, match=r"facebook/vjepa2.*got '.*nowhere'"):
        VJEPA2Encoder.load(tmp_path / "nowhere")


def test_weights_that_would_have_to_be_unpickled_are_not_read(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    with pytest.raises(ValueError, match="with safetensors"):
        VJEPA2Encoder.load(tmp_path)


@pytest.mark.parametrize(("name", "billions"), [("vjepa2-vitl", 0.304), ("vjepa2-vith", 0.632), ("vjepa2-vitg", 1.01)])
def test_the_published_sizes_have_their_parameters(name, billions):
    with torch.device("meta"):
        model = VJEPA2Model(VJEPA2Config(**SIZES[name]))
    count = sum(p.numel() for p in VJEPA2Encoder(model.encoder).encoder.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.005 if billions > 1 else 0.0008)
