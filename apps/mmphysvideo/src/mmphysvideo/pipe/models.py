"""Experts with weights: SAM 2 for video and Depth Anything through transformers, CoTracker when it is installed.

Each takes a folder (or a hub name) and loads with its first clip; weights are safetensors, none of a folder's code is
run. Sizes, thresholds and prompts are the models' own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from mmphysvideo.perception import Tracks
from mmphysvideo.pipe.evidence import Subject, pixels_of
from mmphysvideo.pipe.flow import seeds_of
from mmphysvideo.pipe.seen import Seen

__all__ = ["CoTracker", "DepthAnything", "Sam2"]

FIELD_OF_VIEW = math.radians(60)
"""Of the longer side, where the depth model does not know the camera: our choice."""
NEAR_TO_FAR = 10.0
"""Ratio of the farthest to the nearest Z that relative inverse depth is spread over: it has no scale. Our choice."""


@dataclass(frozen=True)
class Sam2:
    """SAM 2 for video (`Sam2VideoModel`): each subject's box in its first evidence frame, followed both ways."""

    name: str
    device: str = "cpu"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        processor = _from(Sam2VideoProcessor, self.name, "SAM 2 for video")
        model = _from(Sam2VideoModel, self.name, "SAM 2 for video", use_safetensors=True)
        return processor, model.to(self.device).eval()

    def segment(self, clip: Seen, subjects: Sequence[Subject]) -> UInt8[np.ndarray, "t h w"]:
        """Where masks overlap, the more certain one has the pixel."""
        processor, model = self._loaded
        t, h, w, _ = clip.frames.shape
        labels, best = np.zeros((t, h, w), np.uint8), np.zeros((t, h, w), np.float32)
        begun: dict[int, dict[int, list[int]]] = {}
        for k, subject in enumerate(subjects, 1):
            ys, xs = pixels_of(subject.box, h, w)
            first = next(f for f in subject.evidence_frames if 0 <= f < t)
            begun.setdefault(first, {})[k] = [xs.start, ys.start, xs.stop, ys.stop]
        for first, boxes in begun.items():  # a session of transformers follows what begins in one frame
            with torch.no_grad():
                session = processor.init_video_session(video=list(clip.frames), inference_device=self.device)
                asked = {"obj_ids": list(boxes), "input_boxes": [list(boxes.values())]}
                processor.add_inputs_to_inference_session(session, frame_idx=first, **asked)
                for out in (
                    out
                    for reverse in (False, True)
                    for out in model.propagate_in_video_iterator(session, start_frame_idx=first, reverse=reverse)
                ):
                    logits = processor.post_process_masks([out.pred_masks], [[h, w]], binarize=False)[0]
                    for k, mine in zip(boxes, logits[:, 0].float().cpu().numpy(), strict=True):
                        surer = mine > best[out.frame_idx]
                        labels[out.frame_idx][surer], best[out.frame_idx][surer] = k, mine[surer]
        return labels


@dataclass(frozen=True)
class DepthAnything:
    """Depth Anything (V1, V2, metric or relative) frame by frame, each frame's scale and shift fitted to the first's.

    Relative models give inverse depth of no scale; it is spread over Z from 1 to 10.
    """

    name: str
    device: str = "cpu"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        processor = _from(AutoImageProcessor, self.name, "a depth model")
        model = _from(AutoModelForDepthEstimation, self.name, "a depth model", use_safetensors=True)
        return processor, model.to(self.device).eval()

    def depth(self, clip: Seen, masks: UInt8[np.ndarray, "t h w"]) -> tuple[Float32[np.ndarray, "t h w"], float | int]:
        """Z over the clip; what moves does not take part in the fit of the frames."""
        processor, model = self._loaded
        h, w = clip.frames.shape[1:3]
        found = []
        for frame in clip.frames:
            inputs = processor(images=frame, return_tensors="pt").to(self.device)
            with torch.no_grad():
                out = model(**inputs)
            done = processor.post_process_depth_estimation(out, target_sizes=[(h, w)])[0]["predicted_depth"]
            found.append(done.float().cpu().numpy())
        values = np.stack(found)
        ground = (masks == 0).all(0)
        if ground.sum() > 16:
            values = np.stack([_aligned(v, values[0], ground) for v in values])
        focal = 0.5 * max(h, w) / math.tan(FIELD_OF_VIEW / 2)
        if getattr(model.config, "depth_estimation_type", "relative") == "metric":
            return np.maximum(values, 1e-3).astype(np.float32), focal
        low, high = np.percentile(values, (1, 99))
        near = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
        return (1 / (1 / NEAR_TO_FAR + near * (1 - 1 / NEAR_TO_FAR))).astype(np.float32), focal


