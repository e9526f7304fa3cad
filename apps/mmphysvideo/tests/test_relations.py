"""Alignment: relations between tokens in bounded memory, pooling, grids."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmphysvideo.relations import cosine, on_grid, pooled, relations


def tokens(n, d, seed, b=2):
    return torch.randn(b, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(a, b, margin):
    """VideoREPA's form: each frame's tokens against those of all frames."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return F.relu((a @ a.mT - b @ b.mT).abs() - margin).mean()


def test_rows_change_no_value_and_no_gradient():
    a, b = tokens(30, 8, 0).requires_grad_(True), tokens(30, 5, 1)
    wanted = literal(a, b, 0.1)
    (slope,) = torch.autograd.grad(wanted, a)
    for rows in (7, 30, 100):
        found = relations(a, b, margin=0.1, rows=rows)
        assert torch.allclose(found.double(), wanted, atol=1e-6)
        assert torch.allclose(torch.autograd.grad(found, a)[0], slope, atol=1e-6)


def test_relations_within_the_margin_do_not_count():
    a = tokens(12, 4, 0)
    assert float(relations(a, a + 1e-4, margin=0.1, rows=8)) == 0
    assert float(relations(a, tokens(12, 4, 1), margin=0.1, rows=8)) > 0
    assert float(relations(a, tokens(12, 4, 1), margin=2.0, rows=8)) == 0


class Largest(TorchDispatchMode):
    """The largest tensor that anything makes."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.seen = max(self.seen, tensor.numel())
        return out


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    kept, largest = {}, {}
    for n in (128, 256, 512):
        a, b = tokens(n, 4, 0, b=1).float().requires_grad_(True), tokens(n, 4, 1, b=1).float()
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t)
        with Largest() as look, hooks:
            relations(a, b, margin=0.1, rows=16).backward()
        kept[n], largest[n] = max(sizes), look.seen
    assert largest[512] <= 16 * 512
    assert largest[512] == 2 * largest[256] == 4 * largest[128]
    assert kept[512] <= 512 * 16


def test_pooling_averages_neighbours_and_refuses_cells_that_do_not_divide():
    h = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 48, 1)
    assert torch.equal(pooled(h, (2, 4, 6), None), h.reshape(1, 2, 4, 6, 1))
    small = pooled(h, (2, 4, 6), (2, 3))
    assert small.shape == (1, 2, 2, 3, 1)
    assert float(small[0, 0, 0, 0]) == h[0, [0, 1, 6, 7], 0].mean()
    with pytest.raises(ValueError, match="cells that divide the 4 x 6 tokens of a frame, got 3 x 3"):
        pooled(h, (2, 4, 6), (3, 3))


def test_latents_meet_tubelets_behind_the_first_frame():
    h = torch.arange(3.0).reshape(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 1)
    assert on_grid(h, (3, 2, 2)).shape == (1, 12, 1)
    assert on_grid(h, (2, 2, 2))[0, ::4, 0].tolist() == [1, 2]
    times = on_grid(h, (4, 2, 2))[0, ::4, 0]
    assert times.tolist() == [1.0, 1.25, 1.75, 2.0]
    with pytest.raises(ValueError, match="so that they agree"):
        on_grid(h, (3, 2, 4))
    with pytest.raises(ValueError, match="expected features of 2 latents behind the first"):
        on_grid(h, (5, 2, 2))


def test_cosine_is_zero_for_the_same_directions():
    a = tokens(6, 4, 0)
    assert abs(float(cosine(a, 3 * a))) < 1e-6
    assert abs(float(cosine(a, -a)) - 2) < 1e-6
