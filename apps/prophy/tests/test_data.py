"""Laws of the data: where a mechanism is, who teaches, what is refused and what is skipped."""

import json

import numpy as np
import pytest
import torch

import physworld
from physexperts import MECHANISMS
from prophy import where
from prophy.annotate import annotate_clips
from prophy.config import Recipe
from prophy.data import prepare, teacher_of, token_grid
from prophy.labels import labels_of, names, shuffled
from prophy.quantities import numbers
from trainers import video
from trainers.data import read_records
from vlmdistill.tiny import tiny


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four small videos with captions and WISA's answers, and one that is too short."""
    folder = tmp_path_factory.mktemp("clips")
    records = []
    rng = np.random.default_rng(0)
    for i in range(5):
        frames = rng.integers(0, 255, (3 if i == 4 else 17, 32, 32, 3), dtype=np.uint8)
        video.write(folder / f"{i}.mp4", frames, 16.0, scale=1)
        answers = {
            "q0": "collision" if i % 2 else "liquid motion",
            "q1": "melting" if i == 0 else "no obvious thermodynamic phenomenon",
        }
        records.append({"file": f"{i}.mp4", "captions": "a red ball", "physical_annotation": answers})
    (folder / "records.json").write_text(json.dumps(records))
    return folder


def recipe_of(make_recipe, clips, *more):
    return make_recipe(f"data.source={clips / 'records.json'}", "data.vocabulary=laws", *more)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_of_the_world_has_a_place(mechanism):
    found = 0
    for clip in physworld.simulate_many(mechanism, range(4)):
        maps = where.seen_in(clip, clip.labels)
        for values in maps.maps.values():
            assert tuple(values.shape) == (17, 8, 8)
            assert 0 < float((values > 0).float().mean()) < 0.75
        found += mechanism in maps.maps
    assert found >= 3  # a collision may lie outside the frames that were drawn


def test_a_thrown_ball_is_where_its_pixels_are():
    clip = physworld.simulate("rigid_body", 0)
    moved = np.abs(clip.video.astype(int) - np.median(clip.video, 0)).sum(-1).reshape(17, 8, 4, 8, 4).sum((2, 4))
    seen = where.seen_in(clip, clip.labels).maps["rigid_body"].numpy()
    assert np.corrcoef(moved.ravel(), seen.ravel())[0, 1] > 0.6


def test_a_collision_is_there_around_its_impact_alone():
    clip = next(c for c in physworld.simulate_many("collision", range(8)) if np.abs(c.fields["impulse"]).max() > 0)
    strength = where.intensity(clip, "collision", contact_frames=1)
    impact = np.abs(clip.fields["impulse"].astype(float)).max((1, 2, 3)) > 0
    assert strength[impact].any()
    far = [t for t in range(17) if not impact[max(0, t - 1) : t + 2].any()]
    assert not strength[far].any()


def test_the_world_teaches_from_exact_fields_and_says_so(backbone, make_recipe, tmp_path):
    found = prepare(make_recipe(), backbone, tmp_path, quiet=True)
    assert found.teacher == where.SOURCE
    assert found.computed == found.clips == 8
    item = found.data[0]
    assert item["target"].shape == item["active"].shape == (80, 8)
    assert bool((item["target"][item["active"]] > 0).all())
    absent = item["labels"] == 0
    assert not item["active"][:, absent].any()
    again = prepare(make_recipe("losses.align_entries=all"), backbone, tmp_path, quiet=True)
    assert again.computed == 0
    whole = again.data[0]
    assert bool(whole["active"][:, ~absent].all())
    assert float(whole["target"].min()) == 0


def test_without_a_language_model_files_have_no_token_targets(backbone, make_recipe, clips, tmp_path):
    with pytest.raises(ValueError, match="nobody can say where a phenomenon is"):
        prepare(recipe_of(make_recipe, clips), backbone, tmp_path, quiet=True)
    found = prepare(recipe_of(make_recipe, clips, "targets.source=none"), backbone, tmp_path, quiet=True)
    assert found.teacher == "none"
    assert "target" not in found.data[0]
    assert [s.path for s in found.skipped] == ["4.mp4"]
    assert found.labels["collision"] == 2


