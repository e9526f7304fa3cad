"""Vision-language models as witnesses: an OpenAI-compatible server, or a transformers model in a folder.

The model sees numbered frames and answers with one JSON object. What comes back is read leniently (code fences, text
around the object, trailing commas, boxes in pixels, one text where a list belongs); what still does not fit the schema
is sent back with what is wrong, `repairs` times. A server that does not answer in time, or answers 408, 409, 429 or
5xx, is asked again, with growing pauses, `retries` times (the openai package's own rule). Then it is NoEvidence: the
clip is listed, never lost.
"""

import base64
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from pydantic import ValidationError

from mmphysvideo.pipe.evidence import CAMERA, Evidence, NoEvidence
from mmphysvideo.pipe.seen import Seen
from mmphysvideo.pipe.settings import Witness

__all__ = ["LocalModel", "Server", "ask", "read_answer", "shown_frames"]

QUESTION = """You see {count} frames of one video clip of {total} frames, numbered {numbers}. Work step by step, and \
write down only what the frames show.
1. List the things that visibly move, deform, flow, or make others do so: at most {most} subjects.
2. For each, cite the numbers of frames that show it and its change, and say why these frames show it.
3. Give each a box [left, top, right, bottom], each 0 to 1, in the first frame that you cite for it.
4. Name the physical processes (for example: collision, free fall, pouring, melting, rolling) and each subject's role: \
agent (acts), patient (is acted on) or other.
5. Say how the camera moves: {camera}.
6. keep is false when no physical process can be seen. caption: one or two plain sentences about subjects and process.
Answer with one JSON object and nothing else:
{{"clip": "{name}", "process": ["..."], "subjects": [{{"id": 1, "name": "...", "role": "agent", "evidence_frames": \
[0], "box": [0.1, 0.2, 0.3, 0.4], "why": "..."}}], "camera_motion": "static", "keep": true, "caption": "..."}}"""
MEND = "This does not fit: {why}. Answer again with the corrected JSON object and nothing else."
LONGEST = 20_000
"""Characters of an answer that are looked at."""


def shown_frames(total: int, count: int) -> list[int]:
    """Numbers of the frames that a model sees, evenly spread.

    >>> shown_frames(33, 5)
    [0, 8, 16, 24, 32]
    """
    return sorted({int(k) for k in np.linspace(0, total - 1, min(total, count)).round()})


def read_answer(text: str, height: int, width: int) -> Evidence:
    """Read what a model wrote; ValueError says in one line what does not fit."""
    try:
        raw = json.loads(_object_in(text[:LONGEST]))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON object ({error})") from None
    try:
        return Evidence.model_validate(_mended(raw, height, width))
    except ValidationError as error:
        first = error.errors()[:3]
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in first)
        raise ValueError(told[:500]) from None


def _object_in(text: str) -> str:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return text
    return re.sub(r",(\s*[}\]])", r"\1", text[start : end + 1])


def _mended(raw: Any, height: int, width: int) -> Any:
    """Put right what is meant plainly; the schema judges the rest."""
    if not isinstance(raw, dict):
        return raw
    raw = dict(raw)
    if isinstance(raw.get("process"), str):
        raw["process"] = [raw["process"]]
    if raw.get("camera_motion") not in CAMERA:
        raw["camera_motion"] = "unknown"
    subjects = raw.get("subjects")
    if isinstance(subjects, dict):
        subjects = [subjects]
    if isinstance(subjects, list):
        raw["subjects"] = [_subject(one, k, height, width) for k, one in enumerate(subjects, 1)]
    return raw


def _subject(raw: Any, number: int, height: int, width: int) -> Any:
    if not isinstance(raw, dict):
        return raw
    raw = {"id": number, **raw}
    if raw.get("role") not in ("agent", "patient", "other"):
        raw["role"] = "other"
    frames = raw.get("evidence_frames")
    raw["evidence_frames"] = frames if isinstance(frames, list) else [frames]
    box = raw.get("box")
    if isinstance(box, dict):
        box = [box.get(k) for k in ("left", "top", "right", "bottom")]
    numbers = [float(v) for v in box if isinstance(v, int | float)] if isinstance(box, list) else []
    if len(numbers) == 4 and max(numbers) > 1.5:  # in pixels
        box = [numbers[0] / width, numbers[1] / height, numbers[2] / width, numbers[3] / height]
    return raw | {"box": box}


