"""A result keeps what it says, and a file that is not one is told why."""

import json

import pytest

from bench import published, results
from bench.results import Comparison, Item, Metric, PromptSet, Rater, Result, System


def small(**changed) -> Result:
    items = (
        Item(id="a ball", group="rigid_body", video="videos/0.mp4", seed=3, values={"pass": 1.0, "g": float("nan")}),
    )
    system = System(name="base", metrics={"pass": Metric(value=1.0, n=1)}, items=items)
    content = {
        "benchmark": "world",
        "prompt_set": PromptSet(name="world test", count=1),
        "rater": Rater(name="physworld", kind="law"),
        "systems": (system,),
    }
    return Result(**{**content, **changed})


def test_a_result_is_read_as_it_was_written_from_file_or_folder(tmp_path):
    path = results.write(small(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["result.json"]
    assert results.read(path) == results.read(tmp_path / "run") == small()
    assert results.write(small(), tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_what_json_cannot_say_is_null(tmp_path):
    path = results.write(small(), tmp_path)
    assert json.loads(path.read_text())["systems"][0]["items"][0]["values"] == {"pass": 1.0, "g": None}


@pytest.mark.parametrize(
    "video", ["../x.mp4", "/etc/passwd", "a/../../b.mp4", "", "C:\\x.mp4", "\\\\host\\x", "a\0.mp4"]
)
def test_a_video_outside_of_the_folder_is_refused(video):
    with pytest.raises(ValueError, match="inside the folder"):
        Item(id="x", video=video)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    with pytest.raises(ValueError, match="leads to"):
        results.video_path(tmp_path / "run", Item(id="x", video="a.mp4"))
    assert results.video_path(tmp_path / "run", Item(id="x", video="b.mp4")) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a result of `bench`"),
        ('{"schema_version": 99}', "expected schema version 1"),
        ('{"schema_version": 1, "benchmark": "x", "typo": 1}', "typo: Extra inputs"),
    ],
)
def test_a_file_that_is_no_result_says_what_is_wrong(tmp_path, text, said):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        results.read(tmp_path)


def test_a_folder_without_a_result_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"folder with a result\.json"):
        results.read(tmp_path)


def test_contradictions_are_refused():
    for build in (
        lambda: Metric(value=0.1, n=3, n_valid=4),
        lambda: Metric(value=0.1, n=3, low=0.0),
        lambda: Metric(value=0.1, n=3, low=0.2, high=0.1),
        lambda: small(systems=(System(name="x"), System(name="x"))),
        lambda: System(name="x", items=(Item(id="a"), Item(id="a"))),
    ):
        with pytest.raises(ValueError, match="expected"):
            build()


def test_a_difference_is_clear_only_with_an_interval_beside_zero():
    def between(low: float | None, high: float | None) -> bool:
        return Comparison(a="x", b="y", metric="score", mean=0.1, n=9, low=low, high=high).clear

    assert between(0.1, 0.2)
    assert between(-0.2, -0.1)
    assert not between(-0.1, 0.1)
    assert not between(None, None)


def test_published_numbers_have_sources_and_never_one_name_for_two_experiments():
    known = published.published()
    joints = [b for b in known.blocks if "joint" in b.columns]
    assert len({(b.prompt_set, b.rater, b.reading) for b in joints}) == len(joints)
    wan = {b.name: row["joint"] for b in joints for row in b.rows if row["system"] == "Wan2.1-T2V-1.3B"}
    assert sorted(float(v) for v in wan.values()) == [0.643, 24.8]  # two experiments under one name
    assert {b.benchmark for b in known.blocks} == {"videophy", "videophy2", "vbench2", "phygenbench", "physics-iq"}


def test_published_averages_are_those_of_their_rows():
    """PhyGenBench weighs its 40, 50, 30 and 40 prompts; a figure that was copied wrongly shows here."""
    weights = {"mechanics": 40, "optics": 50, "thermal": 30, "material": 40}
    reported, board = published.published().beside("phygenbench")
    assert (len(reported.rows), len(board.rows)) == (7, 2)
    for row in (*reported.rows, *board.rows):
        mean = sum(float(row[name]) * n for name, n in weights.items()) / 160
        assert mean == pytest.approx(float(row["average"]), abs=0.01 if row in board.rows else 0.001)


def test_every_source_of_published_numbers_can_be_looked_up_and_is_used():
    known = published.published()
    assert known.sources.keys() == {row["source"] for block in known.blocks for row in block.rows}
    assert all("arXiv" in s.text or "repository" in s.text for s in known.sources.values())


def test_a_published_row_without_a_source_or_with_a_strange_column_is_refused():
    block = published.published().blocks[0].model_dump()
    for row in ({"system": "x"}, {"system": "x", "source": "wisa", "typo": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            published.Block.model_validate({**block, "rows": (row,)})
    lost = {"sources": {}, "blocks": [block]}
    with pytest.raises(ValueError, match="expected sources"):
        published.Published.model_validate(lost)
