"""Optical flow of videos and its form on the latent grid.

Flow is forward: at pixel p of frame f it is the displacement to frame f + 1, in pixels a frame, component i along
spatial axis i: (y, x), y down. (OpenCV and torchvision give (x, y); it is swapped here.)

DIS estimates on patches of 8 pixels: on small pictures it is run on an enlarged copy and scaled back. It sees one grey
channel, so colours are projected on the clip's own principal colour axis first: a red ball on a green ground of equal
brightness still moves.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from backbones.contract import Spec

__all__ = ["latent_flow", "optical_flow"]

LEAST = 128  # DIS on smaller pictures is enlarged to this side, RAFT accepts no smaller ones


def optical_flow(
    video: UInt8[np.ndarray, "t h w 3"],
    method: str = "dis",
    *,
    weights: str | Path | None = None,
) -> Float[Tensor, "t-1 2 h w"]:
    """Give the forward flow (y, x) in pixels a frame; `weights` is the file of torchvision's RAFT for `method="raft"`.

    ValueError for fewer than two frames or an unknown method; ImportError or ValueError when RAFT's parts are missing.
    """
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.shape[3:] != (3,):  # pyright: ignore
        raise ValueError(
            f"expected a uint8 numpy video (t, h, w, 3), got {video.dtype} of {tuple(video.shape)}."
            " From a video (3, t, h, w) in [-1, 1]: ((v + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()."
        )
    if len(video) < 2:
        raise ValueError(f"expected at least 2 frames, got {len(video)}: flow lies between frames")
    if method not in ("dis", "raft"):
        raise ValueError(f"expected method 'dis' or 'raft', got {method!r}")
    h, w = video.shape[1:3]
    grow = max(1, -(-LEAST // min(h, w)))
    cv2 = _cv2()
    large = np.stack([cv2.resize(f, (w * grow, h * grow), interpolation=cv2.INTER_CUBIC) for f in video])
    pairs = _dis(large, finest=2 if grow > 1 else 1) if method == "dis" else _raft(large, weights)
    flow = torch.stack([torch.from_numpy(np.ascontiguousarray(xy[..., ::-1])).permute(2, 0, 1) for xy in pairs])
    return F.avg_pool2d(flow.float(), grow) / grow if grow > 1 else flow.float()


def latent_flow(flow: Float[Tensor, "f 2 h w"], spec: Spec) -> Float[Tensor, "2 t y x"]:
    """Give the velocity on the latent grid in latent pixels per `stride` source frames (per 4 for Wan).

    The rate at a frame is the mean of the flow into it and out of it (one-sided at the ends); a latent takes the mean
    rate of the frames that it covers, so the velocity belongs to tau_j; space is averaged over the VAE's stride. Latent
    0 is the forward flow 0 -> 1 times the stride. ValueError for a frame count or size that the VAE does not take.
    """
    _, t, y, x = spec.latent.shape(len(flow) + 1, *flow.shape[2:])
    rate = torch.cat([flow[:1], (flow[:-1] + flow[1:]) / 2, flow[-1:]])
    latents = torch.stack([rate[list(spec.time.frames_of(j))].mean(0) for j in range(t)], 1)
    sy, sx = spec.latent.stride[1:]
    scale = latents.new_tensor([spec.time.stride / sy, spec.time.stride / sx]).view(2, 1, 1, 1)
    return F.avg_pool2d(latents, (sy, sx)).view(2, t, y, x) * scale


def _dis(video: UInt8[np.ndarray, "t h w 3"], *, finest: int) -> Iterator[np.ndarray]:
    grey, cv2 = _principal_grey(video), _cv2()
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    engine.setFinestScale(finest)  # an enlarged picture has nothing to see at its finest scales
    for first, second in pairwise(grey):
        yield engine.calc(first, second, None)


def _principal_grey(video: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w"]:
    """Project colours on their main axis and spread them over 0..255."""
    rgb = video.reshape(-1, 3).astype(np.float64)
    axis = np.linalg.eigh(np.cov(rgb.T))[1][:, -1]
    value = video.astype(np.float64) @ axis
    low, high = value.min(), value.max()
    return ((value - low) * (255.0 / max(high - low, 1e-6))).astype(np.uint8)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("optical flow needs OpenCV: uv pip install opencv-python-headless") from error
    return cv2


def _raft(video: UInt8[np.ndarray, "t h w 3"], weights: str | Path | None) -> Iterator[np.ndarray]:
    if weights is None or not Path(weights).is_file():
        raise ValueError(
            f"RAFT needs its weights and found none at {weights}: save torchvision's raft_large as safetensors"
            " (safetensors.torch.save_file(raft_large(weights='DEFAULT').state_dict(), PATH)) and pass weights=PATH, or"
            " use method='dis', which needs none."
        )
    path = Path(weights)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"expected RAFT's weights as .safetensors, got {path.name}: nothing is unpickled. Convert it once:"
            " safetensors.torch.save_file(torch.load(FILE, weights_only=True), PATH)"
        )
    try:
        from torchvision.models.optical_flow import raft_large  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("RAFT needs torchvision: uv pip install 'physbackbones[raft]'") from error
    from safetensors.torch import load_file

    model = raft_large(weights=None).eval()
    model.load_state_dict(load_file(path))
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 127.5 - 1
    h, w = frames.shape[2:]
    frames = F.pad(frames, (0, -w % 8, 0, -h % 8), mode="replicate")
    for first, second in pairwise(frames):
        with torch.inference_mode():
            flow = model(first[None], second[None])[-1][0, :, :h, :w]
        yield flow.permute(1, 2, 0).numpy()
