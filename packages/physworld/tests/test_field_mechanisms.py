"""What the five mechanisms that draw scalar fields have in common."""

import importlib
import warnings

import numpy as np
import pytest

from physworld.clip import FRAMES, SLOTS

NAMES = ("thermal", "phase_change", "optical", "fluid", "compressible_flow")
IRREVERSIBLE = {"thermal", "phase_change", "fluid", "compressible_flow"}
SPLITS = ("train", "ood")


def draw(module, n: int, split: str = "train", first: int = 0) -> list[dict]:
    return [module.sample(np.random.default_rng([7, first + s]), split) for s in range(n)]


@pytest.fixture(scope="module")
def worlds() -> dict:
    made = {}
    for name in NAMES:
        module = importlib.import_module(f"physworld.{name}")
        params = draw(module, 20)
        expected = [module.expect(module.caption(p).split()) for p in params]
        made[name] = (module, params, module.simulate_batch(params, 1), expected)
    return made


def limits(module, figures: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: max(1.5 * float(np.quantile([f[name] for f in figures], 0.95)), module.RULE["tolerance"][name])
        for name in module.RULE["low"]
    }


def passes(module, limit: dict[str, float], motion: float, figures: dict[str, float]) -> bool:
    rule = module.RULE
    return (
        all(figures[name] <= limit[name] for name in rule["low"])
        and all(figures[name] == 1 for name in rule["flags"])
        and all(figures[name] >= least for name, least in rule["at_least"].items())
        and figures[rule["motion"]] >= motion
    )


@pytest.mark.parametrize("name", NAMES)
def test_real_clips_pass_and_still_shuffled_and_irreversible_reversed_ones_do_not(name: str, worlds: dict) -> None:
    module, _, clips, expected = worlds[name]
    real = [module.measure(c[0], e, 1) for c, e in zip(clips, expected, strict=True)]
    limit = limits(module, real[:10])
    motion = 0.3 * float(np.median([r[module.RULE["motion"]] for r in real[:10]]))
    order = np.random.default_rng(0).permutation(FRAMES)

    def share(change) -> float:
        figures = [module.measure(change(c[0]), e, 1) for c, e in zip(clips, expected, strict=True)]
        return float(np.mean([passes(module, limit, motion, f) for f in figures]))

    assert share(lambda v: v) >= 0.95
    assert share(lambda v: np.repeat(v[:1], FRAMES, 0)) == 0
    assert share(lambda v: v[order]) <= 0.05
    if name in IRREVERSIBLE:
        assert share(lambda v: v[::-1]) <= 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_does_not_depend_on_its_batch(name: str) -> None:
    module = importlib.import_module(f"physworld.{name}")
    params = draw(module, 5)
    together, alone = module.simulate_batch(params, 1), [module.simulate_batch([p], 1)[0] for p in params]
    for (video, fields, valid), (video1, fields1, valid1) in zip(together, alone, strict=True):
        assert np.array_equal(video, video1)
        assert all(np.array_equal(fields[k], fields1[k]) for k in fields)
        assert all(np.array_equal(valid[k], valid1[k]) for k in valid)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_a_caption_read_back_fixes_what_was_drawn(name: str, split: str) -> None:
    module = importlib.import_module(f"physworld.{name}")
    for params in draw(module, 60, split):
        expected = module.expect(module.caption(params).split())
        assert expected["scenario"] == params["scenario"]
        assert expected["level"] == params["level"]
        for key in {"D", "c", "drive", "speed", "pressure", "way"} & params.keys():
            assert expected[key] == params[key]
    assert module.expect(["a", "dog", "sleeps"]) == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_out_is_seen_out_of_distribution_only(name: str) -> None:
    module = importlib.import_module(f"physworld.{name}")
    seen = {module.caption(p) for p in draw(module, 300)}
    held_out = {module.caption(p) for p in draw(module, 60, "ood")}
    assert not seen & held_out
    assert len(held_out) >= 2
    kinds = {p["ood"] for p in draw(module, 60, "ood")}
    assert kinds == {"combination", "range"}
    assert {p["ood"] for p in draw(module, 20)} == {None}


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_fields_have_the_sizes_of_their_slots(name: str, scale: int) -> None:
    module = importlib.import_module(f"physworld.{name}")
    for video, fields, valid in module.simulate_batch(draw(module, 2), scale):
        assert video.shape == (FRAMES, 32 * scale, 32 * scale, 3)
        assert video.dtype == np.uint8
        assert fields.keys() == valid.keys()
        for slot, field in fields.items():
            assert field.shape == (*video.shape[:3], SLOTS[slot])
            assert field.dtype == np.float16
            assert np.isfinite(field).all()
            assert valid[slot].shape == video.shape[:3]
            assert valid[slot].dtype == bool


@pytest.mark.parametrize("name", NAMES)
def test_the_law_keeps_its_numbers_at_twice_the_pixels(name: str) -> None:
    module = importlib.import_module(f"physworld.{name}")
    params = draw(module, 6)
    for p, clip in zip(params, module.simulate_batch(params, 2), strict=True):
        figures = module.measure(clip[0], module.expect(module.caption(p).split()), 2)
        assert all(figures[flag] == 1 for flag in module.RULE["flags"])
        assert all(figures[k] <= 2 * limit for k, limit in module.RULE["tolerance"].items())


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_that_the_cells_cannot_draw_is_refused(name: str) -> None:
    module = importlib.import_module(f"physworld.{name}")
    if name == "thermal":
        assert module.simulate_batch(draw(module, 1), 4)[0][0].shape[1] == 128
        return
    with pytest.raises(ValueError, match="scale"):
        module.simulate_batch(draw(module, 1), 4)


@pytest.mark.parametrize("name", NAMES)
def test_garbage_gives_finite_measures_and_no_valid(name: str, worlds: dict) -> None:
    module, _, _, expected = worlds[name]
    rng = np.random.default_rng(0)
    shape = (FRAMES, 32, 32, 3)
    garbage = [rng.integers(0, 256, shape, dtype=np.uint8), rng.uniform(0, 255, shape)]
    garbage += [np.full(shape, level, np.uint8) for level in (0, 128, 255)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for video in garbage:
            for e in expected[:6]:
                figures = module.measure(video, e, 1)
                assert figures["valid"] == 0
                assert all(type(v) is float and np.isfinite(v) for v in figures.values())
