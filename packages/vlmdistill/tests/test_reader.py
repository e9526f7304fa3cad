import importlib.util
import re

import pytest
import torch

from vlmdistill import Clip, Reader, tiny

VIDEO = "<|video_pad|>"


def text_of(vlm, inputs, i=0):
    kept = inputs.tensors["input_ids"][i][inputs.tensors["attention_mask"][i].bool()]
    return vlm.reader.tokenizer.decode(kept)


def test_each_cell_is_one_token_and_each_frame_of_qwen3_has_its_time(vlm, clips):
    inputs = vlm.reader(clips, ["What moves?", "And what else moves?"])
    assert inputs.grids == ((2, 5, 8), (4, 3, 4))
    for i, (t, h, w) in enumerate(inputs.grids):
        text = text_of(vlm, inputs, i)
        assert text.count(VIDEO) == t * h * w == len(inputs.columns[i])
        runs = [len(run) // len(VIDEO) for run in re.findall(rf"(?:{re.escape(VIDEO)})+", text)]
        assert runs == ([t * h * w] if vlm.reader.family == "qwen2_5_vl" else [h * w] * t)
    said = re.findall(r"<([\d.]+) seconds>", text_of(vlm, inputs, 0))
    assert said == ([] if vlm.reader.family == "qwen2_5_vl" else ["0.3", "1.7"])


def test_times_are_those_of_the_frames_that_were_merged(vlm, clips):
    inputs = vlm.reader(clips[:1], ["What?"])
    assert inputs.times_s[0].tolist() == [2.5 / 8, 13.5 / 8]  # frames 0, 5, 11, 16 at 8 a second
    later = Clip(clips[0].frames, clips[0].times_s + 100)
    again = vlm.reader([later], ["What?"])
    assert again.times_s[0].tolist() == [100 + 2.5 / 8, 100 + 13.5 / 8]
    assert torch.equal(
        again.tensors["input_ids"], inputs.tensors["input_ids"]
    )  # the model counts from the clip's start


def test_the_model_is_told_the_seconds_of_a_cell(models, clips):
    told = models["qwen2_5_vl"].reader(clips, ["What?"] * 2).tensors["second_per_grid_ts"]
    assert told.tolist() == pytest.approx([2 * 2.0 / 3, 2 * 4.0 / 7])


def test_shorter_questions_are_padded_on_the_left(vlm, clips):
    inputs = vlm.reader([clips[0]] * 2, ["What?", "What moves in this video?"])
    mask = inputs.tensors["attention_mask"]
    assert mask[0].tolist() == [0] * 20 + [1] * (mask.shape[1] - 20)
    assert mask[1].all()
    assert (inputs.tensors["mm_token_type_ids"] == 2).sum(1).tolist() == [80, 80]


@pytest.mark.parametrize(
    ("size", "cells"), [((480, 832), (17, 30)), ((64, 64), (12, 12)), ((1080, 1920), (20, 36)), ((30, 900), (3, 62))]
)
def test_frames_keep_their_extent_and_nearly_their_ratio_within_the_bounds(models, size, cells):
    reader = Reader(models["qwen2_5_vl"].reader.tokenizer, "qwen2_5_vl")
    clip = Clip.at(torch.zeros(2, *size, 3, dtype=torch.uint8), 2.0)
    (grid,) = reader([clip], ["What?"]).grids
    assert grid == (1, *cells)
    assert 128 <= cells[0] * cells[1] <= 768


def test_a_patch_holds_the_pixels_of_its_place(models):
    """Row: t, cell down, across, patch down, across. Column: colour, frame of the cell, pixel down, across."""
    reader = models["qwen3_vl"].reader
    frames = torch.randint(0, 256, (4, 16, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    patches = (
        reader([Clip.at(frames, 2.0)], ["What?"]).tensors["pixel_values_videos"].reshape(2, 2, 3, 2, 2, 3, 2, 4, 4)
    )
    for place in [(0, 0, 0, 0, 0, 0, 0, 0, 0), (1, 0, 2, 1, 0, 2, 0, 3, 1), (0, 1, 0, 0, 1, 1, 1, 0, 2)]:
        t, cy, cx, py, px, colour, frame, y, x = place
        pixel = frames[2 * t + frame, 8 * cy + 4 * py + y, 8 * cx + 4 * px + x, colour]
        assert patches[place].item() == pytest.approx(pixel.item() / 127.5 - 1, abs=1e-6)


def test_a_template_without_the_place_of_the_video_is_refused(models, clips):
    class Plain:
        def __getattr__(self, name):
            return getattr(models["qwen2_5_vl"].reader.tokenizer, name)

        def apply_chat_template(self, *args, **kwargs):
            return f"{VIDEO}What?"

    with pytest.raises(ValueError, match="expected the chat template to write"):
        Reader(Plain(), "qwen2_5_vl", patch=4)(clips[:1], ["What?"])


@pytest.mark.parametrize(
    ("clips_", "questions", "answers", "message"),
    [(0, 1, None, "one question"), (1, 2, None, "1 clips, 2 questions"), (1, 1, 2, "2 answers")],
)
def test_lists_of_other_lengths_are_refused(models, clips, clips_, questions, answers, message):
    with pytest.raises(ValueError, match=message):
        models["qwen3_vl"].reader(clips[:clips_], ["What?"] * questions, answers and ["It."] * answers)


def test_bad_words_are_refused(vlm, clips):
    with pytest.raises(ValueError, match="empty"):
        vlm.reader(clips[:1], ["What?"], [""])
    with pytest.raises(ValueError, match="once"):
        vlm.reader(clips[:1], [f"What is {VIDEO}?"])


def test_a_tokenizer_that_splits_the_video_token_is_refused(models, clips):
    class Splitting:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, text, **kwargs):
            return self.inner(text.replace(VIDEO, "video"), **kwargs)

    reader = Reader(Splitting(models["qwen2_5_vl"].reader.tokenizer), "qwen2_5_vl", patch=4)
    with pytest.raises(ValueError, match="video tokens, got 0"):
        reader(clips[:1], ["What?"])


@pytest.mark.parametrize(
    "bad", [{"family": "llava"}, {"tokens": (0, 4)}, {"tokens": (9, 4)}, {"fps": 0.0}, {"most": 1}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        Reader(None, **{"family": "qwen3_vl", **bad})


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="the stock video processors need torchvision"
)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_pixels_and_tokens_are_those_of_the_stock_processor(family, clips):
    import transformers
    from transformers.video_utils import VideoMetadata

    from vlmdistill.clips import sample

    stock, video, patch = {
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", 14),
        "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16),
    }[family]
    tokenizer = tiny(family).reader.tokenizer
    clip, index = clips[0], sample(clips[0].times_s)
    mine = Reader(tokenizer, family, patch)([clip], ["What moves?"]).tensors
    frames = len(index) if family == "qwen3_vl" else 1  # its bounds are those of the clip, not of a frame
    processor = getattr(transformers, stock)(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, video)(
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            size={"shortest_edge": 128 * 4 * patch**2 * frames, "longest_edge": 768 * 4 * patch**2 * frames},
        ),
    )
    content = [{"type": "video"}, {"type": "text", "text": "What moves?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    about = VideoMetadata(total_num_frames=17, fps=8.0, frames_indices=index.tolist(), height=40, width=64, duration=2)
    theirs = processor(
        text=[text], videos=[clip.frames[index].permute(0, 3, 1, 2)], video_metadata=[about], return_tensors="pt"
    )
    assert torch.equal(mine["video_grid_thw"], theirs["video_grid_thw"])
    torch.testing.assert_close(mine["pixel_values_videos"], theirs["pixel_values_videos"], rtol=0, atol=1e-5)
    # transformers since 5.12 keeps the template's own pair around the frames of Qwen3-VL; its release did not
    said = tokenizer.decode(theirs["input_ids"][0])
    said = said.replace("<|vision_start|><0.3", "<0.3").replace("<|vision_end|><|vision_end|>", "<|vision_end|>")
    assert said == tokenizer.decode(mine["input_ids"][0])
