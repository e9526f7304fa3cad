"""PhyGenBench: three totals that are not one another, stages read from what PhyGenEval writes, and its layout."""

import json
from itertools import product
from pathlib import Path

import pytest

from bench import results
from bench.official import phygenbench, prompts, tables

MODEL = "mine"
KINDS = list(phygenbench.DOMAINS)
CAPTIONS = [f"made-up prompt {i}" for i in range(len(KINDS))]  # the benchmark's own have no licence


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with a prompt of our own for each main category."""
    rows = [
        {"caption": c, "physical_laws": "-", "sub_category": "atmosphere Pressure", "main_category": kind}
        for c, kind in zip(CAPTIONS, KINDS, strict=True)
    ]
    path = tmp_path / "clone" / "PhyGenBench" / "prompts.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    return tmp_path / "clone"


def stage_files(root: Path, rows: dict[str, list[dict]]) -> None:
    for stage, entries in rows.items():
        path = root / "PhyGenEval" / phygenbench.FILES[stage].format(model=MODEL)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([{"caption": c} | row for c, row in zip(CAPTIONS, entries, strict=True)]))


def test_the_totals_are_rounded_routes_and_their_floored_mean():
    differ = 0
    for s, m_gpt, m_llava, v_gpt, v_intern in product(range(4), repeat=5):
        stages = dict(zip(phygenbench.STAGES, (s, m_gpt, m_llava, v_gpt, v_intern), strict=True))
        total = phygenbench.totals(stages)
        assert abs(3 * total.closed - (s + m_gpt + v_gpt)) <= 1  # nearest whole number: thirds never tie
        assert abs(3 * total.open - (s + m_llava + v_intern)) <= 1
        assert 2 * total.ensemble == total.closed + total.open - (total.closed + total.open) % 2
        differ += total.ensemble != (total.closed + total.open) / 2
    assert differ > 300  # the floor is no detail


def test_domains_and_average_are_means_over_prompts(clone, run, tmp_path):
    rows = [{"caption": c} | dict.fromkeys(phygenbench.STAGES, i % 4) for i, c in enumerate(CAPTIONS)]
    rows[0] |= {"multi_gpt": 3, "video_gpt": 3}  # closed 2, open 0, floor 1
    (tmp_path / "result.json").write_text(json.dumps(rows))
    order = ("from-official", "--benchmark", "phygenbench", "--results", tmp_path / "result.json", "--name", MODEL)
    assert "name a clone of its repository" in run(*order, "--out", tmp_path / "out").output
    done = run(*order, "--clone", clone, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    system = results.read(tmp_path / "out").system(MODEL)
    assert {name: m.value for name, m in system.metrics.items()} == {
        "closed": pytest.approx((2 + 1 + 2 + 3 + 0) / 15),
        "open": pytest.approx((0 + 1 + 2 + 3 + 0) / 15),
        "ensemble": pytest.approx((1 + 1 + 2 + 3 + 0) / 15),
    }
    assert {domain: group["open"].value for domain, group in system.groups.items()} == {
        "Mechanics": 0,
        "Optics": pytest.approx(1 / 3),
        "Thermal": pytest.approx(2 / 3),
        "Material": 0.5,
    }
    assert system.groups["Material"]["open"].n == 2  # physical and chemical properties


def test_one_route_has_no_ensemble(clone):
    listed = phygenbench.prompts(clone)
    stages = [{"single": 3, "multi_gpt": 3, "video_gpt": 3}] * len(CAPTIONS)
    metrics = phygenbench.system(MODEL, listed, stages).metrics
    assert metrics["closed"].value == 1.0
    assert metrics["open"].value is metrics["ensemble"].value is None
    assert metrics["ensemble"].n_valid == 0


@pytest.mark.parametrize(
    ("question", "grade"),
    [
        ([{"Retrieval Prompt": "x", MODEL: 0.9, "clip_retrieval": 0.7}], 0),
        ([{"Retrieval Prompt": "x", MODEL: 1.2, "clip_retrieval": 0.7}], 2),
        ([{"Retrieval Prompt": "x", MODEL: 0.6, "clip_retrieval": 0.7}], 3),  # below zero falls through, as officially
        ([{"Retrieval Prompt": "Last Frame", MODEL: 0.3}], 1),
        ([{}, {}], 2),
    ],
)
def test_the_first_stage_is_binned_as_officially(question, grade):
    assert phygenbench.key_phenomenon({"singleimage_question": question, f"{MODEL}_descrete": 2}, MODEL) == grade


def test_the_second_stage_counts_a_no_before_a_yes():
    said = {"LLava_1": "Yes.", "LLava_2": "Yes, but not quite", "LLava_3": "maybe"}
    assert phygenbench.order_llava({"multiimage_question": said}, MODEL) == 1
    choices = {f"GPT4o_{i}": {"Choice": word} for i, word in ((1, "Yes"), (2, "No"), (3, "yes"))}
    assert phygenbench.order_gpt({"multiimage_question": choices}, MODEL) == 2


def test_the_second_stage_takes_the_best_neighbour_where_frames_were_retrieved():
    said = {"CLIP_Index": "3,4,6", "LLava_3": "no"}
    said |= {"retrieval_1_3": 0.9, "LLava_1_3": "no", "retrieval_1_4": 0.6, "LLava_1_4": "yes"}
    said |= {"retrieval_2_4": 0.4, "LLava_2_4": "yes", "retrieval_2_5": 0.8, "LLava_2_5": "no"}
    assert phygenbench.order_llava({"multiimage_question": said}, MODEL) == 1
    scores = {"CLIP_Index": "3,4,6", "GPT4o_1_Score": 1.5, "GPT4o_2_Score": 1.49, "GPT4o_3_Score": 1.8}
    assert phygenbench.order_gpt({"multiimage_question": scores}, MODEL) == 2


def test_the_outputs_of_the_stages_are_read_from_a_clone(clone):
    listed = phygenbench.prompts(clone)
    last = [{"Retrieval Prompt": "Last Frame", MODEL: 0.8}]
    yes = {"multiimage_question": {f"GPT4o_{i}": {"Choice": "Yes"} for i in (1, 2, 3)}}
    rows = {
        "single": [{"singleimage_question": last}] * 5,
        "multi_gpt": [yes] * 5,
        "video_gpt": [{"GPT4o_score": 2}] * 5,
    }
    with pytest.raises(ValueError, match="expected the outputs of PhyGenEval"):
        phygenbench.read(clone, MODEL, listed)
    stage_files(clone, rows)
    assert phygenbench.read(clone, MODEL, listed)[4] == {"single": 3, "multi_gpt": 3, "video_gpt": 2}
    stage_files(clone, {"video_gpt": [{"GPT4o_score": 5}] * 5})
    with pytest.raises(ValueError, match="entry 0 of"):
        phygenbench.read(clone, MODEL, listed)
    with pytest.raises(ValueError, match="expected the outputs"):
        phygenbench.read(clone, "../../../etc/passwd", listed)


def test_laws_that_are_spelt_twice_are_one():
    assert phygenbench.law_of("Atmosphere Pressure") == phygenbench.law_of("Atmospheric Pressure")
    assert phygenbench.law_of("deposition") == phygenbench.law_of("Deposition")


def test_videos_are_linked_under_official_names_and_nothing_is_overwritten(clone, run, tmp_path, film):
    videos = tmp_path / "videos"
    for i, caption in enumerate(CAPTIONS):
        film(videos / f"{caption.replace(' ', '_')}.mp4", 40 * i)
    out = tmp_path / "official"
    order = ("to-official", "--benchmark", "phygenbench", "--clone", clone, "--videos", videos, "--out", out)
    assert run(*order, "--name", MODEL).exit_code == 0
    assert run(*order, "--name", MODEL).exit_code == 0
    made = out / "PhyVideos" / MODEL
    assert sorted(p.name for p in made.iterdir()) == [f"output_video_{i + 1}.mp4" for i in range(5)]
    assert (made / "output_video_5.mp4").resolve() == (videos / "made-up_prompt_4.mp4").resolve()
    again = ("--benchmark", "phygenbench", "--clone", clone, "--videos", made, "--out", tmp_path / "again", "--copy")
    assert run("to-official", *again).exit_code == 0  # official names are names too
    copied = tmp_path / "again" / "PhyVideos" / "model" / "output_video_1.mp4"
    assert not copied.is_symlink()
    copied.write_bytes(b"another video")
    assert "nothing is overwritten" in run("to-official", *again).output
    assert copied.read_bytes() == b"another video"
    assert "a name that one file can have" in run(*order, "--name", "../../x").output


def test_a_folder_that_is_no_clone_says_why_there_are_no_prompts(tmp_path):
    with pytest.raises(ValueError, match="has no licence, so its prompts are not shipped"):
        phygenbench.prompts(tmp_path)
    path = tmp_path / "PhyGenBench" / "prompts.json"
    path.parent.mkdir()
    path.write_text('[{"caption": "x", "main_category": "Sound", "sub_category": "y"}]')
    with pytest.raises(ValueError, match="got 'Sound'"):
        phygenbench.prompts(tmp_path)


def test_no_caption_of_the_benchmark_is_in_this_repository():
    shipped = [p.name for p in prompts.DATA.iterdir()]
    assert sorted(shipped) == ["README.md", "vbench2", "videophy", "videophy2"]
    assert tables.text(prompts.DATA / "README.md").count("PhyGenBench has no licence") == 1
