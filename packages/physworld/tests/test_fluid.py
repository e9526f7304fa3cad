import numpy as np
import pytest

from physworld import fluid


def draws(n: int = 4) -> list[dict]:
    return [fluid.sample(np.random.default_rng([9, s]), "train") for s in range(n)]


def test_ink_is_conserved_and_never_unmixes() -> None:
    ink = fluid.to_cells(fluid.solve(draws())[:, :, 1]).astype(np.float64)
    total = ink.sum((2, 3))
    assert np.abs(total / total[:, :1] - 1).max() < 1e-4
    assert (np.diff(np.square(ink).sum((2, 3)), axis=1) < 0).all()


def test_a_flow_has_no_divergence() -> None:
    for modes in fluid.solve(draws(2)):
        velocity = fluid.to_modes(fluid.velocity_of(modes[:, 0]))
        divergence = fluid.to_cells(1j * (fluid.K_Y * velocity[:, 0] + fluid.K_X * velocity[:, 1]))
        assert np.abs(divergence).max() < 1e-4


def test_velocity_and_pressure_satisfy_the_momentum_equation() -> None:
    modes = fluid.to_modes(np.stack([fluid.start(p) for p in draws()]))
    dt = 1 / 16
    history = [modes, (step := fluid.advance(modes, dt)), fluid.advance(step, dt)]
    before, now, after = (fluid.velocity_of(m[:, 0]).astype(np.float64) for m in history)
    hat, p = fluid.to_modes(now), fluid.to_modes(fluid.pressure_of(now.astype(np.float32)).astype(np.float64))
    grad = [fluid.to_cells(1j * k * p) for k in (fluid.K_Y, fluid.K_X)]
    for i in range(2):
        advection = sum(now[:, j] * fluid.to_cells(1j * k * hat[:, i]) for j, k in enumerate((fluid.K_Y, fluid.K_X)))
        viscous = -fluid.VISCOSITY * fluid.to_cells(fluid.K2 * hat[:, i])
        change = (after[:, i] - before[:, i]) / (2 * dt)
        residual = change + advection + grad[i] - viscous
        assert np.linalg.norm(residual) < 0.01 * np.linalg.norm(advection)


def test_a_lone_vortex_decays_as_lamb_and_oseen_say() -> None:
    p = draws(1)[0] | {"scenario": "vortex", "way": "clockwise", "speed": 0.6, "core": 2.5, "centre": [16.0, 16.0]}
    modes = fluid.solve([p])[0, :, 0]
    vorticity = fluid.to_cells(modes)
    spread = p["core"] ** 2 + 2 * fluid.VISCOSITY * 16
    mean = vorticity[0].mean()
    top = (vorticity - mean).max((1, 2))
    y = np.arange(64) / 2 + 0.25
    off_centre = np.exp(-2 * 0.25**2 / (2 * spread)) / np.exp(-2 * 0.25**2 / (2 * p["core"] ** 2))
    assert np.abs(y - 16).min() == 0.25
    exact = (top[0] + mean) * p["core"] ** 2 / spread * off_centre - mean
    assert top[-1] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("way", fluid.HEADINGS)
def test_a_pair_carries_ink_where_its_caption_says(way: str) -> None:
    rng = np.random.default_rng(2)
    while (p := fluid.sample(rng, "train"))["scenario"] != "pair" or p["way"] != way:
        pass
    video, fields, _ = fluid.simulate_batch([p], 1)[0]
    expected = fluid.expect(fluid.caption(p).split())
    assert fluid.measure(video, expected, 1)["dir_ok"] == 1
    heading = np.array(fluid.HEADINGS[way])
    ink = fields["density"][0].astype(np.float64)
    carried = (fields["velocity"][0].astype(np.float64) * ink).sum((0, 1)) / ink.sum()
    assert carried @ heading > 0.9 * np.linalg.norm(carried) > 0.1
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[way]
    assert fluid.measure(video, expected | {"way": opposite}, 1)["dir_ok"] == 0


@pytest.mark.parametrize("way", fluid.SPINS)
def test_a_vortex_turns_as_its_caption_says(way: str) -> None:
    rng = np.random.default_rng(2)
    while (p := fluid.sample(rng, "train"))["scenario"] != "vortex" or p["way"] != way:
        pass
    video, fields, _ = fluid.simulate_batch([p], 1)[0]
    expected = fluid.expect(fluid.caption(p).split())
    assert fluid.measure(video, expected, 1)["dir_ok"] == 1
    other = next(w for w in fluid.SPINS if w != way)
    assert fluid.measure(video, expected | {"way": other}, 1)["dir_ok"] == 0
    right_of_centre = fields["velocity"][0, int(p["centre"][0]), int(p["centre"][1]) + 5, 0]
    assert fluid.SPINS[way] * float(right_of_centre) > 0.1  # clockwise as seen: the right side moves down
    r = np.linspace(0.5, 12, 200)
    peak, s2 = p["speed"] / (0.4513 * p["core"]), p["core"] ** 2
    around = peak * s2 / r * (1 - np.exp(-(r**2) / (2 * s2))) - 0.5 * r * peak * 2 * np.pi * s2 / 32**2
    assert np.linalg.norm(fields["velocity"][0], axis=-1).max() == pytest.approx(around.max(), rel=0.04)


def test_a_reversed_flow_unmixes_and_lost_ink_shows() -> None:
    p = draws(1)[0]
    video, fields, _ = fluid.simulate_batch([p], 1)[0]
    expected = fluid.expect(fluid.caption(p).split())
    ink = fields["density"][..., 0].astype(np.float64)
    fading = fluid.RAMP.colour(ink * np.linspace(1, 0.6, len(ink))[:, None, None])
    real, back, faded = (fluid.measure(v, expected, 1) for v in (video, video[::-1], fading))
    assert max(real["unmixing"], real["ink_max_growth"], real["ink_drift"]) < 0.02
    assert min(back["unmixing"], back["ink_max_growth"]) > 0.2
    assert faded["ink_drift"] > 0.2
