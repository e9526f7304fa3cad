"""Captions that are missing are made once, never over those that are there, and stay where people can change them."""

import json
from datetime import date

import numpy as np
import pytest

from trainers import captions, read_records, video


def film(path, frames=12, height=24, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 10
    return video.write(path, np.broadcast_to(picture, (frames, height, width, 3)).copy(), 8)


@pytest.fixture
def clips(tmp_path):
    for name in ("a.mp4", "b b.mp4", "sub/ü.mp4"):
        film(tmp_path / "clips" / name)
    (tmp_path / "clips" / "a.txt").write_text("a grey picture")
    return tmp_path / "clips"


def say(path, frames):
    return f" {path.stem} in\n{len(frames)} pictures "


def fill(clips, how=say, by="model", **more):
    return captions.fill(clips, how, by, quiet=True, **more)


def said(clips):
    return {record.id: record.caption for record in read_records(clips)[0]}


def test_what_is_missing_is_made_and_read_and_says_who_wrote_it(clips):
    done = fill(clips)
    assert (done.there, done.made, done.skipped) == (1, 2, ())
    assert said(clips) == {
        "a.mp4": "a grey picture",
        "b b.mp4": "b b in 8 pictures",
        "sub/ü.mp4": "ü in 8 pictures",
    }
    table = json.loads((clips / "captions.json").read_text(encoding="utf-8"))
    assert {row["path"]: row["caption_by"] for row in table} == {"b b.mp4": "model", "sub/ü.mp4": "model"}


def test_a_caption_that_is_there_or_was_changed_is_never_written_over(clips):
    fill(clips)
    table = clips / "captions.json"
    table.write_text(table.read_text(encoding="utf-8").replace("b b in 8 pictures", "mine"), encoding="utf-8")
    (clips / "a.txt").write_text("changed")
    film(clips / "later.mp4")
    asked = []
    done = fill(clips, lambda path, frames: asked.append(path.name) or "new", "another")
    assert (done.there, done.made, asked) == (3, 1, ["later.mp4"])
    assert said(clips) == {
        "b b.mp4": "mine",
        "sub/ü.mp4": "ü in 8 pictures",
        "later.mp4": "new",
        "a.mp4": "changed",
    }


def test_labels_beside_a_missing_caption_are_kept(clips):
    rows = [{"path": "b b.mp4", "labels": ["fluid"], "caption": ""}, {"path": "a.mp4", "caption": "from the table"}]
    (clips / "captions.json").write_text(json.dumps(rows))
    fill(clips)
    records = {record.id: record for record in read_records(clips)[0]}
    assert records["b b.mp4"].labels == ("fluid",)
    assert records["a.mp4"].caption == "from the table"


def test_a_stopped_run_has_written_what_it_had_and_the_next_goes_on(clips):
    def dies(path, frames):
        if path.stem == "ü":
            raise KeyboardInterrupt
        return "first"

    with pytest.raises(KeyboardInterrupt):
        fill(clips, dies)
    assert fill(clips).made == 1
    assert said(clips)["b b.mp4"] == "first"


def test_a_table_is_filled_elsewhere_and_goes_on_there(clips):
    table = clips.parent / "records.jsonl"
    rows = [{"path": "a.mp4", "q0": "liquid motion"}, {"path": "b b.mp4", "caption": "given"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="expected --out"):
        fill(table, root=clips)
    out = clips.parent / "filled.json"
    assert fill(table, root=clips, out=out).made == 1
    records = read_records(out, root=clips)[0]
    assert [r.caption for r in records] == ["a in 8 pictures", "given"]
    assert records[0].annotation == {"q0": "liquid motion"}
    assert fill(table, root=clips, out=out).made == 0


def test_a_table_may_hold_dates_and_a_filled_one_rows_without_a_name(clips):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    table, out = clips.parent / "records.parquet", clips.parent / "filled.json"
    pq.write_table(pa.table({"path": ["a.mp4"], "caption": [""], "day": [date(2026, 1, 2)]}), table)
    out.write_text(json.dumps([{"path": ["b"], "caption": "no name"}]))
    fill(table, root=clips, out=out)
    assert json.loads(out.read_text())[0]["day"] == "2026-01-02"


def test_what_cannot_be_read_or_is_not_answered_is_listed_and_asked_again(clips):
    (clips / "broken.mp4").write_bytes(b"no film")

    def fails_once(path, frames):
        if path.stem == "ü":
            raise ValueError("the server is busy")
        return "fine"

    done = fill(clips, fails_once)
    assert {s.path: s.why[:18] for s in done.skipped} == {
        "broken.mp4": f"{clips}"[:18],
        "sub/ü.mp4": "the server is busy",
    }
    assert fill(clips).made == 1


def test_a_model_that_never_answers_is_not_asked_about_every_clip(clips):
    for number in range(4):
        film(clips / f"more{number}.mp4")
    asked = []

    def mute(path, frames):
        asked.append(path)
        return ""

    with pytest.raises(ValueError, match="none of 3 clips in a row"):
        fill(clips, mute)
    assert len(asked) == 3


def test_only_the_beginning_is_looked_at_where_that_is_asked_for(clips):
    seen = []
    fill(clips, lambda path, frames: seen.append(frames[..., 0].mean((1, 2)).round(-1).tolist()) or "x", seconds=0.5)
    assert seen[0] == [0, 10, 20, 30, 40]  # 8 fps


def test_large_pictures_are_shrunk_and_keep_their_shape(tmp_path):
    film(tmp_path / "large.mp4", frames=2, height=900, width=600)
    sizes = []
    fill(tmp_path, lambda path, frames: sizes.append(frames.shape) or "x")
    assert sizes == [(2, 448, 299, 3)]


def test_a_folder_without_clips_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no clips"):
        fill(tmp_path)


def test_names_are_captions_only_where_they_have_words(tmp_path):
    film(tmp_path / "0001.mp4")
    film(tmp_path / "two_balls-collide.mp4")
    done = fill(tmp_path, captions.from_name, captions.NAMES, frames=0)
    assert [s.path for s in done.skipped] == ["0001.mp4"]
    assert said(tmp_path) == {"two_balls-collide.mp4": "two balls collide"}
