"""Every record is read or listed with the reason, and none reaches outside its folder."""

import json

import pytest

from trainers import Filters, read_records

WISA = {
    "file": "clips/a.mp4",
    "video_id": "v1",
    "captions": " A ball falls. ",
    "duration": 5.0,
    "width": 1280,
    "text_bbox_num": 0,
    "physical_annotation": {"phys_law": "gravity", "q0": "rigid body motion", "q4": "an unheard-of change"},
}
TEST = {
    "en_caption": "Ice melts.",
    "phys_law": "melting",
    "q1": "melting",
    "label": "Solidification ",
    "video_path": "clips/b.mp4",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "clips").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "data" / "clips" / f"{name}.mp4").write_bytes(b"film")
    (tmp_path / "secret.mp4").write_bytes(b"film")
    return tmp_path / "data"


def put(folder, records, name="records.json"):
    (folder / name).write_text(json.dumps(records))
    return folder / name


def test_wisa_records_of_both_kinds_keep_their_raw_annotation(folder):
    records, skipped = read_records(put(folder, [WISA, TEST]))
    assert not skipped
    assert [record.id for record in records] == ["v1", "clips/b.mp4"]
    assert records[0].path == folder / "clips" / "a.mp4"
    assert records[0].caption == "A ball falls."
    assert records[0].annotation == WISA["physical_annotation"]
    assert records[0].extra == {"duration": 5.0, "width": 1280, "text_bbox_num": 0}
    assert records[1].annotation == {"phys_law": "melting", "q1": "melting"}
    assert records[1].labels == ("Solidification",)


def test_a_list_a_data_map_a_jsonl_and_the_folder_itself_give_the_same(folder):
    expected = read_records(put(folder, [WISA, TEST], "list.json"))
    assert read_records(put(folder, {"data": [WISA, TEST]}, "map.json")) == expected
    (folder / "lines.jsonl").write_text("\n".join(json.dumps(record) for record in (WISA, TEST)) + "\n")
    assert read_records(folder / "lines.jsonl") == expected
    put(folder, [WISA, TEST], "annotations.json")
    assert read_records(folder) == expected


def test_a_folder_takes_captions_from_the_text_beside_each_clip_or_from_captions_json(folder):
    (folder / "clips" / "a.txt").write_text("a ball\n")
    records, skipped = read_records(folder)
    assert [(record.id, record.caption) for record in records] == [("clips/a.mp4", "a ball")]
    assert [(item.path, "b.txt" in item.why) for item in skipped] == [("clips/b.mp4", True)]
    put(folder, {"clips/a.mp4": "one", "clips/b.mp4": {"caption": "two", "labels": ["thermal"]}}, "captions.json")
    records, skipped = read_records(folder)
    assert [(record.caption, record.labels) for record in records] == [("one", ()), ("two", ("thermal",))]
    assert not skipped


@pytest.mark.parametrize("how", ["dots", "absolute", "link"])
def test_a_path_outside_the_folder_is_skipped_with_the_reason_and_refused_when_it_is_all(folder, how):
    secret = folder.parent / "secret.mp4"
    name = {"dots": "../secret.mp4", "absolute": str(secret), "link": "clips/link.mp4"}[how]
    if how == "link":
        (folder / name).symlink_to(secret)
    records, skipped = read_records(put(folder, [WISA, {"path": name, "caption": "x"}]))
    assert [record.id for record in records] == ["v1"]
    assert "outside the data folder" in skipped[0].why
    with pytest.raises(ValueError, match="outside the data folder"):
        read_records(put(folder, [{"path": name, "caption": "x"}]))


def test_a_caption_or_a_list_that_links_out_of_the_folder_is_not_read(folder):
    (folder.parent / "secret.txt").write_text("the password")
    (folder / "clips" / "a.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "clips" / "b.txt").write_text("a ball")
    records, skipped = read_records(folder)
    assert [record.caption for record in records] == ["a ball"]
    assert "outside the data folder" in skipped[0].why
    (folder.parent / "secret.json").write_text(json.dumps({"clips/a.mp4": "the password"}))
    (folder / "captions.json").symlink_to(folder.parent / "secret.json")
    with pytest.raises(ValueError, match="outside the data folder"):
        read_records(folder)


def test_another_root_may_hold_the_clips(folder):
    path = put(folder, [{"path": "secret.mp4", "caption": "x"}])
    assert len(read_records(path, root=folder.parent)[0]) == 1


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("text", "expected an object"),
        ({"caption": "x"}, "expected the clip's path"),
        ({"path": "clips/none.mp4", "caption": "x"}, "there is no file"),
        ({"path": "clips", "caption": "x"}, "there is no file"),
        ({"path": "a\0b", "caption": "x"}, "expected the clip's path"),
        ({"path": "x" * 5000, "caption": "x"}, "cannot be followed"),
        ({"path": "clips/b.mp4"}, "has no caption"),
        ({"path": "clips/b.mp4", "caption": float("nan")}, "has no caption"),
        ({"path": "clips/b.mp4", "caption": 3}, "caption that is text"),
        ({"path": "clips/b.mp4", "caption": "x", "physical_annotation": [1]}, "to be an object"),
        ({"path": "clips/b.mp4", "caption": "x", "labels": [1]}, "labels that are text"),
        ({"path": "clips/b.mp4", "caption": "x", "id": "v1"}, "same id"),
    ],
)
def test_a_hostile_record_is_listed_and_the_rest_goes_on(folder, raw, why):
    records, skipped = read_records(put(folder, [WISA, raw]))
    assert [record.id for record in records] == ["v1"]
    assert len(skipped) == 1
    assert why in skipped[0].why


def test_the_filters_are_off_unless_asked_for(folder):
    small = WISA | {"file": "clips/b.mp4", "video_id": "v2", "width": 320, "text_bbox_num": 4, "duration": 60}
    path = put(folder, [WISA, small])
    assert len(read_records(path)[0]) == 2
    for filters in (Filters(width_px=(720, 3000)), Filters(duration_s=(3.0, 10.0)), Filters(text_boxes=1)):
        records, skipped = read_records(path, filters=filters)
        assert [record.id for record in records] == ["v1"]
        assert "wanted" in skipped[0].why


def test_nothing_to_read_is_an_error_that_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="holds no clips"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match="expected a folder"):
        read_records(tmp_path / "none")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_records(tmp_path / "bad.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        read_records(tmp_path / "deep.json")
    (tmp_path / "number.json").write_text("3")
    with pytest.raises(ValueError, match="list of records"):
        read_records(tmp_path / "number.json")
