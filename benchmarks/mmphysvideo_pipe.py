"""Quality and speed of MMPhysPipe's embedded experts.

`quality`: mask IoU and track error against the simulated world's exact masks and tracks, at scale 2, by mechanism, with
balls also redrawn with random patterns before random patterns. `speed`: clips a second of the whole perception
(filters, rules, segmentation, tracks, checks) on one thread, against OpenCV's own background subtraction (MOG2),
connected components and Lucas-Kanade on the same clips, run in turns: the price of bodies that keep their
names and of outlines that hold.

    OMP_NUM_THREADS=1 python benchmarks/mmphysvideo_pipe.py quality --clips 24
    OMP_NUM_THREADS=1 python benchmarks/mmphysvideo_pipe.py speed --rounds 5
"""

import argparse
import json
import time
from itertools import pairwise

import cv2
import numpy as np

import physworld
from mmphysvideo.perception import Perception, Space, Tracks, planar_points
from mmphysvideo.pipe.experts import perceive
from mmphysvideo.pipe.world import judge, textured


def peer(frames):
    """MOG2, the six largest components of each frame, and Lucas-Kanade on corners: the usual OpenCV pipeline."""
    t, h, w, _ = frames.shape
    subtractor = cv2.createBackgroundSubtractorMOG2(history=t, varThreshold=16, detectShadows=False)
    for frame in frames:  # once to learn, once to segment
        subtractor.apply(frame)
    masks = np.zeros((t, h, w), np.uint8)
    for k, frame in enumerate(frames):
        front = cv2.morphologyEx(subtractor.apply(frame, learningRate=0), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(front)
        order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:6] if count > 1 else []
        for rank, label in enumerate(order, 1):
            if stats[label, cv2.CC_STAT_AREA] >= 12:
                masks[k][labels == label] = rank
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    corners = cv2.goodFeaturesToTrack(grey[0], 64, 0.01, 3, mask=(masks[0] > 0).astype(np.uint8))
    if corners is None:
        tracks = Tracks(np.zeros((0, t, 2), np.float32), np.zeros((0, t), bool), np.zeros(0, np.uint8))
        return Perception(masks, planar_points(t, h, w), tracks, Space.planar(h, w), tuple("abcdef"))
    path, good = [corners], [np.ones(len(corners), bool)]
    for a, b in pairwise(grey):
        there, found, _ = cv2.calcOpticalFlowPyrLK(a, b, path[-1], None, winSize=(15, 15))
        path.append(there)
        good.append(good[-1] & (found.ravel() == 1))
    position = np.stack(path, 1)[:, :, 0, ::-1].astype(np.float32)
    tracks = Tracks(position, np.stack(good, 1), np.ones(len(corners), np.uint8))
    return Perception(masks, planar_points(t, h, w), tracks, Space.planar(h, w), tuple("abcdef"))


def quality(clips):
    """One line a mechanism and drawing."""
    for mechanism in physworld.MECHANISMS:
        made = physworld.simulate_many(mechanism, range(clips), split="test", scale=2)
        for drawn in ("plain", "textured") if mechanism in ("rigid_body", "collision") else ("plain",):
            films = [clip.video if drawn == "plain" else textured(clip, clip.seed) for clip in made]
            seen = [perceive(film) for film in films]
            judged = [judge(clip, perception) for clip, (perception, _) in zip(made, seen, strict=True)]
            row = {"mechanism": mechanism, "drawn": drawn, "clips": clips, "kept": sum(not why for _, why in seen)}
            row |= {
                "iou": round(float(np.median([one.iou for one in judged])), 3),
                "iou_10": round(float(np.quantile([one.iou for one in judged], 0.1)), 3),
                "track_px": round(float(np.nanmedian([one.track_px for one in judged])), 3),
                "track_px_90": round(float(np.nanmedian([one.track_px_90 for one in judged])), 3),
            }
            print(json.dumps(row), flush=True)


def speed(rounds):
    """Clips a second of both, in turns."""
    cv2.setNumThreads(1)
    made = [physworld.simulate("collision", seed, split="test", scale=2).video for seed in range(8)]
    rates = {"embedded experts": [], "MOG2 and Lucas-Kanade": []}
    for _ in range(rounds):
        for who, work in (("embedded experts", perceive), ("MOG2 and Lucas-Kanade", peer)):
            begun = time.process_time()
            for film in made:
                work(film)
            rates[who].append(len(made) / (time.process_time() - begun))
    ratio = np.array(rates["embedded experts"]) / np.array(rates["MOG2 and Lucas-Kanade"])
    for who, values in rates.items():
        print(json.dumps({"who": who, "clips_per_cpu_s": round(float(np.median(values)), 2)}))
    spread = [round(float(v), 3) for v in (ratio.min(), ratio.max())]
    print(json.dumps({"ratio": round(float(np.median(ratio)), 3), "spread": spread}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    quality(asked.clips) if asked.what == "quality" else speed(asked.rounds)