@dataclass(frozen=True)
class CoTracker:
    """CoTracker (the `cotracker` package of its authors), with weights from a safetensors file; seeds as for flow."""

    name: str
    device: str = "cpu"

    @cached_property
    def _loaded(self) -> Any:
        try:
            predictors = import_module("cotracker.predictor")  # asked for by name: no index has it
        except ImportError:
            raise ValueError(
                "experts.tracker asks for CoTracker, which is not installed: "
                "pip install git+https://github.com/facebookresearch/co-tracker, or say experts.tracker=flow"
            ) from None
        from safetensors.torch import load_file

        if not Path(self.name).is_file():
            raise ValueError(f"expected CoTracker's weights as a safetensors file, found none at {self.name}")
        predictor = predictors.CoTrackerPredictor(checkpoint=None)
        predictor.model.load_state_dict(load_file(self.name))
        return predictor.to(self.device).eval()

    def track(self, clip: Seen, masks: UInt8[np.ndarray, "t h w"]) -> Tracks:
        """Ask for every seed of each subject's first frame, followed both ways."""
        t = len(clip.frames)
        seeds, firsts, subjects = [], [], []
        for k in range(1, int(masks.max(initial=0)) + 1):
            shown = (masks == k).any((1, 2))
            if shown.any():
                first = int(shown.argmax())
                new = seeds_of(masks[first] == k, np.zeros((0, 2), np.float32))
                seeds.append(new)
                firsts += [first] * len(new)
                subjects += [k] * len(new)
        if not firsts:
            return Tracks(np.zeros((0, t, 2), np.float32), np.zeros((0, t), bool), np.zeros(0, np.uint8))
        queries = np.concatenate([np.array(firsts, np.float32)[:, None], np.concatenate(seeds)[:, ::-1]], 1)
        video = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None].float().to(self.device)
        with torch.no_grad():
            tracks, visible = self._loaded(
                video, queries=torch.from_numpy(queries.copy())[None].to(self.device), backward_tracking=True
            )
        position = tracks[0].transpose(0, 1).float().cpu().numpy()[..., ::-1].astype(np.float32)
        return Tracks(position, visible[0].transpose(0, 1).bool().cpu().numpy(), np.array(subjects, np.uint8))


def _aligned(
    value: Float32[np.ndarray, "h w"], to: Float32[np.ndarray, "h w"], ground: np.ndarray
) -> Float32[np.ndarray, "h w"]:
    """a value + b, nearest to `to` on the ground (least squares)."""
    x, y = value[ground], to[ground]
    spread = float(x.var())
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 1e-12 else 1.0
    return (slope * (value - x.mean()) + y.mean()).astype(np.float32)


def _from(kind: Any, name: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except ImportError as error:  # SAM 2's processor resizes with torchvision
        missing = " ".join(str(error).split())[:200]
        raise ValueError(f"{what} needs more than is installed ({missing}): pip install torchvision") from None
    except OSError as error:
        raise ValueError(f"{what} cannot be loaded from {name!r}: {' '.join(str(error).split())[:300]}") from None
