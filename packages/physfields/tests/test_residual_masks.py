"""Residuals under a mask: what is invalid reaches neither loss nor gradient, and what is valid stays as it was."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import physfields as pf
from physfields import exact
from physfields.residuals import COMPONENTS, PILA, evaluate

D = torch.float64
KEYS = [term.key for term in PILA]
UNEVEN = pf.Grid.from_latent_times([0.0, 0.625, 1.625, 2.625, 3.625])


def random_bank(batch=3, frames=5, size=5, dtype=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        slot: torch.randn(batch, c, frames, size, size, dtype=D, generator=g).to(dtype)
        for slot, c in COMPONENTS.items()
    }


def test_frames_under_the_mask_do_not_enter_the_time_mean_of_a_displacement_wave():
    grid, shape = pf.Grid((2 * math.pi / 8, 3 / 8, 3 / 8)), (9, 9, 9)
    d = exact.standing_wave(exact.mesh(grid, shape))["displacement"]
    mask = torch.ones(1, 1, *shape)
    mask[:, :, 7:] = 0
    term = {"categories": ["elastic"], "families": ["pde_anchor"]}
    fields = {"displacement": d, "velocity": torch.zeros_like(d)}
    masked = evaluate(fields, grid, mask=mask, **term)["elastic.displacement_wave"].field["node"][:, :, :5]
    short = {name: f[:, :, :7] for name, f in fields.items()}
    alone = evaluate(short, grid, **term)["elastic.displacement_wave"].field["node"][:, :, :5]
    inner = (slice(None), slice(None), slice(1, 5), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(masked[inner], alone[inner])


def test_a_mask_of_ones_is_no_mask():
    bank = random_bank()
    plain, masked = evaluate(bank, UNEVEN), evaluate(bank, UNEVEN, mask=torch.ones(3, 1, 5, 5, 5))
    for key in KEYS:
        torch.testing.assert_close(plain[key].loss, masked[key].loss)


def test_a_weight_counts_a_node_as_often_as_it_says():
    p = torch.zeros(1, 1, 1, 2, 2, dtype=D)
    w = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=D).reshape(1, 1, 1, 2, 2)
    p[0, 0, 0] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(pf.masked_mean(p, w), torch.tensor([[0.5]], dtype=D))
    out = evaluate({"pressure": p, "density": p, "velocity": p.expand(1, 2, 1, 2, 2)}, pf.Grid(), ["fluid"],
                   families=["stabilizer"], mask=w)["fluid.pressure_regularity"]  # fmt: skip
    # faces along y weigh (2, 1) and differ by (1, 0); the same along x: 2 / 3 each
    torch.testing.assert_close(out.loss, torch.tensor([4 / 3], dtype=D))


def test_nan_under_the_mask_reaches_neither_loss_nor_gradient():
    bank = random_bank(size=9, frames=7)
    grid = pf.Grid()
    mask = torch.ones(3, 1, 7, 9, 9)
    mask[:, :, 6, :2, 7:] = 0
    clean = evaluate(bank, grid, mask=mask)
    poisoned = {s: torch.where(mask > 0, f, torch.nan).requires_grad_() for s, f in bank.items()}
    for options in ({}, {"relative": True}, {"reduction": "charbonnier"}):
        out = evaluate(poisoned, grid, mask=mask, **options)
        total = torch.stack([r.loss.sum() for r in out.values()]).sum()
        gradients = torch.autograd.grad(total, list(poisoned.values()))
        assert total.isfinite()
        assert all(g.isfinite().all() for g in gradients)
        assert all(not g.masked_select(mask == 0).any() for g in gradients)
    for key, r in evaluate(poisoned, grid, mask=mask).items():
        torch.testing.assert_close(r.loss, clean[key].loss)


def test_a_face_beside_an_invalid_node_weighs_nothing():
    mask = torch.ones(1, 1, 3, 4, 4)
    mask[:, :, 1, 2, 2] = 0
    p = torch.where(mask > 0, 5.0, torch.nan)
    out = evaluate({"pressure": p, "density": p, "velocity": p.expand(-1, 2, -1, -1, -1)}, pf.Grid(), ["fluid"],
                   families=["stabilizer"], mask=mask)  # fmt: skip
    assert not any(r.loss.any() for r in out.values())
    assert pf.face_mask(mask, "x", pf.Grid())[0, 0, 1, 2].tolist() == [1.0, 0.0, 0.0]


def test_a_residual_whose_stencil_touches_an_invalid_node_weighs_nothing():
    mask = torch.ones(1, 1, 7, 9, 9)
    mask[:, :, 0, 0, 8] = 0
    T = torch.where(mask > 0, 5.0, torch.nan)
    out = evaluate({"temperature": T, "velocity": torch.zeros(1, 2, 7, 9, 9)}, pf.Grid(), ["thermal"], mask=mask)
    assert not any(r.loss.any() for r in out.values())


def test_an_empty_mask_gives_zero_loss_and_zero_gradient():
    bank = {s: f.requires_grad_() for s, f in random_bank().items()}
    mask = torch.ones(3, 1, 5, 5, 5)
    mask[1] = 0
    for options in ({}, {"relative": True}, {"reduction": "charbonnier"}):
        out = evaluate(bank, UNEVEN, mask=mask, **options)
        total = torch.stack([r.loss[1] for r in out.values()])
        assert not total.any()
        gradients = torch.autograd.grad(total.sum(), list(bank.values()))
        assert all(not g.any() for g in gradients)


def test_a_masked_mean_ignores_nan_under_the_mask_and_weighs_the_rest():
    f = torch.tensor([1.0, 2.0, torch.nan, 5.0], dtype=D).reshape(1, 1, 1, 2, 2).expand(2, 1, 1, 2, 2).clone()
    mask = torch.tensor([[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 1, 1, 2, 2)
    mean = pf.masked_mean(f.requires_grad_(), mask)
    torch.testing.assert_close(mean, torch.tensor([[13 / 4], [0.0]], dtype=D))
    (slope,) = torch.autograd.grad(mean.sum(), f)
    torch.testing.assert_close(slope, torch.tensor([[0.25, 0.25, 0, 0.5], [0] * 4], dtype=D).reshape(2, 1, 1, 2, 2))


class Launches(TorchDispatchMode):
    """Counts operators that are no views, and erosions along an axis among all."""

    def __init__(self):
        super().__init__()
        self.launches = self.erosions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.launches += not func.is_view
        self.erosions += func is torch.ops.aten.unfold.default
        return func(*args, **(kwargs or {}))


def test_each_erosion_of_a_mask_is_made_once_for_all_residuals():
    bank, mask = random_bank(size=7), torch.ones(3, 1, 5, 7, 7)
    mask[0, :, 2, 3, 3] = 0
    counts = {}
    for name, given in (("plain", None), ("masked", mask)):
        evaluate(bank, UNEVEN, mask=given)  # fills the caches
        with Launches() as counts[name]:
            evaluate(bank, UNEVEN, mask=given)
    # PILA reaches along (t, y, x), (y, x) and (t): x, y after it, t after both, and t alone
    assert counts["plain"].erosions == 0
    assert counts["masked"].erosions == 4
    assert counts["masked"].launches - counts["plain"].launches <= 225  # measured: 219; 715 before anything was shared


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("boundary", ["one_sided", "periodic", "reflect"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_erosion_keeps_exactly_cells_whose_first_and_second_derivative_are_sound(order, boundary, coordinates):
    if coordinates and boundary == "periodic":
        return  # a circle has no coordinates
    n = 12
    uneven = tuple(i + 0.1 * (i % 3) for i in range(n))  # on even ones the rows would not read what they may
    grid = pf.Grid((1.0, 1.0, uneven if coordinates else 1.0), boundary=boundary, order=order)
    for hole in range(n):
        mask = torch.ones(1, 1, 1, 1, n)
        mask[..., hole] = 0
        f = torch.where(mask > 0, torch.zeros(1, 1, 1, 1, n), torch.nan)
        sound = pf.partial(f, {"x": 1}, grid).isfinite() & pf.partial(f, {"x": 2}, grid).isfinite()
        sound &= mask > 0
        kept = pf.erode_valid(mask, grid, (0, 0, order // 2))
        assert not (kept & ~sound).any()
        assert (sound & ~kept).sum() <= (2 if boundary == "one_sided" or coordinates else 0) + (order == 4)
