"""What a Qwen2.5-VL or Qwen3-VL reads: a clip and a question as pixels and tokens, laid out as stock processors do.

    Qwen2.5-VL   <|vision_start|> V V V ... <|vision_end|>QUESTION
    Qwen3-VL     <0.3 seconds><|vision_start|> V V ... <|vision_end|><1.3 seconds><|vision_start|> V V ... QUESTION

and around it what the checkpoint's chat template writes. A token V stands for a cell: two frames of `2 * patch` pixels
squared, raster (t, h, w) over the clip; in Qwen3-VL a time stands before each t. Reading needs the tokenizer alone: the
stock video processors want torchvision, and they choose frames by index. What surprises: frames keep their whole extent
(both sides are scaled to multiples of a cell, the ratio changes a little), so that a map covers the whole frame; and
shorter questions of a batch are padded on the left, so that all answers begin at the same place.

References: the order of pixels in a patch is that of `Qwen2VLVideoProcessor.patchify` (transformers, Apache-2.0), the
limits of tokens a frame those of qwen-vl-utils. Tests compare both layouts with the stock processors where torchvision
is installed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from vlmdistill.clips import Clip, sample

__all__ = ["FAMILIES", "Inputs", "Reader"]

FAMILIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "qwen2_5_vl": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""The model types that can be read, with mean and deviation of their pixels."""

_START, _VIDEO, _END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"


