"""Ask a vision-language model about clips and see where it looks while it answers.

    look.rows[l, i] = attention of the row that predicted answer token i over the clip's cells (t, h, w), layer l
    look.map        = mean over layers and over answer tokens, less one at either end

Answers are generated (greedy, so the same each time) or given as words; the maps of a given answer equal those of the
same answer generated. A cell of the map is `2 * patch` pixels squared of the frame as the model saw it and two of its
frames; `times_s` are the mean times of these. The values are attention as it is: all cells of one row sum to the
share of attention that the video gets beside the words (`look.share`); `contrast` normalises. What surprises: border
cells and the first ones draw attention whatever is asked, which is why a neutral question's map is subtracted.

References: ProPhy (Wang et al., 2025); Qwen2.5-VL (Bai et al., 2025), Qwen3-VL. The layers, heads and tokens that are
averaged are our choice.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmdistill.attention import Heads, reading, select
from vlmdistill.clips import Clip
from vlmdistill.questions import NEUTRAL, PLACELESS, question
from vlmdistill.reader import FAMILIES, Inputs, Reader
from vlmdistill.targets import Contrast, contrast

__all__ = ["Look", "Vlm", "annotate", "load", "wrap"]


@dataclass(frozen=True)
class Look:
    """Where a model looked during one answer: a row for each layer and each of the answer's tokens."""

    rows: Float[Tensor, "l n t h w"]
    times_s: Float[Tensor, " t"]
    tokens: tuple[str, ...]
    answer: str

    @property
    def map(self) -> Float[Tensor, "t h w"]:
        """Mean over layers and tokens; the first and the last token are left out where three or more are there."""
        rows = self.rows[:, 1:-1] if len(self.tokens) > 2 else self.rows
        return rows.mean((0, 1))

    @property
    def share(self) -> float:
        """The part of all attention that the video gets, mean over the rows."""
        return float(self.rows.sum((2, 3, 4)).mean())


