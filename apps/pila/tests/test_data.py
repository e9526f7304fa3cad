"""Laws of the data: what becomes of good, bad and annotated clips, and that nothing is computed twice."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from physexperts import NoAnswer
from pila.data import labels_of, prepare
from pila.labels import language_model, multi_hot, read_caption
from trainers import TrainingWarning, video

CLIPS = Path(__file__).parents[3] / "tests" / "data" / "clips"
pytestmark = pytest.mark.filterwarnings("ignore:words outside the vocabulary", "ignore:frame spacing varies")


def moving(folder: Path, name: str, frames: int = 20, fps: int = 16, velocity: tuple[int, int] = (0, 1)) -> Path:
    """A bright square that moves by whole pixels a frame (y, x) over a dim pattern."""
    rng = np.random.default_rng(0)
    film = np.repeat((40 + 30 * rng.random((1, 32, 32, 1))).astype(np.uint8), frames, 0).repeat(3, 3)
    for t in range(frames):
        y, x = 2 + velocity[0] * t, 2 + velocity[1] * t
        film[t, y : y + 8, x : x + 8] = 210
    return video.write(folder / name, film, fps, lossless=True)


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "clips"
    home.mkdir()
    for name in ("a", "b"):
        moving(home, f"{name}.mp4")
        (home / f"{name}.txt").write_text("two balls collide")
    (home / "b.mp4").write_bytes((home / "b.mp4").read_bytes() + b"x")  # other bytes, same pictures
    return home


def test_the_world_is_simulated_once(backbone, make_recipe, tmp_path):
    recipe = make_recipe("data.clips=10")
    first = prepare(recipe, backbone, tmp_path, quiet=True)
    again = prepare(recipe, backbone, tmp_path, quiet=True)
    assert (first.clips, first.computed, again.computed) == (10, 10, 0)
    assert first.data.digest == again.data.digest
    assert first.labels["rigid_body"] == 3  # two of its own, one of collisions
    item = first.data[0]
    assert {n: tuple(t.shape) for n, t in item.items()} == {
        "latent": (16, 5, 8, 8),
        "flow": (2, 5, 8, 8),
        "times_s": (17,),
        "text": (8, 16),
        "labels": (8,),
    }
    assert torch.allclose(item["times_s"], torch.arange(17).double() / 16)


def test_a_clip_whose_frames_would_lie_unevenly_is_left_out_with_the_numbers(backbone, make_recipe, tmp_path):
    folder = tmp_path / "clips"
    moving(folder, "film.mp4", frames=40, fps=24)  # film at 16 fps: 42 and 83 ms
    moving(folder, "even.mp4", frames=40, fps=32)
    for name in ("film", "even"):
        (folder / f"{name}.txt").write_text("two balls collide")
    found = prepare(make_recipe(f"data.source={folder}"), backbone, tmp_path / "cache", quiet=True)
    assert [s.path for s in found.skipped] == ["film.mp4"]
    assert "spaced unevenly, by 33 %, at 16 fps: set data.fps" in found.skipped[0].why
    assert torch.allclose(found.data[0]["times_s"], torch.arange(17).double() / 16)


def test_a_larger_data_set_keeps_what_is_there(backbone, make_recipe, tmp_path):
    prepare(make_recipe("data.clips=8"), backbone, tmp_path, quiet=True)
    assert prepare(make_recipe("data.clips=16"), backbone, tmp_path, quiet=True).computed == 8


def test_flow_points_where_things_go_and_y_comes_first(backbone, make_recipe, tmp_path):
    for name, velocity in (("right", (0, 1)), ("down", (1, 0))):
        home = tmp_path / name
        moving(home, "x.mp4", frames=17, velocity=velocity)
        (home / "x.txt").write_text("a ball")
        found = prepare(make_recipe(f"data.source={home}"), backbone, tmp_path / "cache", quiet=True)
        flow = found.data[0]["flow"].mean((2, 3))[:, 1:4].mean(1)
        along, across = (flow[1], flow[0]) if name == "right" else (flow[0], flow[1])
        assert along > 0.01, name
        assert abs(across) < 0.5 * along, name


def test_a_folder_with_captions_needs_no_labels(backbone, make_recipe, folder, tmp_path):
    found = prepare(make_recipe(f"data.source={folder}"), backbone, tmp_path / "cache", quiet=True)
    assert found.clips == 2
    assert found.labels["collision"] == 2  # the keyword parser reads "collide"
    none = prepare(make_recipe(f"data.source={folder}", "data.labels=none"), backbone, tmp_path / "cache", quiet=True)
    assert sum(none.labels.values()) == 0
    assert none.computed == 0


def test_random_labels_keep_their_number_and_stay_the_same(backbone, make_recipe, tmp_path):
    recipe = make_recipe("data.clips=16", "data.labels=random")
    given = prepare(make_recipe("data.clips=16"), backbone, tmp_path, quiet=True).data
    first, second = (prepare(recipe, backbone, tmp_path, quiet=True).data for _ in range(2))
    rows = torch.arange(16)
    shuffled = first.get_batch(rows)["labels"]
    assert torch.equal(shuffled, second.get_batch(rows)["labels"])
    assert torch.equal(shuffled.sum(1), given.get_batch(rows)["labels"].sum(1))
    assert not torch.equal(shuffled, given.get_batch(rows)["labels"])


def test_a_truncated_video_is_skipped_and_listed_and_the_rest_goes_on(backbone, make_recipe, folder, tmp_path):
    whole = (folder / "a.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.txt").write_text("ink")
    found = prepare(make_recipe(f"data.source={folder}"), backbone, tmp_path / "cache", quiet=True)
    assert found.clips == 2
    assert [s.path for s in found.skipped] == ["broken.mp4"]
    listed = json.loads((tmp_path / "cache" / "skipped.json").read_text())
    assert listed[0]["path"] == "broken.mp4"
    assert "broken.mp4" in listed[0]["why"]


def test_a_clip_with_too_few_frames_is_skipped_or_stops(backbone, make_recipe, folder, tmp_path):
    moving(folder, "short.mp4", frames=9)
    (folder / "short.txt").write_text("ink")
    found = prepare(make_recipe(f"data.source={folder}"), backbone, tmp_path / "cache", quiet=True)
    assert [s.path for s in found.skipped] == ["short.mp4"]
    assert "expected 17 frames" in found.skipped[0].why
    with pytest.raises(ValueError, match=r"short\.mp4: expected 17 frames"):
        prepare(make_recipe(f"data.source={folder}", "data.short=error"), backbone, tmp_path / "cache", quiet=True)


def test_an_empty_folder_says_what_was_expected(backbone, make_recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clips"):
        prepare(make_recipe(f"data.source={tmp_path / 'empty'}"), backbone, tmp_path / "cache", quiet=True)


def test_a_folder_of_broken_videos_says_why(backbone, make_recipe, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "bad" / "a.txt").write_text("ink")
    (tmp_path / "bad" / "b.mp4").touch()
    with pytest.raises(ValueError, match="none of the 2 clips") as error:
        prepare(make_recipe(f"data.source={tmp_path / 'bad'}"), backbone, tmp_path / "cache", quiet=True)
    assert "a.mp4: " in str(error.value)
    assert "b.mp4: " in str(error.value)
    listed = json.loads((tmp_path / "cache" / "skipped.json").read_text())
    assert {item["path"] for item in listed} == {"a.mp4", "b.mp4"}


def test_records_whose_files_are_elsewhere_say_how_to_name_the_place(backbone, make_recipe, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([{"file": "a.mp4", "caption": "ink"}]))
    with pytest.raises(ValueError, match=r"set data\.root"):
        prepare(make_recipe(f"data.source={tmp_path / 'r.json'}"), backbone, tmp_path / "cache", quiet=True)


def test_a_clip_slower_than_asked_names_the_rate_to_set(backbone, make_recipe, folder, tmp_path):
    moving(folder, "slow.mp4", frames=20, fps=8)
    (folder / "slow.txt").write_text("ink")
    found = prepare(make_recipe(f"data.source={folder}"), backbone, tmp_path / "cache", quiet=True)
    assert [s.path for s in found.skipped] == ["slow.mp4"]
    assert "expected 17 frames at 16 fps (1.00 s), got 20 at 8 fps (2.38 s)" in found.skipped[0].why
    assert "data.fps" in found.skipped[0].why


def test_an_interrupted_cache_goes_on_where_it_stopped(backbone, make_recipe, tmp_path, monkeypatch):
    import physworld

    recipe = make_recipe("data.clips=16", "data.encode_batch=4")
    whole = prepare(recipe, backbone, tmp_path / "whole", quiet=True)
    simulate, calls = physworld.simulate_many, []

    def interrupted(mechanism, *rest, **options):
        calls.append(mechanism)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return simulate(mechanism, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(physworld, "simulate_many", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, backbone, tmp_path / "cache", quiet=True)
    again = prepare(recipe, backbone, tmp_path / "cache", quiet=True)
    assert 0 < again.computed < 16
    assert again.data.digest == whole.data.digest


def test_a_path_outside_the_data_folder_is_refused(backbone, make_recipe, folder, tmp_path):
    records = [{"file": "a.mp4", "caption": "ink"}, {"file": "../secret.mp4", "caption": "ink"}]
    shutil.copy(folder / "a.mp4", tmp_path / "secret.mp4")
    (folder / "records.json").write_text(json.dumps(records))
    found = prepare(make_recipe(f"data.source={folder / 'records.json'}"), backbone, tmp_path / "cache", quiet=True)
    assert found.clips == 1
    assert "outside the data folder" in found.skipped[0].why


def test_a_wrong_frame_count_names_the_nearest_ones(backbone, make_recipe, tmp_path):
    with pytest.raises(ValueError, match="Use 13 or 17 frames"):
        prepare(make_recipe("data.frames=16"), backbone, tmp_path, quiet=True)


def wisa(**answers: str) -> list[dict[str, str]]:
    return [{"file": "a.mp4", "en_caption": "something", **answers}]


def test_wisa_annotations_become_labels(backbone, make_recipe, folder, tmp_path):
    (folder / "wisa.json").write_text(json.dumps(wisa(q0="liquid motion", q1="melting.", label="Melting ")))
    recipe = make_recipe(f"data.source={folder / 'wisa.json'}")
    found = prepare(recipe, backbone, tmp_path / "cache", quiet=True)
    assert {m for m, n in found.labels.items() if n} == {"fluid", "phase_change", "thermal"}


def test_an_unknown_category_stops_with_a_hint_or_is_listed(backbone, make_recipe, folder, tmp_path):
    (folder / "wisa.json").write_text(json.dumps(wisa(q0="liquid moton, collision")))
    with pytest.raises(ValueError, match="liquid moton") as error:
        prepare(make_recipe(f"data.source={folder / 'wisa.json'}"), backbone, tmp_path / "cache", quiet=True)
    assert "a.mp4" in str(error.value)
    assert "liquid motion" in str(error.value)
    listing = make_recipe(f"data.source={folder / 'wisa.json'}", "data.on_unknown=list")
    found = prepare(listing, backbone, tmp_path / "cache", quiet=True)
    assert found.labels["collision"] == 1
    assert found.skipped == ()  # the clip stays, its unknown category goes
    assert "liquid moton" in found.notes[0].why


def test_the_shipped_records_of_real_clips_are_understood(make_recipe, tmp_path):
    from trainers.data import read_records

    listed = Path(__file__).parents[1] / "examples" / "clips.json"
    for record in json.loads(listed.read_text()):
        (tmp_path / record["file"]).touch()
    records, skipped = read_records(listed, root=tmp_path)
    assert (len(records), skipped) == (7, [])
    labels = {r.path.stem: labels_of(r, make_recipe()).mechanisms for r in records}
    assert labels["generated_videophy_apple_bounce"] == ("rigid_body", "collision")
    assert labels["sam2_04_coffee"][0] == "fluid"


def test_real_clips_with_annotations_become_a_data_set(backbone, make_recipe, tmp_path):
    records = [
        {"file": "apple_bounce.mp4", "en_caption": "An apple bounces.", "q0": "collision, rigid body motion"},
        {"file": "bulk_water.mp4", "en_caption": "Particles tremble in water.", "q0": "liquid motion"},
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    recipe = make_recipe(f"data.source={tmp_path / 'records.json'}", f"data.root={CLIPS}", "data.fps=8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        found = prepare(recipe, backbone, tmp_path / "cache", quiet=True)
    assert (found.clips, found.skipped) == (2, ())
    assert found.labels["collision"] == found.labels["fluid"] == 1
    assert found.data.columns["flow"].abs().max() > 0.05


def test_keywords_find_the_mechanism_of_the_worlds_captions(make_recipe):
    import physworld

    right = total = 0
    for index, mechanism in enumerate(physworld.MECHANISMS):
        for clip in physworld.simulate_many(mechanism, range(6), split="test"):
            labels = multi_hot([clip.caption], how="keywords", parser=make_recipe().parser)[0]
            right, total = right + bool(labels[index]), total + 1
    assert right / total > 0.8


def test_a_language_model_that_is_not_configured_says_what_to_set(make_recipe):
    with pytest.raises(ValueError, match=r"parser\.base_url"):
        read_caption("ink", how="llm", parser=make_recipe().parser)


def test_a_language_model_refines_unless_told_not_to_and_falls_back_unless_told_not_to(make_recipe, tmp_path):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    asked: list[str] = []
    good = '{"mechanisms": ["collision", "rigid_body"]}'
    answers = ["Two balls hit each other.", good, good, "x", "no idea", "no idea", "x", "no idea", "no idea"]

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][1]["content"])
            reply = {"choices": [{"message": {"content": answers[len(asked) - 1]}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def parser(*sets):
        return make_recipe(
            f"parser.base_url=http://127.0.0.1:{server.server_port}/v1", "parser.model=test", *sets
        ).parser

    try:
        kept = f"parser.cache={tmp_path}"
        for _ in range(2):  # the second from the cache
            assert read_caption("balls", how="llm", parser=parser(kept)).mechanisms == ("rigid_body", "collision")
        assert [json.loads(text) for text in asked] == [
            {"prompt": "balls"},
            {"description": "Two balls hit each other."},
        ]
        assert multi_hot(["balls"], how="llm", parser=parser(kept, "parser.refine=false")).sum() == 2
        assert json.loads(asked[2]) == {"description": "balls"}
        with pytest.warns(UserWarning, match="by keywords.*no idea"):
            assert read_caption("ink swirls", how="llm", parser=parser()).source == "keywords"
        with pytest.raises(NoAnswer, match="no idea"):
            read_caption("ink swirls", how="llm", parser=parser("parser.fallback=error"))
        assert len(asked) == len(answers)
    finally:
        server.shutdown()
        server.server_close()


def test_a_run_has_one_language_model_so_that_it_warns_once(make_recipe):
    parser = make_recipe("parser.local=anywhere").parser
    assert language_model(parser) is language_model(parser.model_copy())
