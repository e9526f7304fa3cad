"""The rows are those of eager attention, wherever they are read."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vlmdistill import annotate, question, tiny
from vlmdistill.attention import Recorder, reading, select

ANSWERS = ["a ball", "yes"]
CHOICES = [(None, None), ([0, 2], None), ([2], [3]), ([0, 1], [1, 2]), (None, {0: [0], 2: [1, 3, 2]})]


def eager(vlm, inputs, chosen, answers):
    """Rows before each token of the answers over the video's tokens, from all of eager attention."""
    vlm.model.model.rope_deltas = None
    vlm.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            every = vlm.model.model(**inputs.tensors, use_cache=False, output_attentions=True).attentions
    finally:
        vlm.model.set_attn_implementation("sdpa")
        vlm.model.model.rope_deltas = None
    return [
        torch.stack(
            [every[l][i][list(h)].mean(0)[-len(answer) :][:, inputs.columns[i]] for l, h in chosen.items()]
        ).unflatten(2, inputs.grids[i])
        for i, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(("layers", "heads"), CHOICES)
def test_forced_rows_of_a_padded_batch_are_those_of_eager_attention(vlm, clips, layers, heads):
    asked = ["What moves?", question("collision")]
    looks = vlm.look(clips, asked, answers=ANSWERS, layers=layers, heads=heads)
    inputs = vlm.reader(clips, asked, ANSWERS)
    assert not inputs.tensors["attention_mask"].all(), "one sample is padded"
    expected = eager(vlm, inputs, select(vlm.model, layers, heads), inputs.answers)
    for look, rows, answer in zip(looks, expected, ANSWERS, strict=True):
        torch.testing.assert_close(look.rows, rows, rtol=0, atol=1e-5)
        assert look.rows.std() > 1e-3, "flat attention would hide a mistake"
        assert len(look.tokens) == look.rows.shape[1] == len(answer)


@pytest.mark.parametrize(("layers", "heads"), CHOICES)
def test_generated_rows_of_a_padded_batch_are_those_of_eager_attention(vlm, clips, layers, heads):
    asked = ["What moves?", question("collision")]
    looks = vlm.look(clips, asked, layers=layers, heads=heads, new_tokens=5)
    inputs = vlm.reader(clips, asked, [look.answer for look in looks])
    expected = eager(vlm, inputs, select(vlm.model, layers, heads), inputs.answers)
    for look, rows in zip(looks, expected, strict=True):
        torch.testing.assert_close(look.rows, rows, rtol=0, atol=1e-5)


def test_generation_under_the_probe_says_what_it_says_without(vlm, clips):
    looks = vlm.look(clips, "What moves?", new_tokens=6)
    inputs = vlm.reader(clips, ["What moves?"] * 2)
    out = vlm.model.generate(**inputs.tensors, max_new_tokens=6, do_sample=False)
    vlm.model.model.rope_deltas = None
    assert [look.answer for look in looks] == vlm.reader.tokenizer.batch_decode(
        out[:, inputs.tensors["input_ids"].shape[1] :], skip_special_tokens=True
    )


def test_an_answer_generated_and_the_same_answer_given_have_one_map(vlm, clips):
    (said,) = vlm.look(clips[0], "What moves?", new_tokens=6)
    (given,) = vlm.look(clips[0], "What moves?", answers=said.answer)
    assert given.tokens == said.tokens
    torch.testing.assert_close(given.rows, said.rows, rtol=0, atol=1e-5)


def test_a_sample_s_map_does_not_depend_on_its_batch(vlm, clips):
    together = vlm.look(clips, ["What moves?", question("melting")], answers=ANSWERS)
    for look, clip, asked, answer in zip(together, clips, ["What moves?", question("melting")], ANSWERS, strict=True):
        (alone,) = vlm.look(clip, asked, answers=answer)
        torch.testing.assert_close(look.rows, alone.rows, rtol=0, atol=1e-5)


def test_the_answer_ends_before_the_token_that_ends_it(vlm, clips):
    free = vlm.look(clips[0], ["What moves?"], new_tokens=4)[0]
    third = vlm.reader.tokenizer.convert_tokens_to_ids(free.tokens[2])
    config = vlm.model.generation_config
    before, config.eos_token_id = config.eos_token_id, third
    try:
        ended, other = vlm.look(clips, ["What moves?", question("melting")], new_tokens=4)
    finally:
        config.eos_token_id = before
    first = free.tokens.index(free.tokens[2])
    assert ended.tokens == free.tokens[: max(first, 1)]
    torch.testing.assert_close(ended.rows, free.rows[:, : max(first, 1)], rtol=0, atol=1e-5)
    assert other.rows.shape[1] == len(other.tokens) <= 4


def test_a_row_sums_to_the_share_of_the_video_and_all_shares_to_one(vlm, clips):
    inputs = vlm.reader(clips[:1], ["What moves?"])
    columns = inputs.columns[0]
    rest = torch.tensor([i for i in range(inputs.tensors["input_ids"].shape[1]) if i not in set(columns.tolist())])
    sums = []
    for part in (columns, rest):
        vlm.model.model.rope_deltas = None
        with torch.no_grad(), reading(vlm.model, select(vlm.model), [part], last=3) as found:
            vlm.model.model(**inputs.tensors, use_cache=False)
        sums.append(found.rows(0).sum(-1))
    torch.testing.assert_close(sums[0] + sums[1], torch.ones(1, 3))
    (look,) = vlm.look(clips[0], "What moves?", answers="it")
    assert 0 < look.share < 1
    assert look.share == pytest.approx(float(look.rows.sum((2, 3, 4)).mean()))


def test_rows_in_blocks_are_the_rows_at_once(vlm, clips, monkeypatch):
    (whole,) = vlm.look(clips[0], "What moves?", answers="a red ball")
    monkeypatch.setattr("vlmdistill.attention._BLOCK", 1)
    (blocks,) = vlm.look(clips[0], "What moves?", answers="a red ball")
    torch.testing.assert_close(blocks.rows, whole.rows)


def test_maps_have_the_model_s_grid_and_the_times_of_its_cells(vlm, clips):
    looks = vlm.look(clips, "What moves?", answers="it", layers=[0, 1])
    assert [tuple(look.rows.shape) for look in looks] == [(2, 2, 2, 5, 8), (2, 2, 4, 3, 4)]
    assert [tuple(look.map.shape) for look in looks] == [(2, 5, 8), (4, 3, 4)]
    assert looks[0].times_s.tolist() == [2.5 / 8, 13.5 / 8]
    assert looks[1].times_s.tolist() == [0.25, 1.25, 2.75, 3.75]  # frames 0 1 2 3 5 6 7 8 at two a second


def test_the_map_leaves_out_the_first_and_the_last_token_of_an_answer_that_has_more(vlm, clips):
    for answer, kept in (("a", slice(None)), ("ab", slice(None)), ("abc", slice(1, 2)), ("abcde", slice(1, 4))):
        (look,) = vlm.look(clips[0], "What moves?", answers=answer, layers=[0, 2])
        torch.testing.assert_close(look.map, look.rows[:, kept].mean((0, 1)))


def test_a_cell_of_the_map_is_the_place_that_it_names(models, clips):
    """Make one cell's keys draw all attention: the map's peak is there."""
    vlm = models["qwen2_5_vl"]
    inputs = vlm.reader(clips[:1], ["What?"], ["it"])
    place = (1, 3, 6)
    index = inputs.columns[0].reshape(inputs.grids[0])[place]
    recorder = Recorder({1: (0, 1, 2, 3)}, inputs.columns, 2)
    s = inputs.tensors["input_ids"].shape[1]
    key = torch.zeros(1, 2, s, 8)
    key[:, :, index] = 5.0
    recorder.record(1, torch.ones(1, 4, s, 8), key, None, scale=1.0)
    found = recorder.rows(0).mean((0, 1)).reshape(inputs.grids[0])
    assert found.argmax() == torch.tensor(place[0] * 40 + place[1] * 8 + place[2])
    assert found[place] > 0.99


def test_maps_are_the_same_each_time(vlm, clips):
    first, second = (vlm.look(clips, "What moves?", new_tokens=4) for _ in range(2))
    assert all(torch.equal(a.rows, b.rows) and a.answer == b.answer for a, b in zip(first, second, strict=True))


def state(vlm):
    model = vlm.model
    return (
        set(AttentionInterface._global_mapping),
        set(AttentionMaskInterface._global_mapping),
        {name: c._attn_implementation for name, c in (("all", model.config), ("text", model.config.text_config))},
        model.config.vision_config._attn_implementation,
        model.model.rope_deltas,
    )


def test_the_model_and_transformers_are_as_before(vlm, clips):
    before = state(vlm)
    vlm.look(clips[0], "What moves?", new_tokens=2)
    assert state(vlm) == before


def test_the_model_and_transformers_are_as_before_after_an_error(vlm, clips, monkeypatch):
    before = state(vlm)

    def broken(*args, **kwargs):
        raise RuntimeError("a broken layer")

    monkeypatch.setattr(vlm.model.model.language_model.layers[1].mlp, "forward", broken)
    with pytest.raises(RuntimeError, match="a broken layer"):
        vlm.look(clips[0], "What moves?", new_tokens=2)
    assert state(vlm) == before


def test_only_the_chosen_layers_are_read_and_no_attention_is_asked_of_the_model(vlm, clips, monkeypatch):
    seen = []
    record = Recorder.record
    monkeypatch.setattr(
        Recorder,
        "record",
        lambda self, layer, *args, **kwargs: seen.append(layer) or record(self, layer, *args, **kwargs),
    )
    vlm.look(clips[0], "What moves?", new_tokens=3, layers=[2])
    assert seen == [2, 2, 2]  # the prompt once, then each token


def test_without_a_choice_the_middle_third_of_the_layers_is_read(vlm):
    assert select(vlm.model) == {1: (0, 1, 2, 3)}


@pytest.mark.parametrize(
    ("layers", "heads", "message"),
    [
        ([3], None, "layers from 0 to 2"),
        ([], None, "at least one"),
        ([0], [4], "heads from 0 to 3"),
        ([0], [], "at least one"),
        ([0], [1, 1], "different heads"),
        ([0], {1: [0]}, r"layers \[0\], got heads of \[1\]"),
    ],
)
def test_layers_and_heads_that_are_not_there_are_refused(vlm, layers, heads, message):
    with pytest.raises(ValueError, match=message):
        select(vlm.model, layers, heads)


def test_a_model_in_training_and_no_tokens_are_refused(vlm, clips):
    vlm.model.train()
    try:
        with pytest.raises(ValueError, match="evaluation mode"):
            vlm.look(clips[0], "What?")
    finally:
        vlm.model.eval()
    with pytest.raises(ValueError, match="new_tokens >= 1"):
        vlm.look(clips[0], "What?", new_tokens=0)


def test_beams_and_caches_that_forget_are_refused(vlm):
    recorder = Recorder({1: (0, 1, 2, 3)}, [torch.arange(4)], 1)
    with pytest.raises(ValueError, match="beams"):
        recorder.record(1, torch.ones(2, 4, 6, 8), torch.ones(2, 2, 6, 8), None, scale=1.0)
    with pytest.raises(ValueError, match="sliding window"):
        recorder.record(1, torch.ones(1, 4, 1, 8), torch.ones(1, 2, 3, 8), None, scale=1.0)
    with pytest.raises(ValueError, match="got none"):
        recorder.rows(0)


def test_attention_runs_in_the_dtype_of_the_model_and_rows_in_float32(clips):
    vlm = tiny()
    vlm.model.to(torch.bfloat16)
    (look,) = vlm.look(clips[0], "What moves?", answers="it")
    assert look.rows.dtype == torch.float32
    assert torch.isfinite(look.rows).all()


def test_annotation_contrasts_each_question_with_the_neutral_one(vlm, clips):
    found = annotate(vlm, clips[0], ["collision", "no change", "melting"], new_tokens=4, batch=2)
    assert list(found.maps) == ["collision", "melting"], "an absence has no map"
    neutral, collision, melting = vlm.look(
        clips[0], [found.meta["questions"][name] for name in ("neutral", "collision", "melting")], new_tokens=4
    )
    for name, look in (("collision", collision), ("melting", melting)):
        difference = look.map / look.map.mean() - neutral.map / neutral.map.mean()
        torch.testing.assert_close(found.maps[name], difference / difference.abs().max(), rtol=0, atol=1e-4)
        assert found.meta["answers"][name] == look.answer
    assert found.meta["model"] == vlm.name
    assert found.meta["layers"] == [1]
    assert found.meta["heads"] == {"1": [0, 1, 2, 3]}


def test_annotation_refuses_strangers(vlm, clips):
    with pytest.raises(ValueError, match="unknown category 'colision'; did you mean 'collision'"):
        annotate(vlm, clips[0], ["colision"])