@dataclass(frozen=True)
class Inputs:
    """A batch: what the model takes, and for each sample the grid (t, h, w) of its cells, their times, and how many of
    its last tokens are those of a forced answer (less one, which no token follows)."""

    tensors: dict[str, Tensor]
    grids: tuple[tuple[int, int, int], ...]
    times_s: tuple[Float[Tensor, " _"], ...]
    columns: tuple[Tensor, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reader:
    """How clips and questions become tokens.

    `patch`, `merge` and `group` are the model's (pixels of a patch, patches of a cell, frames of a cell); `tokens`
    bounds the cells of one frame, `fps` and `most` the frames.
    """

    tokenizer: Any
    family: str
    patch: int = 14
    merge: int = 2
    group: int = 2
    tokens: tuple[int, int] = (128, 768)
    fps: float = 2.0
    most: int = 768

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"expected a model of type {' or '.join(FAMILIES)}, got {self.family!r}")
        if not 1 <= self.tokens[0] <= self.tokens[1]:
            raise ValueError(f"expected 1 <= least <= most tokens a frame, got {self.tokens}")
        if not self.fps > 0 or self.most < self.group:
            raise ValueError(f"expected fps > 0 and at least {self.group} frames, got {self.fps} and {self.most}")

    def __call__(self, clips: Sequence[Clip], questions: Sequence[str], answers: Sequence[str] | None = None) -> Inputs:
        """Read clip i with question i, and with answer i where the words are given."""
        if not clips or len(clips) != len(questions) or (answers is not None and len(answers) != len(clips)):
            given = "none" if answers is None else len(answers)
            raise ValueError(
                f"expected one question (and answer) a clip, got {len(clips)} clips, {len(questions)} questions, "
                f"{given} answers"
            )
        once = {id(clip): clip for clip in clips}  # several questions may be about one clip
        looked = {key: self._see(clip) for key, clip in once.items()}
        seen = [looked[id(clip)] for clip in clips]
        rows, forced = [], []
        for (_, grid, times_s, _), clip, words in zip(seen, clips, questions, strict=True):
            rows.append(
                self.tokenizer(self._text(words, grid, times_s - clip.times_s[0]), add_special_tokens=False)[
                    "input_ids"
                ]
            )
        if answers is not None:
            for row, answer in zip(rows, answers, strict=True):
                ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
                if not ids:
                    raise ValueError("expected an answer of at least one token, got an empty one")
                forced.append(tuple(ids))
                row.extend(ids[:-1])  # rows are those that predict a token: nothing is asked of the last
        return self._batch(rows, seen, tuple(forced))

    def _see(self, clip: Clip) -> tuple[Float[Tensor, "n d"], tuple[int, int, int], Float[Tensor, " t"], float]:
        """Patches in the order of the vision tower, the grid of cells, their times, and the seconds of one."""
        index = sample(clip.times_s, fps=self.fps, most=self.most, group=self.group)
        times_s = clip.times_s[index].double()
        span = float(times_s[-1] - times_s[0]) / (len(index) - 1) or 1 / self.fps  # a still has no spacing of its own
        cell, (h, w) = self.patch * self.merge, self._cells(*clip.frames.shape[1:3])
        pixels = self._pixels(clip.frames[index], (h * cell, w * cell))
        t = len(index) // self.group
        cut = pixels.reshape(t, self.group, 3, h, self.merge, self.patch, w, self.merge, self.patch)
        patches = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w * self.merge**2, -1)
        return patches, (t, h, w), times_s.reshape(t, self.group).mean(1), span * self.group

    def _cells(self, height: int, width: int) -> tuple[int, int]:
        """Cells of a frame down and across: whole ones, the ratio nearly kept, their number within the bounds."""
        cell = self.patch * self.merge
        h, w = max(1, round(height / cell)), max(1, round(width / cell))
        least, most = self.tokens
        if h * w > most:
            scale = math.sqrt(most * cell**2 / (height * width))
            h, w = max(1, math.floor(height * scale / cell)), max(1, math.floor(width * scale / cell))
        elif h * w < least:
            scale = math.sqrt(least * cell**2 / (height * width))
            h, w = math.ceil(height * scale / cell), math.ceil(width * scale / cell)
        return h, w

    def _pixels(self, frames: UInt8[Tensor, "n y x 3"], size: tuple[int, int]) -> Float[Tensor, "n 3 y2 x2"]:
        """Resize as pictures are (bicubic in uint8, which only a CPU has; float32 overshoots), and standardise."""
        pixels = frames.permute(0, 3, 1, 2).cpu()
        if size != tuple(frames.shape[1:3]):
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in FAMILIES[self.family])
        return (pixels / 255 - mean) / std

    def _text(self, words: str, grid: tuple[int, int, int], times_s: Float[Tensor, " t"]) -> str:
        content = [{"type": "video"}, {"type": "text", "text": words}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        place = _START + _VIDEO + _END
        if text.count(place) != 1 or text.count(_VIDEO) != 1:
            raise ValueError(
                f"expected the chat template to write {place} once, got {text!r}: is this {self.family}'s tokenizer, "
                "and does the question hold no such token?"
            )
        t, h, w = grid
        if self.family == "qwen2_5_vl":
            return text.replace(place, _START + _VIDEO * (t * h * w) + _END)
        frame = _START + _VIDEO * (h * w) + _END
        return text.replace(place, "".join(f"<{s:.1f} seconds>{frame}" for s in times_s.tolist()))

    def _batch(self, rows: list[list[int]], seen: list[Any], forced: tuple[tuple[int, ...], ...]) -> Inputs:
        longest, video = max(map(len, rows)), self.tokenizer.convert_tokens_to_ids(_VIDEO)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :], mask[i, longest - len(row) :] = torch.tensor(row), 1
        grids = tuple(grid for _, grid, _, _ in seen)
        tensors = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": 2 * (ids == video).int(),  # without them positions would silently be those of a text
            "pixel_values_videos": torch.cat([patches for patches, _, _, _ in seen]),
            "video_grid_thw": torch.tensor([(t, h * self.merge, w * self.merge) for t, h, w in grids]),
        }
        if self.family == "qwen2_5_vl":
            tensors["second_per_grid_ts"] = torch.tensor([seconds for _, _, _, seconds in seen])
        columns = tuple((row == video).nonzero().flatten() for row in ids)
        for column, (t, h, w) in zip(columns, grids, strict=True):
            if len(column) != t * h * w:
                raise ValueError(
                    f"expected {t * h * w} video tokens, got {len(column)}: the tokenizer does not keep {_VIDEO}"
                )
        return Inputs(tensors, grids, tuple(times_s.float() for _, _, times_s, _ in seen), columns, forced)
