"""VBench: its total and what an absent dimension does to it, results in files, folders and zips, judge-free terms."""

import json
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import results
from bench.official import vbench, vbench_terms

ALL = [*vbench.QUALITY, *vbench.SEMANTIC]


def write(path, scores):
    videos = [{"video_path": "a-0.mp4", "video_results": 0.5}, {"video_path": "a-1.mp4", "video_results": 0.7}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: [score, videos] for name, score in scores.items()}))
    return path


def test_the_total_weighs_quality_four_times_and_the_dynamic_degree_half():
    best = {name: (vbench.QUALITY | vbench.SEMANTIC)[name].high for name in ALL}
    worst = {name: (vbench.QUALITY | vbench.SEMANTIC)[name].low for name in ALL}
    assert vbench.total(best) == pytest.approx(1.0)
    assert vbench.total(worst) == pytest.approx(0.0)
    assert vbench.total(best | {"dynamic_degree": 0.0}) == pytest.approx(1 - 0.8 * 0.5 / 6.5)
    assert vbench.total(best | {"scene": 0.0}) == pytest.approx(1 - 0.2 / 9)


def test_without_a_dimension_there_is_no_total_and_the_scripts_figure_has_its_own_name(run, tmp_path):
    scores = dict.fromkeys(ALL, 0.6)
    del scores["temporal_flickering"]
    write(tmp_path / "run_eval_results.json", scores)
    order = ("from-official", "--benchmark", "vbench", "--results", tmp_path / "run_eval_results.json")
    done = run(*order, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    result = results.read(tmp_path / "out")
    metrics = result.systems[0].metrics
    assert metrics["total"].value is metrics["quality"].value is None
    assert metrics["semantic"].value is not None
    official = vbench.total(scores | {"temporal_flickering": 0.0})
    assert metrics["total_absent_as_zero"].value == pytest.approx(official)
    assert official < vbench.total(scores | {"temporal_flickering": 0.6293})  # worse than the worst there is
    assert "absent, so there is no total: temporal_flickering" in result.notes


def test_results_are_read_from_a_file_a_folder_or_a_zip_alike(tmp_path):
    write(tmp_path / "run" / "a" / "x_eval_results.json", {"scene": 0.6, "object class": 0.6})
    write(tmp_path / "run" / "y_eval_results.json", {"color": 0.6})
    (tmp_path / "run" / "x_full_info.json").write_text("[1, 2]")
    (tmp_path / "run" / ".hidden.json").write_text("no json")
    archive = tmp_path / "run.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "run").rglob("*.json"):
            file.write(path, path.relative_to(tmp_path / "run"))
    found = vbench.dimensions(tmp_path / "run")
    assert found == vbench.dimensions(archive)
    assert sorted(found) == ["color", "object_class", "scene"]
    assert found["scene"].videos == {"a-0.mp4": 0.5, "a-1.mp4": 0.7}


def test_two_scores_of_one_dimension_are_a_mistake(tmp_path):
    write(tmp_path / "a.json", {"scene": 0.6})
    write(tmp_path / "b.json", {"scene": 0.7})
    with pytest.raises(ValueError, match="expected one score for scene"):
        vbench.dimensions(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"scene": 0.5}', "expected .score, .videos.. for scene"),
        ('{"scene": [true, []]}', "for scene"),
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "got none"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, said):
    path = tmp_path / "x_eval_results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        vbench.dimensions(path)


def test_a_zip_that_swells_is_not_read_to_its_end(tmp_path, monkeypatch):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x_eval_results.json", " " * 1_000_000)
    monkeypatch.setattr(vbench.tables, "MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match="expected at most"):
        vbench.dimensions(archive)


def test_a_score_that_is_not_the_mean_of_its_videos_is_said(tmp_path):
    write(tmp_path / "x.json", {"scene": 0.6, "color": 0.61, "imaging_quality": 0.006})
    _, notes = vbench.system("x", vbench.dimensions(tmp_path))
    assert [note for note in notes if "not the mean" in note] == [
        "color: the score 0.61 is not the mean of its 2 valid videos"
    ]


def test_dimensions_of_vbench_2_are_not_those_of_vbench(tmp_path):
    write(tmp_path / "x.json", {"Mechanics": 0.6})
    with pytest.raises(ValueError, match="is this VBench-2"):
        vbench.system("x", vbench.dimensions(tmp_path))


def test_videos_are_linked_five_a_prompt(run, tmp_path, film):
    info = tmp_path / "VBench_full_info.json"
    info.write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["scene"]}]))
    for i in range(5):
        film(tmp_path / "videos" / f"0000_{i + 3}.mp4", 40 * i)
    order = ("to-official", "--benchmark", "vbench", "--videos", tmp_path / "videos", "--out", tmp_path / "official")
    assert "are not shipped: name VBench_full_info.json" in run(*order).output
    assert run(*order, "--clone", info).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "official").iterdir()) == [f"a cat-{i}.mp4" for i in range(5)]