def ask(model: Any, clip: Seen, settings: Witness) -> Evidence:
    """Ask a model about a clip, and again while its answer does not fit; NoEvidence when it never does."""
    h, w = clip.frames.shape[1:3]
    numbers = shown_frames(len(clip.frames), settings.frames)
    question = QUESTION.format(
        count=len(numbers),
        total=len(clip.frames),
        numbers=", ".join(map(str, numbers)),
        most=clip.most,
        camera=", ".join(CAMERA),
        name=clip.name,
    )
    talk: list[tuple[str, str]] = []
    why = ""
    for _ in range(settings.repairs + 1):
        answer = model.answer(clip.frames[numbers], numbers, question, talk)
        try:
            return read_answer(answer, h, w).model_copy(update={"clip": clip.name})
        except ValueError as error:
            why = str(error)
            talk += [("assistant", answer[:4000]), ("user", MEND.format(why=why))]
    raise NoEvidence(f"{model.name} gave no evidence that fits in {settings.repairs + 1} answers; the last: {why}")


@dataclass(frozen=True)
class Server:
    """A model behind an OpenAI-compatible server; the key comes from an environment variable and is never written."""

    settings: Witness

    @property
    def name(self) -> str:
        """Model and server."""
        return f"{self.settings.model} at {self.settings.url}"

    def testify(self, clip: Seen) -> Evidence:
        """Ask for evidence."""
        return ask(self, clip, self.settings)

    def answer(
        self, frames: UInt8[np.ndarray, "n h w 3"], numbers: Sequence[int], question: str, talk: list[tuple[str, str]]
    ) -> str:
        """One completion at temperature 0; NoEvidence when the server gives none."""
        import openai

        parts: list[dict[str, Any]] = []
        for number, frame in zip(numbers, frames, strict=True):
            parts.append({"type": "text", "text": f"frame {number}"})
            parts.append({"type": "image_url", "image_url": {"url": _as_url(frame)}})
        messages: list[Any] = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        messages += [{"role": role, "content": text} for role, text in talk]
        s, key = self.settings, os.environ.get(self.settings.key_variable) or "none"
        try:
            with openai.OpenAI(base_url=s.url, api_key=key, timeout=s.timeout_s, max_retries=s.retries) as client:
                reply = client.chat.completions.create(
                    model=s.model, messages=messages, temperature=0, max_tokens=s.max_tokens
                )
            text = reply.choices[0].message.content
        except openai.OpenAIError as error:
            raise NoEvidence(self._clean(f"{self.name}: {type(error).__name__}: {error}")[:500]) from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise NoEvidence(self._clean(f"{self.name} sent no chat completion ({error})")[:500]) from None
        return text if isinstance(text, str) else ""

    def _clean(self, text: str) -> str:
        key = os.environ.get(self.settings.key_variable)
        return " ".join((text.replace(key, "[key]") if key else text).split())


@dataclass(frozen=True)
class LocalModel:
    """A vision-language model of transformers in a folder, greedy; safetensors only, none of the folder's code."""

    settings: Witness

    @property
    def name(self) -> str:
        """Where the model lies."""
        return self.settings.model

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = self.settings.model
        try:
            processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False
            )
        except OSError as error:
            raise ValueError(f"no vision-language model can be loaded from {folder!r}: {error}") from None
        return processor, model.to(self.settings.device).eval()

    def testify(self, clip: Seen) -> Evidence:
        """Ask for evidence."""
        return ask(self, clip, self.settings)

    def answer(
        self, frames: UInt8[np.ndarray, "n h w 3"], numbers: Sequence[int], question: str, talk: list[tuple[str, str]]
    ) -> str:
        """The greedy answer."""
        import torch
        from PIL import Image

        processor, model = self._loaded
        parts: list[dict[str, Any]] = []
        for number, frame in zip(numbers, frames, strict=True):
            parts.append({"type": "text", "text": f"frame {number}"})
            parts.append({"type": "image", "image": Image.fromarray(frame)})
        messages: list[Any] = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        messages += [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in talk]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=self.settings.max_tokens)
        new = out[:, inputs["input_ids"].shape[1] :]
        return str(processor.batch_decode(new, skip_special_tokens=True)[0])


def _as_url(frame: UInt8[np.ndarray, "h w 3"]) -> str:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
