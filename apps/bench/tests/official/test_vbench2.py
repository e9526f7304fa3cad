"""VBench-2.0: five dimensions' prompts, five categories' total, and how many videos a conditional score rests on."""

import json

import pytest

from bench import results
from bench.official import vbench, vbench2

SCORES = {name: 0.1 + 0.04 * i for i, name in enumerate(vbench2.DIMENSIONS)}


def write(path, scores, videos=()):
    entries = [{"video_path": f"v/{i}.mp4", "video_results": result} for i, result in enumerate(videos)]
    path.write_text(json.dumps({name: [score, entries] for name, score in scores.items()}))
    return path


def test_five_dimensions_are_shipped_with_their_questions():
    counts = {"Mechanics": 57, "Material": 50, "Thermotics": 50, "Motion_Rationality": 58}
    counts["Dynamic_Spatial_Relationship"] = 69
    for dimension, count in counts.items():
        listed = vbench2.prompts(dimension)
        assert len(listed.prompts) == count
        assert all(prompt.facts["questions"] and prompt.facts["dense caption"] for prompt in listed.prompts)
    with pytest.raises(ValueError, match="expected one of Mechanics"):
        vbench2.prompts("Diversity")


def test_the_total_is_the_mean_of_five_categories_not_of_eighteen_dimensions(run, tmp_path):
    write(tmp_path / "x.json", SCORES)
    done = run("from-official", "--benchmark", "vbench2", "--results", tmp_path / "x.json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    metrics = results.read(tmp_path / "out").systems[0].metrics
    physics = ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics")
    assert metrics["physics"].value == pytest.approx(sum(SCORES[name] for name in physics) / 4)
    means = [sum(SCORES[d] for d in names) / len(names) for names in vbench2.CATEGORIES.values()]
    assert metrics["total"].value == metrics["total_absent_as_zero"].value == pytest.approx(sum(means) / 5)
    assert abs(metrics["total"].value - sum(SCORES.values()) / 18) > 0.005


def test_an_absent_dimension_is_zero_to_the_script_and_leaves_no_total_here(tmp_path):
    write(tmp_path / "x.json", {name: SCORES[name] for name in ("Mechanics", "Material", "Thermotics")})
    system, notes = vbench2.system("x", vbench.dimensions(tmp_path / "x.json"))
    three = SCORES["Mechanics"] + SCORES["Material"] + SCORES["Thermotics"]
    assert system.metrics["physics"].value is None
    assert system.metrics["physics_absent_as_zero"].value == pytest.approx(three / 4)
    assert system.metrics["total_absent_as_zero"].value == pytest.approx(three / 20)
    assert (system.metrics["total"].value, system.metrics["total"].n_valid) == (None, 3)
    assert "Multi-View_Consistency" in notes[-1]


def test_a_conditional_score_comes_with_how_many_videos_count(tmp_path):
    write(tmp_path / "x.json", {"Mechanics": 0.5}, [1, 0, -1, -1, -1])
    system, notes = vbench2.system("x", vbench.dimensions(tmp_path / "x.json"))
    score = system.groups["Mechanics"]["score"]
    assert (score.value, score.n, score.n_valid) == (0.5, 5, 2)
    assert [item.values["result"] for item in system.items] == [1, 0, None, None, None]
    assert not any("not the mean" in note for note in notes)
    write(tmp_path / "x.json", {"Mechanics": 0.5})
    _, notes = vbench2.system("x", vbench.dimensions(tmp_path / "x.json"))
    assert "Mechanics: no result of a single video is there, so how many count is unknown" in notes


def test_videos_are_linked_three_a_prompt_under_the_short_prompts_first_180_characters(run, tmp_path, film):
    videos = tmp_path / "videos"
    one = film(tmp_path / "one.mp4").read_bytes()
    videos.mkdir()
    for i in range(50):
        for sample in range(3):
            (videos / f"{i:04d}_{sample}.mp4").write_bytes(one)
    order = ("to-official", "--benchmark", "vbench2", "--videos", videos, "--out", tmp_path / "official")
    assert "--dimension Mechanics|Material" in run(*order).output
    assert run(*order, "--dimension", "Material", "--quiet").exit_code == 0
    names = {path.name for path in (tmp_path / "official" / "Material").iterdir()}
    first = vbench2.prompts("Material").prompts[0].caption
    assert names >= {f"{first[:180]}-{sample}.mp4" for sample in range(3)}
    assert len(names) == 150
