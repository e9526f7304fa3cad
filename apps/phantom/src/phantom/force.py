"""Force prompts: a push at a point, or wind, as a tensor over the frames, and the layer that gives it to the physics.

The convention is that of the Force Prompting data sets: angles in degrees, 0 to the right and 90 up; strength within
[0, 1] of the data set's range; a point in pixels of a picture whose origin is its lower left corner. A point force is
a Gaussian spot that starts at the point and moves along the angle, the farther the stronger; wind is three constant
channels: strength in [-1, 1], cosine and sine of the angle. Axes of the tensor are (3, t, y, x), y down as everywhere.

References: Force Prompting (Gillman et al., 2025), its point- and wind-force tensors. Where Phantom feeds them in is
not printed: into the tokens of the physics stream, through a layer that begins at zero, is our choice.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FAR", "NEAR", "Injector", "Point", "Pushed", "Wind", "parse_point", "parse_wind", "read_forces", "tensor"]

SPOT = 20 / 480
"""Standard deviation of the spot in heights of the picture (20 px of 480)."""
NEAR, FAR = 1 / 8, 1 / 2
"""How far the spot moves in widths of the picture, for the weakest and the strongest force."""


@dataclass(frozen=True)
class Point:
    """A push: where, in fractions of width and height from the lower left corner; which way (degrees); how strongly
    (0 to 1).
    """

    x: float | int
    y: float | int
    angle: float | int
    strength: float | int

    def __post_init__(self) -> None:
        _within("x", self.x, 0, 1)
        _within("y", self.y, 0, 1)
        _within("strength", self.strength, 0, 1)
        _finite("angle", self.angle)


@dataclass(frozen=True)
class Wind:
    """Wind everywhere: which way (degrees) and how strongly (0 to 1)."""

    angle: float | int
    strength: float | int

    def __post_init__(self) -> None:
        _within("speed", self.strength, 0, 1)
        _finite("angle", self.angle)


def tensor(force: Point | Wind, frames: int, height: int, width: int) -> Float[Tensor, "3 t y x"]:
    """Draw a force over the frames of a clip.

    >>> tensor(Wind(angle=90, strength=1.0), 1, 1, 1).flatten().round(decimals=3).tolist()
    [1.0, 0.0, 1.0]
    """
    if isinstance(force, Wind):
        turn = math.radians(force.angle)
        values = torch.tensor([2 * force.strength - 1, math.cos(turn), math.sin(turn)])
        return values.view(3, 1, 1, 1).repeat(1, frames, height, width)
    turn, way = math.radians(force.angle), width * (NEAR + (FAR - NEAR) * force.strength)
    along = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    x = force.x * width + along * way * math.cos(turn)
    y = (1 - force.y) * height - along * way * math.sin(turn)  # up in the convention is less y here
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    square = (rows[None, :, None] - y[:, None, None]) ** 2 + (columns[None, None] - x[:, None, None]) ** 2
    return torch.exp(-0.5 * square / (SPOT * height) ** 2)[None].repeat(3, 1, 1, 1)


def parse_point(text: str) -> Point:
    """Read `x,y,angle,strength`, as the command line takes it.

    >>> parse_point("0.5,0.25,180,0.1")
    Point(x=0.5, y=0.25, angle=180.0, strength=0.1)
    """
    return Point(*_numbers(text, "x,y,angle,strength", 4))


def parse_wind(text: str) -> Wind:
    """Read `angle,speed`.

    >>> parse_wind("0,1")
    Wind(angle=0.0, strength=1.0)
    """
    return Wind(*_numbers(text, "angle,speed", 2))


@dataclass(frozen=True)
class Pushed:
    """A clip of a Force Prompting data set: its file, its caption and the force in it."""

    path: Path
    caption: str
    force: Point | Wind


def read_forces(table: Path, root: Path | None = None) -> tuple[list[Pushed], list[str]]:
    """Read a Force Prompting CSV; give its rows, and a line for each that was left out.

    Columns: `video` or `image`, `angle`, `force` (or `speed`, for wind), `coordx`, `coordy`, `width`, `height`,
    `caption`; without coordinates a row is wind. Strengths are scaled to [0, 1] over the table. Files must lie inside
    `root` (none: the table's folder). ValueError for a table that cannot be read or holds no usable row.
    """
    root = (root or table.parent).resolve()
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected a CSV of forces at {table}, but it cannot be read: {error}") from None
    parsed: list[tuple[Path, str, dict[str, float]]] = []
    notes: list[str] = []
    for number, row in enumerate(rows, 2):
        try:
            parsed.append(_row(row, root))
        except ValueError as error:
            notes.append(f"{table.name}, line {number}: {error}")
    if not parsed:
        why = f" ({notes[0]})" if notes else ""
        raise ValueError(f"none of the {len(rows)} rows of {table} can be used{why}")
    strengths = [values["force"] for *_, values in parsed]
    low, high = min(strengths), max(strengths)
    found = []
    for path, caption, v in parsed:
        strength = (v["force"] - low) / (high - low) if high > low else 0.5
        force: Point | Wind = Wind(v["angle"], strength)
        if "coordx" in v:
            force = Point(v["coordx"] / v["width"], v["coordy"] / v["height"], v["angle"], strength)
        found.append(Pushed(path, caption, force))
    return found, notes


class Injector(nn.Module):
    """Gives a force tensor to the tokens of the physics stream, on two ways of two layers, the second begun at zero.

    Where the force is: averaged to z's grid times `fine`, unshuffled, to each token its own. And as a whole: its first
    and last frame on `whole` x `whole` cells, to all tokens the same. There a push is a linear function of the input
    (the spot's centre, early and late), while a token sees the spot only while it passes by.

    The first layers begin so that a spot, which fills few cells (z has `rows` of them over the height), still moves a
    unit by about 1: with a layer's usual start it moves it by a sixth, and the push is hardly heard. Our choice.
    """

    def __init__(self, width: int, fine: int = 8, whole: int = 8, *, rows: int = 4) -> None:
        super().__init__()
        self.fine, self.whole = fine, whole
        self.inside, self.around = nn.Linear(3 * fine * fine, width), nn.Linear(6 * whole * whole, width)
        self.out, self.out_around = nn.Linear(width, width), nn.Linear(width, width)
        for first, cells, frames in ((self.inside, rows * fine, 1), (self.around, whole, 2)):
            spot = SPOT * cells  # a spot of this deviation in cells: its squares sum to pi spot^2 a channel
            nn.init.normal_(first.weight, std=(3 * frames * math.pi * spot**2) ** -0.5)
            nn.init.zeros_(first.bias)
        for last in (self.out, self.out_around):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, force: Float[Tensor, "b 3 f h w"], grid: tuple[int, int, int]) -> Float[Tensor, "b m d"]:
        """Give what is added to the tokens of a (t, y, x) grid; frame 0 is latent 0, then four frames a latent. A force
        of zeros is none and adds nothing.

        ValueError for a force over another number of frames than the latents cover.
        """
        t, y, x = grid
        frames = force.shape[2]
        stride = (frames - 1) // max(t - 1, 1)
        if force.shape[1] != 3 or stride * (t - 1) + 1 != frames or (t > 1 and stride < 1):
            raise ValueError(
                f"expected a force (b, 3, 4 x {t - 1} + 1 frames, height, width), got {tuple(force.shape)}"
            )
        parts = [force[:, :, :1]]
        if t > 1:
            parts.append(force[:, :, 1:].unflatten(2, (t - 1, stride)).mean(3))
        latents = torch.cat(parts, 2).transpose(1, 2).flatten(0, 1)
        cells = F.adaptive_avg_pool2d(latents, (y * self.fine, x * self.fine))
        tokens = F.pixel_unshuffle(cells, self.fine).flatten(2).transpose(1, 2)
        ends = F.adaptive_avg_pool2d(force[:, :, [0, -1]].flatten(1, 2), self.whole).flatten(1)
        added = self.out(F.silu(self.inside(tokens))).unflatten(0, (len(force), t)).flatten(1, 2)
        added = added + self.out_around(F.silu(self.around(ends)))[:, None]
        return added * force.flatten(1).any(1)[:, None, None]


def _row(row: dict[str, Any], root: Path) -> tuple[Path, str, dict[str, float]]:
    name = row.get("video") or row.get("image")
    if not name:
        raise ValueError("expected a file under `video` or `image`, got none")
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{name} lies outside {root}: move it in")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    caption = (row.get("caption") or "").strip()
    if not caption:
        raise ValueError("expected a caption, got none")
    strength = "force" if row.get("force") not in (None, "") else "speed"
    wanted = {"angle": "angle", "force": strength}
    if row.get("coordx") not in (None, ""):
        wanted |= {key: key for key in ("coordx", "coordy", "width", "height")}
    values: dict[str, float] = {}
    for key, column in wanted.items():
        try:
            values[key] = float(row[column])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"expected a number under `{column}`, got {row.get(column)!r}") from None
        _finite(column, values[key])
    if "width" in values and not (values["width"] > 0 and values["height"] > 0):
        raise ValueError(f"expected a positive width and height, got {values['width']:g} x {values['height']:g}")
    if "coordx" in values:
        _within("coordx / width", values["coordx"] / values["width"], 0, 1)
        _within("coordy / height", values["coordy"] / values["height"], 0, 1)
    return path, caption, values


def _numbers(text: str, names: str, count: int) -> Sequence[float]:
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"expected {names} (numbers), got {text!r}")
    return values


def _within(name: str, value: float | int, low: float | int, high: float | int) -> None:
    if not low <= value <= high:
        raise ValueError(f"expected {name} within {low:g} to {high:g}, got {value:g}")


def _finite(name: str, value: float | int) -> None:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}")
