"""Draw docs/images/own-clips.png from the videos that docs/own-clips.md makes.

`python docs/examples/own_clips_picture.py`, run in the folder that holds `clips` and `runs/mine`. Rows: the film as
training sees it, 32 x 32 pixels, the base, and each recipe's side; frames from left to right.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.picture import strip
from trainers import ClipSpec, video
from trainers.pictures import save

FILM = Path("clips/sam2_04_coffee.mp4")
RECIPES = ("pila", "prophy", "phantom", "student")
SIDE = 256  # of a video in a comparison


def sides(path: Path) -> list[np.ndarray]:
    """The videos of a comparison, left and right."""
    film = video.read(path).frames
    return [strip(film[:, -SIDE:, at][:, 4::8, 4::8]) for at in (slice(SIDE), slice(-SIDE, None))]


def draw(out: Path) -> Path:
    """Write the picture."""
    seen = strip(video.load(FILM, ClipSpec(17, 8, 32, 32)).frames)
    shown = {name: sides(Path(f"runs/mine/{name}.mp4")) for name in RECIPES}
    rows = {FILM.name: seen, "base": shown["pila"][0]} | {name: both[1] for name, both in shown.items()}
    figure = Figure(figsize=(6.4, 1.12 * len(rows)), layout="constrained")
    for axis, (name, drawn) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axis.imshow(drawn, interpolation="nearest")
        axis.set_ylabel(name.replace("sam2_04_", ""), rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    return save(figure, out, dpi=90)


if __name__ == "__main__":
    print(draw(Path(__file__).parents[1] / "images" / "own-clips.png"))
