"""The data set on disk."""

import json

import numpy as np
import pytest

import physworld
from world.clips import hold_out, read_clips, to_bytes, to_signed
from world.make import clip_id, make, read_fields, read_lines, share


def test_clips_on_disk_equal_the_simulation_bit_for_bit(dataset):
    clips = read_clips(dataset)
    assert len(clips) == 16
    records = read_lines(dataset / "records.jsonl")
    for index, record in enumerate(records):
        true = physworld.simulate(record["category"], record["seed"])
        assert np.array_equal(clips.videos[index], true.video)
        assert clips.captions[index] == true.caption
        fields, valid = read_fields(dataset / record["fields"])
        assert set(fields) == set(true.fields)
        assert all(np.array_equal(fields[slot], true.fields[slot]) for slot in fields)
        assert all(np.array_equal(valid[slot], true.valid[slot]) for slot in valid)


def test_a_killed_run_is_completed_and_what_stands_is_kept(tmp_path):
    make(tmp_path, clips=8, fields=False, sheets=False)
    whole = (tmp_path / "records.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:5]) + lines[5][:40])  # killed while writing a line
    victim = tmp_path / json.loads(lines[2])["file"]
    victim.unlink()
    kept = tmp_path / json.loads(lines[0])["file"]
    before = kept.stat().st_mtime_ns
    made = make(tmp_path, clips=8, fields=False, sheets=False)
    assert (made.written, made.kept) == (4, 4)
    assert (tmp_path / "records.jsonl").read_text() == whole
    assert victim.exists()
    assert kept.stat().st_mtime_ns == before


def test_another_kind_of_data_set_is_not_mixed_in(tmp_path):
    make(tmp_path, clips=1, fields=False, sheets=False)
    with pytest.raises(ValueError, match="another --out"):
        make(tmp_path, clips=1, split="test", fields=False, sheets=False)


def test_a_contact_sheet_shows_each_mechanism(tmp_path):
    made = make(tmp_path, clips=2, fields=False)
    assert [sheet.name for sheet in made.sheets] == ["sheet-rigid_body.png", "sheet-elastic.png"]
    assert all(sheet.read_bytes().startswith(b"\x89PNG") for sheet in made.sheets)


def test_clips_are_spread_evenly():
    assert sum(share(4003).values()) == 4003
    assert max(share(4003).values()) - min(share(4003).values()) == 1


def test_a_record_that_points_out_of_the_folder_is_refused(tmp_path):
    make(tmp_path / "data", clips=1, fields=False, sheets=False)
    path = tmp_path / "data" / "records.jsonl"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"file": "../outside.mp4"}) + "\n")
    with pytest.raises(ValueError, match="inside the folder"):
        read_clips(tmp_path / "data")


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(ValueError, match="world make"):
        read_clips(tmp_path)


def test_bytes_survive_the_models_range(dataset):
    videos = read_clips(dataset).videos
    assert np.array_equal(to_bytes(to_signed(videos)), videos)


def test_held_out_clips_are_not_trained_on_and_cover_every_mechanism(dataset):
    kept, held = hold_out(read_clips(dataset), 8)
    assert len(kept) == len(held) == 8
    assert set(held.mechanisms) == set(physworld.MECHANISMS)
    assert not any(np.array_equal(a, b) for a in kept.videos for b in held.videos)


def test_ids_sort_as_seeds_do():
    assert sorted(clip_id("fluid", seed, "train") for seed in (10, 9)) == [
        clip_id("fluid", seed, "train") for seed in (9, 10)
    ]
