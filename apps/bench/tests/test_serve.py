"""The server shows runs of its folder, to this machine, and nothing else."""

import json
import os

import pytest
from starlette.testclient import TestClient

from bench import results, serve

LINES = [
    {"stage": "observe", "global_step": i, "terms": {"flow": 1.0 / (i + 1)}, "gradient_norm": 0.5, "lr": 1e-3}
    for i in range(4)
]


@pytest.fixture
def root(eight, tmp_path):
    """A folder with a result, a training, and a secret beside it."""
    folder = tmp_path / "runs"
    results.write(eight().model_copy(update={"title": "<b>eight</b>"}), folder / "a result")
    (folder / "deep" / "training").mkdir(parents=True)
    (folder / "deep" / "training" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "log.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    return folder


@pytest.fixture
def client(root):
    with TestClient(serve.application(root), base_url="http://127.0.0.1") as opened:
        yield opened


def test_the_index_lists_results_and_trainings_escaped(client):
    page = client.get("/").text
    assert "&lt;b&gt;eight&lt;/b&gt;" in page
    assert "<b>eight" not in page
    assert "/result/a%20result" in page
    assert "/training/deep/training" in page
    assert "secret" not in page


def test_a_report_is_the_page_of_its_result_and_follows_it(client, root, eight):
    assert "nudge is higher in score than base" in client.get("/result/a%20result").text
    path = results.write(eight().model_copy(update={"title": "changed"}), root / "a result")
    os.utime(path, (1, 1))
    assert "changed" in client.get("/result/a%20result").text


def test_curves_grow_with_the_log_and_an_unfinished_line_waits(client, root):
    first = client.get("/log/deep/training").json()
    assert first["lines"] == 4
    assert first["last"] == {"step": 3, "stage": "observe"}
    assert first["charts"][0]["title"] == "loss"
    with (root / "deep" / "training" / "log.jsonl").open("a") as log:
        log.write(json.dumps(LINES[-1] | {"global_step": 9}) + "\n" + '{"stage": "obs')
    assert client.get("/log/deep/training").json()["last"]["step"] == 9
    assert 'data-log="/log/deep/training"' in client.get("/training/deep/training").text


@pytest.mark.parametrize(
    "place", ["../secret", "..%2Fsecret", "%2e%2e/secret", "deep/../../secret", "/etc", "%2Fetc", "a%00b", "nothing"]
)
def test_no_path_leads_out_of_the_folder(client, place):
    for page in ("result", "training", "log"):
        answer = client.get(f"/{page}/{place}")
        assert answer.status_code == 404
        assert "observe" not in answer.text


def test_a_link_out_of_the_folder_is_not_followed(client, root, tmp_path):
    (root / "link").symlink_to(tmp_path / "secret")
    assert client.get("/log/link").status_code == 404
    assert "/training/link" not in client.get("/").text


def test_files_are_not_sent_as_they_are(client):
    for place in ("/a%20result/result.json", "/deep/training/log.jsonl", "/result/a%20result/result.json"):
        assert client.get(place).status_code == 404


def test_another_name_for_this_machine_is_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8765"}).status_code == 200


def test_a_broken_result_says_what_is_wrong_on_its_page(client, root):
    (root / "a result" / "result.json").write_text('{"schema_version": 1, "benchmark": "<i>"}')
    answer = client.get("/result/a%20result")
    assert answer.status_code == 422
    assert "Field required" in answer.text
    assert client.get("/").status_code == 200


def test_no_page_runs_a_script_that_is_not_its_own(client):
    for place in ("/", "/training/deep/training", "/result/a%20result", "/nothing"):
        page = client.get(place).text
        assert "default-src 'none'; script-src 'sha256-" in page
        assert "unsafe-eval" not in page


def test_a_long_log_is_thinned_and_keeps_its_end():
    lines = [{"global_step": i} for i in range(5000)]
    kept = serve.thinned(lines)
    assert len(kept) <= serve.MOST_POINTS + 1
    assert kept[-1] == lines[-1]


def test_it_listens_on_this_machine_unless_told_otherwise(root, monkeypatch):
    seen = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **given: seen.update(given))
    serve.serve(root)
    assert seen["host"] == "127.0.0.1"
    with pytest.raises(ValueError, match="expected a folder of runs"):
        serve.serve(root / "nothing")
