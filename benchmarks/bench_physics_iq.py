"""Physics-IQ's throughput and memory against the straightforward way, which holds whole clips, on the same files.

    OMP_NUM_THREADS=1 uv run python benchmarks/bench_physics_iq.py [--clips 6] [--rounds 3]

Writes `--clips` generated videos of 81 x 480 x 832 at 16 fps and their real pairs of 150 x 1080 x 1920 at 30 fps (a
smooth texture with a ball), then scores them with `bench.physics_iq` in one process, first with nothing known, then
with the real clips known (another model), with exact masks and with lossy ones (the command's default), and in the
straightforward way: decode each clip into a list of float64 frames, write its masks to a video, read them back, then
compare, as the official script goes about it. Each measurement runs in a process of its own, whose peak memory is the
kernel's figure. One JSON line a measurement, with seconds a clip, peak MiB, and what that makes of 1,000 clips in one
process (extrapolated: time grows with the count, memory does not, since a clip leaves nothing behind but a few
kilobytes of figures).
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from trainers import video

FRAMES, FPS, SECONDS = 81, 16, 5.0
MADE, FILMED = (480, 832), (1080, 1920)
KNOWN, LOSSY = "real clips known", "lossy masks"


def scene(frames: int, size: tuple[int, int], seed: int, late: float = 0.0) -> np.ndarray:
    """A smooth texture and a ball that falls in an arc, at any size and rate."""
    height, width = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 160, (9, 16, 3), dtype=np.uint8)
    back = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    film = np.repeat(back[None], frames, 0)
    for t, share in enumerate(np.linspace(0, 1, frames)):
        at = max(0.0, share - late)
        centre = (round(width * (0.15 + 0.7 * at)), round(height * (0.3 + 0.5 * at**2)))
        cv2.circle(film[t], centre, height // 12, (230, 60, 50), -1)
    return film


def write_set(root: Path, clips: int) -> None:
    """Official names; each scenario is seen from one side."""
    for n in range(1, clips + 1):
        for take, late in ((1, 0.0), (2, 0.01)):
            name = f"{198 * (take - 1) + n:04d}_testing-videos_30FPS_perspective-center_take-{take}_scene-{n}.mp4"
            video.write(root / "real/30FPS" / name, scene(150, FILMED, n, late), 30, crf=20)
        video.write(root / "made" / f"{n:04d}_made.mp4", scene(FRAMES, MADE, n, 0.03), FPS, crf=20)


def ours(root: Path, cache: Path, masks: Literal["exact", "mp4v"]) -> dict[str, float]:
    """`bench.physics_iq`, one process."""
    from bench.physics_iq.layout import survey
    from bench.physics_iq.result import result
    from bench.physics_iq.run import run

    found = survey(root / "real", root / "made", fps=FPS, seconds=SECONDS, quiet=True)
    run(replace(found, views=found.views[:1]), cache=cache, masks=masks, quiet=True)
    after_one = peak_mib()
    measured = run(found, cache=cache, masks=masks, quiet=True)
    scored = result(found, measured, name="made", masks=masks)
    return {"score": float(scored.score or 0), "verified": float(scored.verified or 0), "first_mib": after_one}


def straightforward(root: Path, folder: Path) -> dict[str, float]:
    """Whole clips in memory, masks through files: the way that the official script goes."""
    from bench.physics_iq.masks import blended, frames_of, motion_masks

    cv2.setNumThreads(1)
    want = round(FPS * SECONDS)
    size = (FILMED[1] // 4, FILMED[0] // 4)
    sums = np.zeros((2, 4))
    paths = sorted((root / "made").iterdir())
    for path in paths:
        number = int(path.name[:4])
        reals = [next((root / "real/30FPS").glob(f"{number + k:04d}_*")) for k in (0, 198)]
        clips, masks = [], []
        for source in (*reals, path):
            if source is path:
                whole = list(frames_of(source, want))
            else:
                whole = list(blended(frames_of(source, 150), have=150, want=want))
            file = folder / "masks.mp4"
            shape = whole[0].shape[1], whole[0].shape[0]
            writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), FPS, shape, isColor=False)
            for mask in motion_masks(whole):
                writer.write(mask)
            writer.release()
            masks.append(np.array([cv2.resize(mask, size)[..., 0] > 127 for mask in frames_of(file, want)]))
            clips.append(np.array([cv2.resize(frame, size) / 255.0 for frame in whole]))
        for row, other in ((0, 2), (1, 1)):
            a, b = masks[0], masks[other]
            union, shared = (a | b).sum((1, 2)), (a & b).sum((1, 2))
            squared = (clips[0].astype(np.float32) - clips[other].astype(np.float32)) ** 2
            sums[row] += (
                np.where(union > 0, shared / np.maximum(union, 1), 1.0).mean(),
                (a.any(0) & b.any(0)).sum() / (a.any(0) | b.any(0)).sum(),
                np.minimum(a.mean(0), b.mean(0)).sum() / np.maximum(a.mean(0), b.mean(0)).sum(),
                squared.mean(),
            )
    mine, true = sums / len(paths)
    return {"score": float(100 * np.clip((mine[:3] / true[:3]).mean() - (mine[3] - true[3]), 0, 1))}


def peak_mib() -> float:
    """The process's peak so far (getrusage would give that of the parent it was forked from)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def one(way: str, root: Path, folder: Path, answer) -> None:
    """Measure once, in a process of its own."""
    before, start, cpu = peak_mib(), time.perf_counter(), time.process_time()
    found = (
        straightforward(root, folder)
        if way == "straightforward"
        else ours(root, folder, "mp4v" if LOSSY in way else "exact")
    )
    figures = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    answer.put({**found, **figures, "start_mib": before, "peak_mib": peak_mib()})


def main() -> None:
    """Interleave the ways and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_set(root, asked.clips)
        ways = ("ours", f"ours, {KNOWN}", f"ours, {LOSSY}", f"ours, {LOSSY}, {KNOWN}", "straightforward")
        kept: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(asked.rounds):
            cache = root / f"cache-{number}"
            for way, found in kept.items():
                if KNOWN in way:
                    for view in cache.glob("view-*"):
                        view.unlink()
                folder = cache if way != "straightforward" else root
                answer = context.Queue()
                process = context.Process(target=one, args=(way, root, folder, answer))
                process.start()
                found.append(answer.get())
                process.join()
        peer = [round_["cpu_s"] for round_ in kept["straightforward"]]
        for way, found in kept.items():
            cpu = [round_["cpu_s"] for round_ in found]
            ratios = sorted(mine / other for mine, other in zip(cpu, peer, strict=True))
            line = {
                "what": f"physics-iq, {way}",
                "clips": asked.clips,
                "cpu_s_a_clip": round(statistics.median(cpu) / asked.clips, 3),
                "wall_s_a_clip": round(statistics.median(round_["wall_s"] for round_ in found) / asked.clips, 3),
                "ratio_to_straightforward": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "peak_mib": round(max(round_["peak_mib"] for round_ in found)),
                "peak_after_one_clip_mib": round(max(round_.get("first_mib", 0) for round_ in found)) or None,
                "start_mib": round(max(round_["start_mib"] for round_ in found)),
                "hours_for_1000": round(statistics.median(cpu) / asked.clips * 1000 / 3600, 2),
                "score": round(found[0]["score"], 2),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
