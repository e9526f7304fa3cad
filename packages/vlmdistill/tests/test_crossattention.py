import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlmdistill import word_maps


class Attention(nn.Module):
    """Queries of one sequence over the keys of another, as a generator's module has them."""

    def __init__(self, heads=2, dim=8, seed=0):
        super().__init__()
        self.heads = heads
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def split(self, x):
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, text, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(text)), self.split(self.v(text))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def weights(self, x, text, mask=None):
        scores = self.split(self.q(x)) @ self.split(self.k(text)).mT / 2
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1).mean(1)


def streams(n=12, m=5):
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, n, 8, generator=g), torch.randn(2, m, 8, generator=g)


def test_the_maps_are_the_columns_of_the_softmax_and_the_output_is_untouched(monkeypatch):
    attention, (x, text) = Attention(), streams()
    with word_maps([attention], [1, 4]) as seen:
        out = attention(x, text)
    torch.testing.assert_close(seen.mean(), attention.weights(x, text)[..., [1, 4]])
    assert torch.equal(out, attention(x, text))
    monkeypatch.setattr("vlmdistill.crossattention._BLOCK", 1)
    with word_maps([attention], [1, 4]) as blocks:
        attention(x, text)
    torch.testing.assert_close(blocks.mean(), seen.mean())


def test_masked_words_get_nothing():
    attention, (x, text) = Attention(), streams()
    mask = torch.tensor([True, True, False, True, False])[None, None, None]
    with word_maps([attention], range(5)) as seen:
        attention(x, text, mask)
    torch.testing.assert_close(seen.mean(), attention.weights(x, text, mask))
    assert (seen.mean()[..., [2, 4]] == 0).all()


def test_modules_and_calls_are_averaged():
    first, second, (x, text) = Attention(seed=1), Attention(seed=2), streams()
    with word_maps([first, second], [0]) as seen:
        for module in (first, second, second):
            module(x, text)
    expected = (first.weights(x, text) + 2 * second.weights(x, text))[..., [0]] / 3
    torch.testing.assert_close(seen.mean(), expected)


def test_in_a_joint_attention_the_video_s_rows_are_read():
    attention, (x, text) = Attention(), streams()
    joint = torch.cat([text, x], 1)
    with word_maps([attention], [0, 3], first=5) as seen:
        attention(joint, joint)
    torch.testing.assert_close(seen.mean(), attention.weights(joint, joint)[:, 5:][..., [0, 3]])


def test_calls_of_others_are_not_read():
    mine, other, (x, text) = Attention(seed=1), Attention(seed=2), streams()
    with word_maps([mine], [0]) as seen:
        other(x, text)
        mine(x, text)
        other(x, text)
    torch.testing.assert_close(seen.mean(), mine.weights(x, text)[..., [0]])


def test_keys_of_another_number_are_skipped():
    attention, (x, text) = Attention(), streams()
    with word_maps([attention], [0], keys=5) as seen:
        attention(x, text)
        attention(x, text[:, :3])
    torch.testing.assert_close(seen.mean(), attention.weights(x, text)[..., [0]])


def test_nothing_is_left_behind_after_an_error():
    attention, (x, text) = Attention(), streams()
    with pytest.raises(RuntimeError), word_maps([attention], [0]):
        attention(x, text[..., :4])
    assert not attention._forward_pre_hooks
    assert not attention._forward_hooks
    with word_maps([attention], [0]) as seen:
        pass
    attention(x, text)
    with pytest.raises(ValueError, match="got no such call"):
        seen.mean()


def test_gradients_do_not_pass_and_do_not_break():
    attention, (x, text) = Attention(), streams()
    with word_maps([attention], [0]) as seen:
        attention(x, text).sum().backward()
    assert not seen.mean().requires_grad
    assert attention.q.weight.grad is not None


@pytest.mark.parametrize("bad", [{"modules": []}, {"words": []}, {"words": [-1]}])
def test_bad_choices_are_refused(bad):
    kwargs = {"modules": [Attention()], "words": [0], **bad}
    with pytest.raises(ValueError, match="at least one module"), word_maps(**kwargs):
        pass


def test_words_beyond_the_keys_and_calls_of_two_shapes_are_refused():
    attention, (x, text) = Attention(), streams()
    with word_maps([attention], [5]), pytest.raises(ValueError, match="below the 5 keys"):
        attention(x, text)
    with word_maps([attention], [0]):
        attention(x, text)
        with pytest.raises(ValueError, match="one shape"):
            attention(x[:, :3], text)


def test_causal_attention_is_refused():
    class Causal(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    module = Causal()
    with word_maps([module], [0]), pytest.raises(ValueError, match="causal"):
        module(torch.randn(1, 1, 4, 8))


@pytest.mark.parametrize("kind", ["wan", "cogvideox"])
def test_real_generators_attention_is_read(kind):
    """Wan: cross-attention over the text. CogVideoX: joint, text first. A map lies on the grid of tokens."""
    diffusers = pytest.importorskip("diffusers", reason="the generators are those of diffusers")
    if kind == "wan":
        model = diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=16, text_dim=16, freq_dim=16
        )
        modules, first = [block.attn2 for block in model.blocks], 0
        shape, time = (1, 16, 3, 8, 12), torch.tensor([100.0])
        n = 3 * 4 * 6
    else:
        model = diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            text_embed_dim=16,
            time_embed_dim=8,
            max_text_seq_length=7,
            sample_width=12,
            sample_height=8,
            sample_frames=9,
        )
        modules, first = [block.attn1 for block in model.transformer_blocks], 7
        shape, time = (1, 3, 4, 8, 12), torch.tensor([100])
        n = 3 * 4 * 6
    model.eval().requires_grad_(False)
    text = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    call = {"hidden_states": x, "timestep": time, "encoder_hidden_states": text, "return_dict": False}
    plain = model(**call)[0]
    with word_maps(modules, range(7), first=first) as seen:
        out = model(**call)[0]
    assert torch.equal(out, plain)
    assert seen.mean().shape == (1, n, 7)
    total = seen.mean().sum(-1)
    if kind == "wan":
        torch.testing.assert_close(total, torch.ones(1, n))
    else:
        assert ((total > 0) & (total < 1)).all()