# -- terms without a judge


def test_flickering_is_1_for_frozen_frames_and_0_for_black_and_white_in_turn():
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    assert vbench_terms.temporal_flickering(frames) == 1.0
    frames[1::2] = 255
    assert vbench_terms.temporal_flickering(frames) == 0.0
    frames[1::2] = 51
    assert vbench_terms.temporal_flickering(frames) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="two frames or more"):
        vbench_terms.temporal_flickering(frames[:1])


def test_a_video_moves_if_enough_pairs_have_fast_pixels():
    flows = np.zeros((15, 256, 256, 2))  # 16 frames: 4 pairs are asked for
    assert not vbench_terms.dynamic_degree(flows)
    flows[:3, :20, :, 0] = 7.0  # more than 5 % of the pixels
    assert not vbench_terms.dynamic_degree(flows)
    flows[3, :20, :, 1] = -7.0
    assert vbench_terms.dynamic_degree(flows)
    assert not vbench_terms.dynamic_degree(flows * 5.9 / 7)  # 6 px at a shorter side of 256
    assert vbench_terms.dynamic_degree(flows[:, :128, :128] * 3.1 / 7)


def test_imaging_quality_gets_every_frame_at_512_at_most_and_is_a_share_of_100(run, tmp_path, film, monkeypatch):
    asked = []

    def metric(frames):
        asked.append(tuple(frames.shape))
        assert frames.dtype == torch.float32
        return 100 * frames.mean((1, 2, 3))[:, None]

    made = SimpleNamespace(create_metric=lambda name, device: metric if name == "musiq-spaq" else None)
    monkeypatch.setitem(sys.modules, "pyiqa", made)
    film(tmp_path / "videos" / "a.mp4", 51, size=640)
    film(tmp_path / "videos" / "b.mp4", 204, size=640)
    order = ("vbench", "--videos", tmp_path / "videos", "--dimension", "imaging_quality", "--out", tmp_path / "out")
    done = run(*order, "--quiet")
    assert done.exit_code == 0, done.output
    assert set(asked) == {(5, 3, 512, 512)}
    found = vbench.dimensions(tmp_path / "out")["imaging_quality"]
    assert found.videos == {"a.mp4": pytest.approx(20, abs=1), "b.mp4": pytest.approx(80, abs=1)}
    assert found.score == pytest.approx(0.5, abs=0.01)


def test_without_pyiqa_one_sentence_says_what_to_install(run, tmp_path, film, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    film(tmp_path / "videos" / "a.mp4")
    order = ("vbench", "--videos", tmp_path / "videos", "--out", tmp_path / "out", "--dimension")
    done = run(*order, "imaging_quality")
    assert (done.exit_code, done.output.strip()) == (
        1,
        "error: imaging_quality needs the library pyiqa: pip install pyiqa",
    )
    assert "expected temporal_flickering, dynamic_degree or imaging_quality" in run(*order, "beauty").output
    assert "--flows DIR" in run(*order, "dynamic_degree").output


def test_terms_are_written_in_vbench_s_own_format(run, tmp_path, film):
    videos = tmp_path / "videos"
    film(videos / "a.mp4", 100)
    order = ("vbench", "--videos", videos, "--out", tmp_path / "out", "--name", "mine", "--quiet", "--dimension")
    assert run(*order, "temporal_flickering").exit_code == 0
    np.save(tmp_path / "a.npy", np.full((4, 32, 32, 2), 5.0))
    assert run(*order, "dynamic_degree", "--flows", tmp_path).exit_code == 0
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    assert "expected an array" in run(*order, "dynamic_degree", "--flows", tmp_path).output  # nothing is unpickled
    found = vbench.dimensions(tmp_path / "out")
    assert {name: entry.score for name, entry in found.items()} == {"temporal_flickering": 1.0, "dynamic_degree": 1.0}
