"""Physics-IQ is what its definition says, on arrays and on folders, and touches nothing that it is given."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import physworld
from bench import report, results
from bench.cli import app
from bench.physics_iq import layout, measure
from bench.physics_iq.export import export
from bench.physics_iq.layout import Survey, View, survey
from bench.physics_iq.masks import blended, frames_of, lossy, motion_masks
from bench.physics_iq.overlap import Comparison, compare
from bench.physics_iq.result import result
from bench.physics_iq.run import run
from bench.physics_iq.score import score
from physworld import controls
from trainers import video

SIDES = ("perspective-left", "perspective-center", "perspective-right")
SCENARIOS = ("rigid_body", "collision")
RATE, SECONDS = 16, 1.0


def turned(film: np.ndarray, side: str) -> np.ndarray:
    """The same event from another side."""
    return {SIDES[0]: film[:, :, ::-1], SIDES[1]: film, SIDES[2]: np.rot90(film, 1, (1, 2))}[side]


def film(mechanism: str, frames: int, *, late: int = 0) -> np.ndarray:
    """An event of one second at any rate, 128 px; `late` shifts it by pixels, as a second take differs."""
    clip = physworld.simulate(mechanism, 5, scale=2).video.repeat(2, 1).repeat(2, 2)
    at = np.rint(np.arange(frames) * 16 / (frames - 1)).astype(int)
    return np.roll(clip[at], late, 2)


def made(folder: Path, change, frames: int = RATE) -> Path:
    """Generated videos in the official numbering: `change` of what take 1 shows."""
    for s, mechanism in enumerate(SCENARIOS):
        for v, side in enumerate(SIDES):
            video.write(folder / f"{3 * s + v + 1:04d}_mine.mp4", change(turned(film(mechanism, frames), side)), RATE)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Two scenarios, three sides, two takes at 30 fps, as the download lays them out; and the same at 16 fps."""
    root = tmp_path_factory.mktemp("physics-IQ-benchmark")
    for rate in (30, RATE):
        for s, mechanism in enumerate(SCENARIOS):
            for v, side in enumerate(SIDES):
                for take in (1, 2):
                    number = 198 * (take - 1) + 3 * s + v + 1
                    name = f"{number:04d}_testing-videos_{rate}FPS_{side}_take-{take}_{mechanism.replace('_', '-')}.mp4"
                    frames = turned(film(mechanism, rate, late=take - 1), side)
                    video.write(root / "split-videos/testing" / f"{rate}FPS" / name, frames, rate)
    return root


