"""Every record is read or listed with the reason, and none reaches outside its folder."""

import csv
import json

import pytest

from trainers import Filters, read_records
from trainers.records import count_records, list_skipped
from trainers.tables import Skipped

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


def cells(record):
    return {k: json.dumps(v) if isinstance(v, dict) else str(v) for k, v in record.items()}


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_csv_says_what_the_json_says(folder, suffix):
    expected, _ = read_records(put(folder, [WISA, TEST]))
    names = list(dict.fromkeys([*WISA, *TEST]))
    with (folder / f"a.{suffix}").open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        writer = csv.DictWriter(file, names, restval="", delimiter="\t" if suffix == "tsv" else ",")
        writer.writeheader()
        writer.writerows([cells(WISA), cells(TEST)])
    records, skipped = read_records(folder / f"a.{suffix}", filters=Filters(width_px=(720, 3000)))
    assert not skipped
    for record, wanted in zip(records, expected, strict=True):
        assert (record.path, record.caption, record.labels, record.id) == (
            wanted.path,
            wanted.caption,
            wanted.labels,
            wanted.id,
        )
        assert record.annotation == wanted.annotation
    records, skipped = read_records(folder / f"a.{suffix}", filters=Filters(width_px=(1281, 3000)))
    assert [(item.path, item.why) for item in skipped] == [("clips/a.mp4", "width is '1280', wanted 1281 to 3000")]


def test_a_parquet_says_what_the_json_says_and_embedded_bytes_are_not_read(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    expected = read_records(put(folder, [WISA, TEST]))
    table = pyarrow.Table.from_pylist([WISA | {"thumbnail": b"\0" * 10**6}, TEST], pyarrow.schema([
        ("file", pyarrow.string()), ("video_id", pyarrow.string()), ("captions", pyarrow.string()),
        ("duration", pyarrow.float64()), ("width", pyarrow.int64()), ("text_bbox_num", pyarrow.int32()),
        ("physical_annotation", pyarrow.struct({k: pyarrow.string() for k in ("phys_law", "q0", "q4")})),
        ("en_caption", pyarrow.string()), ("phys_law", pyarrow.string()), ("q1", pyarrow.string()),
        ("label", pyarrow.string()), ("video_path", pyarrow.string()), ("thumbnail", pyarrow.binary()),
    ]))  # fmt: skip
    parquet.write_table(table, folder / "a.parquet")
    assert read_records(folder / "a.parquet") == expected


def test_parquet_is_read_some_rows_at_a_time(folder, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    monkeypatch.setattr("trainers.tables.BATCH", 100)
    rows = [{"path": "clips/a.mp4", "caption": "x", "id": str(i)} for i in range(1050)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    sizes = []
    stock = parquet.ParquetFile.iter_batches

    def watched(self, **how):
        for batch in stock(self, **how):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", watched)
    records, _ = read_records(folder / "a.parquet")
    assert [record.id for record in records] == [str(i) for i in range(1050)]
    assert max(sizes) <= 100


def test_without_pyarrow_a_parquet_says_what_to_install(folder, monkeypatch):
    (folder / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'phystrainers\[parquet\]'"):
        read_records(folder / "a.parquet")


def test_a_damaged_line_is_listed_and_the_others_are_read(folder):
    good = json.dumps(WISA)
    (folder / "a.jsonl").write_text(f"{good}\n{{broken\n\n[1]\n{json.dumps(TEST)}\n{'[' * 10**5}\n")
    records, skipped = read_records(folder / "a.jsonl")
    assert [record.id for record in records] == ["v1", "clips/b.mp4"]
    assert [item.path for item in skipped] == ["line 2", "record 2", "line 6"]
    (folder / "a.csv").write_text(f"file,caption\nclips/a.mp4,one\na,b,c\nclips/b.mp4,{'x' * 200_000}\n")
    records, skipped = read_records(folder / "a.csv")
    assert [record.caption for record in records] == ["one"]
    assert [item.path for item in skipped] == ["line 3", "line 4"]
    assert "3 cells under 2 names" in skipped[0].why


def test_a_line_separator_within_a_caption_ends_no_line(folder):
    (folder / "a.jsonl").write_text(json.dumps(WISA | {"captions": "a\u2028b\x85c"}, ensure_ascii=False))
    records, skipped = read_records(folder / "a.jsonl")
    assert ([record.caption for record in records], skipped) == (["a\u2028b\x85c"], [])


def test_a_column_that_says_nothing_gives_way_to_the_next(folder):
    """WISA's validation records carry `video_path: null` beside others."""
    records, _ = read_records(put(folder, [{"path": None, "file": "clips/a.mp4", "caption": None, "captions": "x"}]))
    assert (records[0].path.name, records[0].caption) == ("a.mp4", "x")


def test_wisas_own_filters_keep_what_its_loader_keeps(folder):
    filters = Filters(duration_s=(3, None), width_px=(720, 3000), text_boxes=1)
    kept = {
        ("duration", 3.0): True, ("duration", 2.99): False, ("duration", 3600): True, ("duration", float("nan")): False,
        ("width", 720): True, ("width", 719): False, ("width", 3000): True, ("width", 3001): False,
        ("width", True): False, ("width", "wide"): False, ("width", "1024"): True,
        ("text_bbox_num", 0): True, ("text_bbox_num", 1): True, ("text_bbox_num", 2): False,
        ("text_bbox_num", None): True, ("text_bbox_num", -1): False,
    }  # fmt: skip
    for (key, value), stays in kept.items():
        records, skipped = read_records(put(folder, [TEST, WISA | {key: value}]), filters=filters)
        assert (len(records), len(skipped)) == ((2, 0) if stays else (1, 1)), (key, value)


def test_what_was_left_out_is_added_to_a_report_once(tmp_path):
    report = tmp_path / "sub" / "skipped.jsonl"
    for more in (
        [Skipped("a\udcff.mp4", "broken")],
        [Skipped("a\udcff.mp4", "broken"), Skipped("b.mp4", "too\nshort")],
    ):
        list_skipped(report, more)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert lines == [{"path": "a\udcff.mp4", "why": "broken"}, {"path": "b.mp4", "why": "too\nshort"}]


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


def test_records_that_are_not_here_count_as_one_for_a_plan(folder, tmp_path):
    assert count_records(put(folder, [WISA, TEST])) == 2
    assert count_records(tmp_path / "elsewhere") == 1