@dataclass(frozen=True)
class Vlm:
    """A Qwen2.5-VL or Qwen3-VL of transformers and the reader of its inputs; `name` goes into what is stored."""

    model: Any
    reader: Reader
    name: str

    def look(
        self,
        clips: Clip | Sequence[Clip],
        questions: str | Sequence[str],
        *,
        answers: str | Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
        new_tokens: int = 64,
    ) -> list[Look]:
        """Ask question i of clip i, in one batch, and read the attention of chosen layers and heads.

        One clip with several questions, or one question for several clips, is repeated. By default the middle third
        of the layers and all heads. With `answers` the words are given and one forward is all; otherwise up to
        `new_tokens` are generated.
        """
        clips = [clips] if isinstance(clips, Clip) else list(clips)
        asked = [questions] if isinstance(questions, str) else list(questions)
        clips = clips * len(asked) if len(clips) == 1 else clips
        asked = asked * len(clips) if len(asked) == 1 else asked
        forced = [answers] * len(clips) if isinstance(answers, str) else answers
        if self.model.training:
            raise ValueError("expected the model in evaluation mode, got training mode: call model.eval()")
        if new_tokens < 1:
            raise ValueError(f"expected new_tokens >= 1, got {new_tokens}")
        chosen = select(self.model, layers, heads)
        inputs = self.reader(clips, asked, forced)
        core = self.model.model
        tensors = {name: tensor.to(self.model.device) for name, tensor in inputs.tensors.items()}
        columns = [column.to(self.model.device) for column in inputs.columns]
        last = max(map(len, inputs.answers), default=1)
        core.rope_deltas = None  # left by an earlier call, it would move the positions of this one
        try:
            with torch.inference_mode(), reading(self.model, chosen, columns, last=last) as recorder:
                if inputs.answers:
                    core(**tensors, use_cache=False)  # not the head: S x vocabulary logits would be the peak
                    said = inputs.answers
                else:
                    said = self._generate(tensors, new_tokens)
        finally:
            core.rope_deltas = None
        return [
            self._look(recorder.rows(i), inputs, i, ids, from_end=bool(inputs.answers)) for i, ids in enumerate(said)
        ]

    def _generate(self, tensors: Mapping[str, Tensor], new_tokens: int) -> tuple[tuple[int, ...], ...]:
        """Greedy answers without the token that ends them."""
        tokenizer, config = self.reader.tokenizer, self.model.generation_config
        out = self.model.generate(
            **tensors,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
        stop = set(ends if isinstance(ends, list) else [ends])
        said = []
        for ids in out[:, tensors["input_ids"].shape[1] :].tolist():
            length = next((i for i, token in enumerate(ids) if token in stop), len(ids))
            said.append(tuple(ids[: max(length, 1)]))  # an empty answer still has the row that ended it
        return tuple(said)

    def _look(
        self, rows: Float[Tensor, "l r n"], inputs: Inputs, i: int, ids: tuple[int, ...], *, from_end: bool
    ) -> Look:
        mine = rows[:, -len(ids) :] if from_end else rows[:, : len(ids)]
        tokens = tuple(self.reader.tokenizer.convert_ids_to_tokens(list(ids)))
        answer = self.reader.tokenizer.decode(list(ids), skip_special_tokens=True)
        return Look(mine.unflatten(2, inputs.grids[i]).clone().cpu(), inputs.times_s[i], tokens, answer)


def annotate(
    vlm: Vlm,
    clip: Clip,
    categories: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
    new_tokens: int = 64,
    batch: int = 4,
) -> Contrast:
    """Ask for each category and the neutral question, `batch` at a time, and contrast the maps.

    Categories of `PLACELESS` have no question and get no map. `meta` holds all that decides the maps (model, layers,
    heads, questions, frames, version), and the answers.
    """
    if batch < 1:
        raise ValueError(f"expected batch >= 1, got {batch}")
    asked = {name: question(name) for name in dict.fromkeys(categories) if name not in PLACELESS}
    questions, looks = [NEUTRAL, *asked.values()], []
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        looks += vlm.look(clip, part, layers=layers, heads=heads, new_tokens=new_tokens)
    chosen: Heads = select(vlm.model, layers, heads)
    meta = {
        "model": vlm.name,
        "version": version("vlmdistill"),
        "layers": list(chosen),
        "heads": {str(layer): list(of) for layer, of in chosen.items()},
        "questions": {"neutral": NEUTRAL, **asked},
        "answers": dict(zip(["neutral", *asked], [look.answer for look in looks], strict=True)),
        "frames": {"fps": vlm.reader.fps, "tokens": list(vlm.reader.tokens), "most": vlm.reader.most},
        "new_tokens": new_tokens,
    }
    maps = {name: look.map for name, look in zip(asked, looks[1:], strict=True)}
    return contrast(maps, looks[0].map, looks[0].times_s, meta)


def load(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | str = "auto",
    tokens: tuple[int, int] = (128, 768),
    fps: float = 2.0,
) -> Vlm:
    """Load a checkpoint's folder, such as one of Qwen/Qwen2.5-VL-7B-Instruct or Qwen/Qwen3-VL-8B-Instruct, with SDPA.

    ValueError where the folder is not there, holds another type of model, has no chat template, or standardises
    pixels in another way than the two families do. Weights are safetensors.
    """
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLForConditionalGeneration,
    )

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"expected a folder with config.json, got {folder}: download the checkpoint first "
            "(`hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir FOLDER`)"
        )
    config = AutoConfig.from_pretrained(folder)
    classes = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
    if config.model_type not in classes:
        raise ValueError(f"expected a model of type {' or '.join(classes)}, got {config.model_type!r} in {folder}")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            stored = json.loads((folder / name).read_text(encoding="utf-8"))
            pixels = tuple(tuple(stored.get(key) or ()) for key in ("image_mean", "image_std"))
            if all(pixels) and pixels != FAMILIES[config.model_type]:
                raise ValueError(
                    f"expected mean and deviation {FAMILIES[config.model_type]} in {folder / name}, got {pixels}"
                )
    tokenizer, template = AutoTokenizer.from_pretrained(folder), folder / "chat_template.json"
    if tokenizer.chat_template is None and template.is_file():  # where older checkpoints keep it, for the processor
        tokenizer.chat_template = json.loads(template.read_text(encoding="utf-8"))["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(
            f"expected a tokenizer with a chat template in {folder}, got none: take an Instruct checkpoint"
        )
    model = classes[config.model_type].from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
    )
    return wrap(model.eval().to(device), tokenizer, tokens=tokens, fps=fps, name=folder.name)


def wrap(model: Any, tokenizer: Any, *, name: str, tokens: tuple[int, int] = (128, 768), fps: float = 2.0) -> Vlm:
    """Put a model and its tokenizer together; sizes of patches and cells come from the model's config."""
    vision = model.config.vision_config
    reader = Reader(
        tokenizer,
        model.config.model_type,
        vision.patch_size,
        vision.spatial_merge_size,
        vision.temporal_patch_size,
        tokens=tokens,
        fps=fps,
    )
    return Vlm(model, reader, name)