def test_a_language_model_annotates_once_shared_by_rank_and_training_reads_its_maps(
    backbone, make_recipe, clips, tmp_path, monkeypatch
):
    recipe = recipe_of(make_recipe, clips, "targets.vlm=tiny", "targets.max_new_tokens=3")
    vlm = tiny()
    with pytest.raises(ValueError, match="run `prophy annotate`"):
        prepare(recipe, backbone, tmp_path, quiet=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        parts.append(annotate_clips(recipe, tmp_path, vlm, quiet=True))
    assert [part.clips for part in parts] == [3, 2]
    assert [part.computed for part in parts] == [2, 2]  # the fifth cannot be read
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert annotate_clips(recipe, tmp_path, vlm, quiet=True).computed == 0
    found = prepare(recipe, backbone, tmp_path, quiet=True)
    assert found.teacher == "vision-language model tiny"
    item = found.data[0]  # liquid motion and melting
    present = {names("laws")[i] for i in item["labels"].nonzero()[:, 0].tolist()}
    assert present == {"liquid motion", "melting"}
    shown = {names("laws")[i] for i in item["active"].any(0).nonzero()[:, 0].tolist()}
    assert shown <= present
    assert shown


def test_another_label_is_another_question(backbone, make_recipe):
    _, key = teacher_of(make_recipe("targets.vlm=tiny"))
    assert key("clip", ["melting"]) != key("clip", ["melting", "collision"])


def test_bad_input_is_one_clear_sentence(backbone, make_recipe, clips, tmp_path):
    (clips / "odd.json").write_text(json.dumps([{"file": "0.mp4", "captions": "ice", "q0": "levitation"}]))
    with pytest.raises(ValueError, match="unknown category 'levitation'"):
        prepare(make_recipe(f"data.source={clips / 'odd.json'}", "targets.source=none"), backbone, tmp_path, quiet=True)
    (clips / "bare.json").write_text(json.dumps([{"file": "0.mp4"}, {"file": "1.mp4", "captions": " "}]))
    with pytest.raises(ValueError, match="caption"):
        prepare(
            make_recipe(f"data.source={clips / 'bare.json'}", "targets.source=none"), backbone, tmp_path, quiet=True
        )
    with pytest.raises(ValueError, match="17 square frames"):
        prepare(make_recipe("data.height=48"), backbone, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="4n\\+1 frames"):
        prepare(make_recipe("data.frames=16"), backbone, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="multiple of"):
        token_grid(make_recipe("data.height=36", "data.width=36"), backbone)
    with pytest.raises(ValueError, match="mechanisms for the exact fields"):
        teacher_of(make_recipe("data.vocabulary=laws"))
    with pytest.raises(ValueError, match=r"targets\.vlm"):
        teacher_of(make_recipe("targets.source=vlm"))
    with pytest.raises(ValueError, match=r"refine\.k"):
        make_recipe("refine.k=9")


def test_clips_without_any_label_of_the_vocabulary_are_refused(backbone, make_recipe, clips, tmp_path):
    (clips / "plain.json").write_text(json.dumps([{"file": "0.mp4", "captions": "a red ball"}]))
    sets = (f"data.source={clips / 'plain.json'}", "data.vocabulary=laws", "targets.source=none")
    with pytest.raises(ValueError, match="has a label of"):
        prepare(make_recipe(*sets), backbone, tmp_path, quiet=True)


def test_annotations_win_over_captions(clips):
    records, _ = read_records(clips / "records.json")
    found = labels_of(records[0], fallback="keywords", on_unknown="error")
    assert found.mechanisms == ("fluid", "phase_change", "thermal")


def test_shuffled_labels_are_the_same_labels_elsewhere():
    rows = torch.eye(8)
    mixed = shuffled(rows, 0)
    assert torch.equal(mixed.sum(0), rows.sum(0))
    assert not torch.equal(mixed, rows)


def test_quantities_are_eighteen_numbers():
    clip = physworld.simulate("thermal", 0).record()
    found = numbers(clip["physical_annotation"])
    assert found.shape == (18,)
    assert found[0] == pytest.approx(5.75)
    with pytest.raises(ValueError, match="n0 as ranges"):
        numbers({"quantify_n0": ["heavy"]})
    assert not numbers(None).any()
    assert Recipe().data.vocabulary == "mechanisms"
