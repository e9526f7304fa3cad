"""A clip as witnesses and experts see it: RGB, times, a name, and nothing else; what several need is computed once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, UInt8

from mmphysvideo.colours import MOST
from mmphysvideo.pipe.background import background_of, foreground_of
from mmphysvideo.pipe.bodies import bodies_of
from mmphysvideo.pipe.camera import Camera, camera_of

__all__ = ["Seen"]


@dataclass(frozen=True)
class Seen:
    """One clip in memory."""

    name: str
    frames: UInt8[np.ndarray, "t h w 3"]
    times_s: Float64[np.ndarray, " t"]
    most: int = MOST

    @cached_property
    def camera(self) -> Camera:
        """How the camera moves."""
        return camera_of(self.frames)

    @cached_property
    def bodies(self) -> UInt8[np.ndarray, "t h w"]:
        """Labels of what moves, the largest body 1; by motion alone."""
        laid, seen = self.camera.stabilised(self.frames)
        background = background_of(laid, seen)
        return self.camera.back(bodies_of(laid, foreground_of(laid, seen, background), most=self.most))
