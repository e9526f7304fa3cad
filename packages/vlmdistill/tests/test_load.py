"""A model of a folder is the model that was saved there, or one sentence says what is wrong."""

import json

import pytest
import torch

from vlmdistill import load


@pytest.fixture
def folder(vlm, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.reader.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_loaded_model_sees_what_the_saved_one_saw(vlm, folder, clips):
    back = load(folder, tokens=(1, 768))
    assert back.name == folder.name
    assert back.reader.family == vlm.reader.family
    (before,), (after,) = (each.look(clips[0], "What moves?", new_tokens=4) for each in (vlm, back))
    assert after.answer == before.answer
    torch.testing.assert_close(after.rows, before.rows, rtol=0, atol=1e-6)  # loaded weights lie elsewhere in memory


def test_frames_of_a_loaded_model_are_large_enough_by_default(folder, clips):
    (look,) = load(folder).look(clips[0], "What moves?", answers="it")
    assert look.map[0].numel() >= 128


def test_a_folder_that_is_not_there_is_answered_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(ValueError, match=r"hf download Qwen/Qwen2[.]5-VL-7B-Instruct"):
        load(tmp_path / "Qwen2.5-VL-7B-Instruct")


def test_another_type_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="qwen2_5_vl or qwen3_vl, got 'llama'"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["video_preprocessor_config.json", "preprocessor_config.json"])
def test_pixels_that_are_standardised_otherwise_are_refused(folder, name):
    (folder / name).write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}))
    with pytest.raises(ValueError, match="mean and deviation"):
        load(folder)


def test_the_chat_template_of_the_processor_serves_where_the_tokenizer_has_none(vlm, folder, clips):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm.reader.tokenizer, "chat_template", None)
        bare = folder / "bare"
        vlm.reader.tokenizer.save_pretrained(bare)
    for kept in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / kept).unlink()
    (folder / "tokenizer_config.json").write_bytes((bare / "tokenizer_config.json").read_bytes())
    with pytest.raises(ValueError, match="tokenizer with a chat template"):
        load(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": vlm.reader.tokenizer.chat_template}))
    back = load(folder, tokens=(1, 768))
    assert torch.equal(
        back.reader(clips, ["What?"] * 2).tensors["input_ids"], vlm.reader(clips, ["What?"] * 2).tensors["input_ids"]
    )