@pytest.fixture(scope="module")
def delayed(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("delayed"), lambda f: np.concatenate([f[:1], f[:1], f[:-2]]))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Measurements that tests share: a key is a content, so they cannot disturb one another."""
    return tmp_path_factory.mktemp("kept")


def snapshot(*folders: Path) -> dict[str, str]:
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scored(real: Path, generated: Path, cache: Path, **how) -> results.PhysicsIQResult:
    masks = how.pop("masks", "exact")
    found = survey(real, generated, fps=RATE, seconds=SECONDS, quiet=True)
    measured = run(found, cache=cache, quiet=True, masks=masks, **how)
    return result(found, measured, name="mine", masks=masks)


# On arrays


def test_motion_masks_follow_their_definition():
    frames = film("rigid_body", 20)[..., ::-1]
    average, kernel = None, np.ones((5, 5), np.uint8)
    for frame, mask in zip(frames, motion_masks(frames), strict=True):
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (5, 5), 0).astype(np.float64)
        average = grey if average is None else 0.7 * average + 0.3 * grey
        moving = (np.abs(grey - np.rint(average)) > 10).astype(np.uint8)
        opened = cv2.dilate(cv2.erode(moving, kernel), kernel)
        expected = cv2.erode(cv2.dilate(opened, kernel), kernel)
        assert np.count_nonzero(expected * 255 != mask) <= 2  # a tie of rounding, seldom
    assert mask.any()


def test_a_comparison_is_what_the_definition_says():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 7, 9, 11, 3), dtype=np.uint8)
    moves_a, moves_b = rng.random((2, 7, 9, 11)) < 0.3
    moves_a[2] = moves_b[2] = False
    found = compare(a, moves_a, b, moves_b)
    iou = [1.0 if not (p | q).any() else (p & q).sum() / (p | q).sum() for p, q in zip(moves_a, moves_b, strict=True)]
    long_a, long_b = moves_a.mean(0), moves_b.mean(0)
    ever_a, ever_b = moves_a.any(0), moves_b.any(0)
    assert found.spatiotemporal == pytest.approx(iou, abs=1e-12)
    assert found.spatiotemporal[2] == 1
    assert found.spatial == pytest.approx((ever_a & ever_b).sum() / (ever_a | ever_b).sum(), abs=1e-12)
    assert found.weighted == pytest.approx(
        np.minimum(long_a, long_b).sum() / np.maximum(long_a, long_b).sum(), abs=1e-12
    )
    in_float32 = ((a / 255).astype(np.float32) - (b / 255).astype(np.float32)) ** 2
    assert found.mse == pytest.approx(in_float32.mean((1, 2, 3)), abs=1e-7)


def test_clips_of_unequal_length_are_not_compared():
    frames, masks = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4, 4), bool)
    with pytest.raises(ValueError, match="shorter"):
        compare(frames, masks, frames[:2], masks[:2])


@pytest.mark.parametrize(("have", "want"), [(30, 16), (16, 30), (150, 80), (5, 5), (1, 3)])
def test_rates_are_made_by_blending_neighbours(have, want):
    frames = np.random.default_rng(1).integers(0, 256, (have, 3, 4, 3), dtype=np.uint8)
    got = np.array(list(blended(iter(frames), have=have, want=want)))
    for j in range(want):
        at = j * (have - 1) / (want - 1)
        low, share = int(at), at - int(at)
        after = frames[min(low + 1, have - 1)].astype(np.float32)
        assert (got[j] == ((1 - share) * frames[low].astype(np.float32) + share * after).astype(np.uint8)).all()


def random_views(n: int, frames: int, seed: int) -> list[Comparison]:
    rng = np.random.default_rng(seed)
    return [
        Comparison(
            float(rng.uniform(0.05, 0.6)),
            float(rng.uniform(0.05, 0.6)),
            tuple(rng.uniform(0, 0.5, frames).tolist()),
            tuple(rng.uniform(0, 0.02, frames).tolist()),
        )
        for _ in range(n)
    ]


def test_both_scores_follow_their_formulas():
    mine, takes = random_views(9, 20, 0), random_views(9, 20, 1)
    found = score(mine, takes)

    def rows(views):
        st = np.array([np.round(v.spatiotemporal, 4).mean() for v in views])
        mse = np.array([np.round(v.mse, 4).mean() for v in views])
        return st, np.array([v.spatial for v in views]), np.array([v.weighted for v in views]), mse

    (st, s, w, e), (st_var, s_var, w_var, e_var) = rows(mine), rows(takes)
    ratios = st.mean() / round(st_var.mean(), 4) + s.mean() / round(s_var.mean(), 5) + w.mean() / round(w_var.mean(), 4)
    original = 100 * (ratios / 3 - (e.mean() - round(e_var.mean(), 4)))
    assert found.raw == pytest.approx(original, abs=1e-9)
    assert found.original == pytest.approx(min(100, max(0, original)), abs=1e-9)
    parts = [st / (st_var + 1e-8), s / (s_var + 1e-8), w / (w_var + 1e-8), 1 / (e / (e_var + 1e-8))]
    assert found.verified == pytest.approx(100 * np.clip(parts, 0, 1).mean(), abs=1e-9)
    summed = round(st_var.mean(), 4) + round(s_var.mean(), 5) + round(w_var.mean(), 4) - round(e_var.mean(), 4)
    assert found.physical_variance == pytest.approx(round(summed, 4), abs=1e-12)


def test_the_original_score_is_a_ratio_of_means_and_the_verified_a_mean_of_ratios():
    easy, hard = Comparison(0.8, 0.8, (0.8,), (0.01,)), Comparison(0.1, 0.1, (0.1,), (0.01,))
    mine = Comparison(0.4, 0.4, (0.4,), (0.01,))
    both = score([mine, mine], [easy, hard])
    assert both.original == pytest.approx(100 * 0.4 / 0.45)
    assert both.verified == pytest.approx(100 * np.mean([0.5, 0.5, 0.5, 1, 1, 1, 1, 1]), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_spread_of_takes_is_rounded_as_officially(seed):
    takes = random_views(9, 20, seed)
    found = score(takes, takes).variances
    assert found["spatial"] == round(float(np.mean([v.spatial for v in takes])), 5)
    assert found["weighted"] == round(float(np.mean([v.weighted for v in takes])), 4)


def test_the_second_take_scores_100():
    takes = random_views(6, 10, 3)
    assert score(takes, takes).raw == pytest.approx(100, abs=0.1)  # the rounding of variances
    assert score(takes, takes).verified == pytest.approx(100, abs=1e-3)


def test_takes_without_shared_motion_leave_the_original_score_out():
    apart = Comparison(0.0, 0.0, (0.0,), (0.0,))
    found = score([Comparison(0.5, 0.5, (0.5,), (0.0,))], [apart])
    assert found.original is None
    assert found.verified == 100  # all ratios are cut to 1


def test_the_table_of_scenarios_is_complete():
    assert Counter(layout.categories().values()) == {
        "Solid Mechanics": 38,
        "Fluid Dynamics": 15,
        "Optics": 8,
        "Thermodynamics": 3,
        "Magnetism": 2,
    }


def test_lossy_masks_are_what_opencv_writes_and_reads(tmp_path):
    masks = list(motion_masks(film("rigid_body", 12)[..., ::-1]))
    height, width = masks[0].shape
    writer = cv2.VideoWriter(
        str(tmp_path / "m.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (width, height), isColor=False
    )
    for mask in masks:
        writer.write(mask)
    writer.release()
    capture = cv2.VideoCapture(str(tmp_path / "m.mp4"))
    for mask in lossy(masks, fps=RATE):
        there, frame = capture.read()
        assert there
        assert all(np.array_equal(frame[..., channel], mask) for channel in range(3))
    assert not capture.read()[0]
    capture.release()


# On folders


def plainly(real: Path, generated: Path, cut: bool) -> dict[str, float]:
    """Everything at once in memory, step by step as the definition has it; `cut`: masks through an mp4v file."""
    folder = real / f"split-videos/testing/{RATE}FPS"
    spatial, weighted, st, mse = (([], []) for _ in range(4))
    for path in sorted(generated.iterdir()):
        number = int(path.name[:4])
        takes = [next(folder.glob(f"{number + 198 * k:04d}_*")) for k in (0, 1)]
        clips, masks = [], []
        for file in (*takes, path):
            whole = list(frames_of(file, RATE))
            found = list(motion_masks(whole))
            found = list(lossy(found, fps=RATE)) if cut else found
            clips.append(np.array([cv2.resize(frame, (32, 32)) / 255.0 for frame in whole]))
            masks.append(np.array([cv2.resize(mask, (32, 32)) > 127 for mask in found]))
        for k in (0, 1):  # generated against take 1, take 2 against take 1
            a, b = masks[0], masks[2 - k]
            spatial[k].append(share(a.any(0), b.any(0)))
            st[k].append(np.round([share(p, q) for p, q in zip(a, b, strict=True)], 4).mean())
            weighted[k].append(np.minimum(a.mean(0), b.mean(0)).sum() / np.maximum(a.mean(0), b.mean(0)).sum())
            mse[k].append(np.round(((clips[0] - clips[2 - k]) ** 2).mean((1, 2, 3)), 4).mean())
    means = [[np.mean(part[k]) for part in (st, spatial, weighted, mse)] for k in (0, 1)]
    ratios = [mine / round(true, 5 if i == 1 else 4) for i, (mine, true) in enumerate(zip(*means, strict=True))][:3]
    return {"score": 100 * min(1, max(0, np.mean(ratios) - (means[0][3] - round(means[1][3], 4))))}


def share(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else 1.0


@pytest.mark.parametrize("masks", ["exact", "mp4v"])
def test_folders_score_as_the_plain_computation_does(real, delayed, kept, masks):
    found = scored(real, delayed, kept, masks=masks)
    assert found.score == pytest.approx(plainly(real, delayed, masks == "mp4v")["score"], abs=1e-6)


def test_exact_masks_stay_within_half_a_point_of_lossy_ones(real, delayed, kept):
    exact, cut = (scored(real, delayed, kept, masks=masks) for masks in ("exact", "mp4v"))
    assert exact.score != cut.score
    assert abs(exact.score - cut.score) < 0.5
    assert abs(exact.verified - cut.verified) < 0.5


def test_better_futures_score_higher_and_standing_still_is_not_zero(real, delayed, tmp_path, kept):
    made(tmp_path / "still", controls.static)
    made(tmp_path / "shuffled", lambda f: controls.shuffled(f, 0))
    made(tmp_path / "true", lambda f: f)
    true, late, mixed, still = (
        scored(real, folder, kept) for folder in (tmp_path / "true", delayed, tmp_path / "shuffled", tmp_path / "still")
    )
    assert 95 < true.verified <= 100
    assert true.verified > late.verified > mixed.verified
    assert true.score > late.score > mixed.score
    control = still.system("take 1's first frame, held").metrics
    assert still.score == pytest.approx(control["score"].value, abs=1)
    assert still.verified == pytest.approx(control["verified"].value, abs=1)
    assert still.score > 0
    assert any("does not score 0" in note for note in still.notes)


def test_rates_that_were_not_filmed_are_blended_from_30_fps(real, delayed, tmp_path, kept):
    filmed = tmp_path / "only-30"
    filmed.mkdir()
    for path in (real / "split-videos/testing/30FPS").iterdir():
        (filmed / path.name).hardlink_to(path)
    found = survey(filmed, delayed, seconds=SECONDS, quiet=True)
    assert (found.fps, found.frames, found.filmed) == (RATE, RATE, 30)
    blend = scored(filmed, delayed, kept)
    assert blend.score == pytest.approx(scored(real, delayed, kept).score, abs=15)  # ghosts, other frames


def test_what_was_measured_is_read_again_and_other_bytes_are_measured_anew(real, delayed, tmp_path, monkeypatch):
    cache, mine = tmp_path / "cache", tmp_path / "mine"
    made(mine, lambda f: f)
    before = scored(real, mine, cache)
    opened: list[str] = []

    def watched(path, count):
        opened.append(path.name)
        return frames_of(path, count)

    monkeypatch.setattr(measure, "frames_of", watched)
    assert scored(real, mine, cache) == before
    assert not opened
    for path in delayed.iterdir():  # other videos under the same names
        (mine / path.name).write_bytes((delayed / path.name).read_bytes())
    after = scored(real, mine, cache)
    assert after.score < before.score
    assert not any("take-2" in name for name in opened)  # what the takes share was known
    assert after.per_view == scored(real, delayed, tmp_path / "other").per_view
    for kept in cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert scored(real, mine, cache) == after


def test_processes_give_the_same_numbers(real, delayed, tmp_path, kept):
    assert scored(real, delayed, tmp_path / "two", workers=2) == scored(real, delayed, kept)


def test_a_folder_with_mistakes_is_listed_and_left_alone(real, delayed, tmp_path):
    mine = tmp_path / "mine"
    made(mine, lambda f: f)
    (mine / "0001_mine.mp4").unlink()
    (mine / "0002_mine.mp4").write_bytes((mine / "0002_mine.mp4").read_bytes()[:1500])
    frames = turned(film("rigid_body", RATE), SIDES[2])
    video.write(mine / "0003_mine.mp4", frames[:, ::2, ::2], RATE)
    video.write(mine / "0004_mine.mp4", frames, 24)
    video.write(mine / "0005_mine.mp4", frames[:-3], RATE)
    video.write(mine / "0006_mine.mp4", np.concatenate([frames] * 2), RATE)
    video.write(mine / "0006_twice.mp4", frames, RATE)
    video.write(mine / "0250_mine.mp4", frames, RATE)
    (mine / "notes.txt").write_text("mine")
    before = snapshot(mine, real)
    found = survey(real, mine, fps=RATE, seconds=SECONDS, quiet=True)
    said = {(p.file[:9], word) for p in found.problems for word in WORDS if word in p.what}
    assert said == {
        ("0001_pers", "missing"),
        ("0002_mine", "cut short"),
        ("0003_mine", "as the others"),
        ("0004_mine", "fps"),
        ("0005_mine", "cut short"),
        ("0006_mine", "leave out"),
        ("0006_twic", "already"),
        ("0250_mine", "no take 1"),
        ("notes.txt", "only videos"),
    }
    with pytest.raises(ValueError, match=r"notes\.txt"):
        run(found, cache=tmp_path / "cache", quiet=True)
    where = ["--real", str(real), "--generated", str(mine), "--fps", "16", "--seconds", "1"]
    shown = CliRunner().invoke(app, ["physics-iq", *where])
    assert shown.exit_code == 1
    assert "9 things to mend" in shown.stderr
    assert snapshot(mine, real) == before


WORDS = ("missing", "as the others", "fps", "cut short", "leave out", "already", "no take 1", "only videos")


def test_a_missing_take_is_named(real, delayed, tmp_path):
    root = tmp_path / "real"
    root.mkdir()
    for path in (real / f"split-videos/testing/{RATE}FPS").iterdir():
        if not path.name.startswith("0202"):
            (root / path.name).hardlink_to(path)
    found = survey(root, delayed, fps=RATE, seconds=SECONDS, quiet=True)
    assert [str(p).split(" in ")[0] for p in found.problems] == ["perspective-left_take-2_collision: missing"]


def test_a_frame_too_many_is_left_out_and_said(real, tmp_path, kept):
    long = made(tmp_path / "long", lambda f: np.concatenate([f, f[-1:]]))
    found = survey(real, long, fps=RATE, seconds=SECONDS, quiet=True)
    assert not found.problems
    assert any("6 generated videos of 17 frames: the first 16 count" in note for note in found.notes)
    exact = made(tmp_path / "exact", lambda f: f)
    got, expected = (scored(real, folder, kept) for folder in (long, exact))
    assert got.score == pytest.approx(expected.score, abs=0.5)  # the encoder sees another last frame


def test_export_gives_official_names_and_keeps_yours(real, delayed, tmp_path):
    before = snapshot(delayed)
    found = survey(real, delayed, fps=RATE, seconds=SECONDS, quiet=True)
    paths = export(found.views, tmp_path / "named")
    assert sorted(p.name for p in (tmp_path / "named").iterdir()) == sorted(p.name for p in paths)
    assert paths[0].name == "0001_perspective-left_rigid-body.mp4"
    assert paths[0].read_bytes() == (delayed / "0001_mine.mp4").read_bytes()
    assert snapshot(delayed) == before
    with pytest.raises(ValueError, match="new folder"):
        export(found.views, tmp_path / "named")


def test_the_command_writes_a_result_with_its_keys(real, delayed, tmp_path):
    out = tmp_path / "result.json"
    where = ["physics-iq", "--real", str(real), "--generated", str(delayed), "--seconds", "1", "--workers", "1"]
    listed = CliRunner().invoke(app, [*where, "--check"])
    assert listed.exit_code == 0
    assert "6 videos of 2 scenarios" in listed.stdout
    shown = CliRunner().invoke(app, [*where, "--out", str(out)])
    assert shown.exit_code == 0, shown.stderr
    assert "does not score 0" in shown.stderr
    written = json.loads(out.read_text())
    assert {"score", "verified", "physical_variance", "per_view"} <= set(written)
    assert [row["number"] for row in written["per_view"]] == [f"{n:04d}" for n in range(1, 7)]
    read = results.read(out)
    assert read.system(delayed.name).metrics["score"].value == written["score"]
    assert set(read.systems[0].groups) == {"none", *SIDES, "rigid-body", "collision"}
    again = CliRunner().invoke(app, [*where, "--out", str(tmp_path / "again.json"), "--quiet"])
    assert again.exit_code == 0
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


def test_the_first_views_can_be_looked_at_beside_both_takes_and_what_moves(real, delayed, tmp_path, kept):
    where = ["physics-iq", "--real", str(real), "--generated", str(delayed), "--seconds", "1", "--workers", "1"]
    given = [*where, "--masks", "exact", "--cache", str(kept), "--show", "1", "--quiet"]
    assert CliRunner().invoke(app, [*given, "--out", str(tmp_path / "a.json")]).exit_code == 0
    (item,) = [item for item in results.read(tmp_path / "a.json").systems[0].items if item.video is not None]
    assert list(item.pictures) == ["take 1", "take 2", "what moves"]
    films = {name: video.read(tmp_path / path).frames for name, path in item.pictures.items()}
    assert {film.shape for film in films.values()} == {(RATE, 32, 32, 3)}
    moving = films["what moves"].astype(int)
    orange, blue = ((moving[..., a] - moving[..., b] > 60).sum() for a, b in ((0, 2), (2, 0)))
    assert orange > 0  # take 1 has moved on where the delayed clip still is
    assert blue > 0
    series = {one["name"]: one for one in item.details["series"]}
    row = results.read(tmp_path / "a.json").per_view[0]
    assert series["MSE to take 1"]["values"] == row["frames"]["mse"]
    assert series["MSE to take 1"]["expects"] == row["variance_frames"]["mse"]
    page = report.render([tmp_path / "a.json"])
    assert page.count('class="panel"') == 4
    assert 'aria-label="what moves: 0001_perspective-left_rigid-body"' in page
    both = results.read(tmp_path / "a.json")
    twin = both.systems[0].model_copy(update={"name": "twin"})
    results.write(both.model_copy(update={"systems": (twin, *both.systems)}), tmp_path / "twin.json")
    assert report.render([tmp_path / "twin.json"]).count('class="panel"') == 5  # what both share is shown once
    before = snapshot(tmp_path)
    assert CliRunner().invoke(app, [*given, "--out", str(tmp_path / "a.json")]).exit_code == 0
    assert snapshot(tmp_path) == before
    assert CliRunner().invoke(app, [*given, "--show", "0", "--out", str(tmp_path / "b.json")]).exit_code == 0
    assert not any(item.video for item in results.read(tmp_path / "b.json").systems[0].items)


def test_intervals_wait_for_eight_scenarios():
    views, ones = [], []
    for i, mine in enumerate(random_views(27, 5, 7)):
        takes = Comparison(0.9, 0.9, (0.8,) * 5, (0.002,) * 5)
        nowhere = Path("x")
        name = f"scenario-{i // 3}"
        views.append(View(f"{i + 1:04d}", name, SIDES[i % 3], "Optics", nowhere, nowhere, nowhere))
        ones.append(measure.Measured(mine, takes, mine, {}))
    found = Survey(tuple(views), 30, 5, None, (), ())
    metrics = result(found, dict(zip(views, ones, strict=True)), name="m", masks="exact").systems[0].metrics
    for key in ("score", "verified"):
        assert metrics[key].low < metrics[key].value < metrics[key].high
    few = dict(zip(views[:21], ones[:21], strict=True))
    assert result(found, few, name="m", masks="exact").systems[0].metrics["verified"].low is None


def test_the_official_description_of_a_video_gives_its_name():
    with (layout.files("bench.physics_iq") / "scenarios.csv").open(encoding="utf-8") as file:
        first = next(csv.DictReader(file))["scenario"]
    view = View("0003", first, SIDES[2], "Solid Mechanics", Path("a"), Path("b"), Path("c"))
    assert layout.official_name(view) == "0003_perspective-right_trimmed-ball-and-block-fall.mp4"


def test_films_are_drawn_again_when_a_mask_comes_to_mean_something_else(real, delayed, tmp_path, kept, monkeypatch):
    where = ["physics-iq", "--real", str(real), "--generated", str(delayed), "--seconds", "1", "--workers", "1"]
    given = [
        *where,
        "--masks",
        "exact",
        "--cache",
        str(kept),
        "--show",
        "1",
        "--quiet",
        "--out",
        str(tmp_path / "a.json"),
    ]
    for definition in (1, 2, 2):
        monkeypatch.setattr("bench.physics_iq.films.DEFINITION", definition)
        assert CliRunner().invoke(app, given).exit_code == 0
    assert len(list((tmp_path / "physics-iq-films").iterdir())) == 2
