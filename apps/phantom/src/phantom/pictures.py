"""Pictures: the physics latent as colours over time, and pushes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phantom.force import FAR, NEAR, Point, Wind
from trainers.pictures import save

__all__ = ["colours", "physics", "pushed"]


def colours(z: Float[Tensor, "c t y x"]) -> UInt8[np.ndarray, "t y x 3"]:
    """The three strongest channels of z (they are principal ones) as red, green and blue, each over its own range."""
    three = z[[min(i, len(z) - 1) for i in range(3)]].float()  # fewer channels: the last one again
    low, high = (torch.quantile(three.flatten(1), q, dim=1)[:, None, None, None] for q in (0.02, 0.98))
    scaled = ((three - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return (scaled * 255).round().byte().permute(1, 2, 3, 0).numpy()


def physics(
    z: Float[Tensor, "c t y x"], film: UInt8[np.ndarray, "frames h w 3"], adapter: Any, path: Path, prompt: str
) -> Path:
    """Draw the frames of each latent's centre above the physics latent in colours; write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tinted, times = colours(z), adapter.times_s(z.shape[1])
    fps = adapter.backbone.spec.time.fps
    figure, axes = plt.subplots(2, z.shape[1], figsize=(1.7 * z.shape[1], 4), squeeze=False)
    for j, time in enumerate(times.tolist()):
        axes[0, j].imshow(film[min(len(film) - 1, round(time * fps))])
        axes[0, j].set_title(f"{time:.2f} s", fontsize=9)
        axes[1, j].imshow(tinted[j], interpolation="nearest")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_ylabel("video", fontsize=9)
    axes[1, 0].set_ylabel(f"physics latent\n({adapter.recipe.physics.kind})", fontsize=9)
    figure.suptitle(f"“{prompt}”", fontsize=10, parse_math=False)
    legend = "channels 1, 2, 3 of z as red, green, blue, each over its own range"
    figure.text(0.5, 0.01, legend, ha="center", fontsize=8)
    return save(figure, path)


def pushed(force: Point | Wind, film: UInt8[np.ndarray, "t h w 3"], path: Path) -> Path:
    """Draw a force over the first frame, as an arrow from where it acts, cut at the border; write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patheffects
    from matplotlib import pyplot as plt

    height, width = film.shape[1:3]
    turn = np.deg2rad(force.angle)
    outlined = [patheffects.withStroke(linewidth=4, foreground="black")]
    figure, axis = plt.subplots(figsize=(4, 4 * height / width + 0.5))
    axis.imshow(film[0], extent=(0, width, 0, height))
    if isinstance(force, Point):
        far = width * (NEAR + (FAR - NEAR) * force.strength)
        starts, what = [(force.x * width, force.y * height)], "push"
    else:
        far = width * (0.05 + 0.1 * force.strength)
        starts = [(width * (i + 0.5) / 4, height * (j + 0.5) / 4) for i in range(4) for j in range(4)]
        what = "wind"
    axis.plot(*np.transpose(starts), "o", color="white", markersize=4, path_effects=outlined, clip_on=False)
    for x, y in starts:
        end = np.clip((x + far * np.cos(turn), y + far * np.sin(turn)), 0, (width, height))
        arrow = {"arrowstyle": "-|>", "color": "white", "lw": 2, "mutation_scale": 14, "path_effects": outlined}
        axis.annotate("", xy=(float(end[0]), float(end[1])), xytext=(x, y), arrowprops=arrow)
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(f"{what}: {force.angle:g} degrees, strength {force.strength:g}", fontsize=9)
    return save(figure, path)
