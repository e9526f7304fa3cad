"""Bundles go to the hub and come back, through the real client and a small server on this machine."""

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from torch import nn

from backbones import attach, bundle, hub


class Shelf:
    """Repositories as the hub keeps them: commits of whole trees, and branches that point at them."""

    def __init__(self):
        self.trees, self.heads, self.asked = {}, {}, []

    def commit(self, repo, branch, files):
        tree = dict(self.trees.get((repo, self.heads.get((repo, branch), "")), {})) | files
        sha = hashlib.sha1(repr(sorted(tree.items())).encode(), usedforsecurity=False).hexdigest()
        self.trees[repo, sha], self.heads[repo, branch] = tree, sha
        return sha

    def find(self, repo, revision):
        sha = self.heads.get((repo, revision), revision)
        return sha, self.trees.get((repo, sha))


class Answers(BaseHTTPRequestHandler):
    """The part of the hub's interface that a push and a pull of small files use."""

    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def log_message(self, *args):
        pass

    def send(self, body, status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parts(self):
        return self.path.partition("?")[0].strip("/").split("/")

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.parts():
            case ["api", "repos", "create"]:
                about = json.loads(data)
                owner, _, name = about["name"].rpartition("/")
                repo = f"{about.get('organization') or owner or 'me'}/{name}"
                if owner == "taken" or about.get("organization") == "taken":
                    return self.send({"error": "You do not have the rights"}, 403)
                self.shelf.heads.setdefault((repo, "main"), self.shelf.commit(repo, "main", {}))
                return self.send({"url": f"http://{self.headers['Host']}/{repo}"})
            case ["api", "validate-yaml"]:
                return self.send({"errors": [], "warnings": []})
            case ["api", "models", org, name, "branch", branch]:
                self.shelf.heads.setdefault((f"{org}/{name}", branch), self.shelf.heads[f"{org}/{name}", "main"])
                return self.send({})
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(data)["files"]
                return self.send(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            case ["api", "models", org, name, "commit", branch]:
                lines = [json.loads(line) for line in data.splitlines()]
                files = {
                    v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"
                }
                sha = self.shelf.commit(f"{org}/{name}", branch, files)
                return self.send(
                    {
                        "commitUrl": f"http://{self.headers['Host']}/{org}/{name}/commit/{sha}",
                        "commitOid": sha,
                        "pullRequestUrl": None,
                    }
                )
        return self.send({"error": self.path}, 404)

    def do_GET(self):
        match self.parts():
            case ["api", "models", org, name, *rest]:
                sha, tree = self.shelf.find(f"{org}/{name}", rest[1] if rest and rest[0] == "revision" else "main")
                if tree is None:
                    return self.send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                if rest and rest[0] == "tree":
                    sha, tree = self.shelf.find(f"{org}/{name}", rest[1])
                    return self.send(
                        [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in tree.items()]
                    )
                about = {"id": f"{org}/{name}", "sha": sha, "private": False, "tags": [], "downloads": 0, "likes": 0}
                return self.send(about | {"siblings": [{"rfilename": n, "size": len(c)} for n, c in tree.items()]})
            case [org, name, "resolve", revision, file]:
                sha, tree = self.shelf.find(f"{org}/{name}", revision)
                if tree is None or file not in tree:
                    return self.send(b"", 404, X_Error_Code="EntryNotFound")
                self.shelf.asked.append(file)
                etag = f'"{hashlib.sha256(tree[file]).hexdigest()}"'
                return self.send(tree[file], ETag=etag, X_Repo_Commit=sha)
        return self.send({"error": self.path}, 404)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def server():
    shelf = Shelf()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Answers,), {"shelf": shelf}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", shelf
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def shelf(server, tmp_path, monkeypatch):
    """The server as the hub of this process, with an empty cache and nobody's token."""
    import huggingface_hub
    from huggingface_hub import constants

    url, shelf = server
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    api = huggingface_hub.HfApi

    def with_token(**given):
        return api(endpoint=url, token=given.get("token") or "hf_test")

    monkeypatch.setattr(huggingface_hub, "HfApi", with_token)
    huggingface_hub.close_session()  # a client made while offline would stay so
    yield shelf
    huggingface_hub.close_session()


class Offset(nn.Module):
    kind = "offset"

    def __init__(self):
        super().__init__()
        self.number = nn.ParameterDict({"value": nn.Parameter(torch.tensor(0.25))})

    @classmethod
    def from_bundle(cls, made, backbone):
        adapter = cls()
        adapter.number.load_state_dict(made.tensors["number"])
        return adapter

    def prepare(self, prompts, text):
        pass

    def correction(self, x_s, v, sigma, text):
        return torch.zeros_like(v) + self.number["value"]

    def groups(self):
        return {"number": self.number}


def save(folder, backbone, value=0.25):
    groups = {"number": {"value": torch.tensor(value)}}
    return bundle.save(folder, kind="offset", groups=groups, backbone=backbone, config={"a": [1]},
                       stages=[{"name": "A", "steps": 3}])  # fmt: skip


def test_a_bundle_goes_to_the_hub_and_comes_back_as_it_was(shelf, backbone, tmp_path):
    folder = save(tmp_path / "b", backbone)
    (folder / "notes.txt").write_text("mine")
    (folder / "weights.pkl").write_bytes(b"nobody's")
    name = bundle.push(folder, "org/first")
    repo, commit = name.split("@")
    assert (repo, commit) == ("org/first", shelf.heads["org/first", "main"])
    assert set(shelf.trees["org/first", commit]) == {"bundle.json", "bundle.safetensors", "README.md"}
    back = bundle.load("org/first")
    assert torch.equal(back.tensors["number"]["value"], torch.tensor(0.25))
    assert (back.source, back.meta) == (name, bundle.load(folder).meta)
    assert bundle.load(folder).source == ""


def test_a_hub_id_is_attached_in_one_call(shelf, backbone, tmp_path, monkeypatch):
    bundle.push(save(tmp_path / "b", backbone), "org/attach")
    entry = type("Entry", (), {"name": "offset", "load": lambda self: Offset})()
    monkeypatch.setattr(bundle, "entry_points", lambda *, group, name=None: [entry] if group == bundle.ADAPTERS else [])
    with attach(backbone, "org/attach") as attached:
        assert attached.adapter.number["value"].item() == 0.25


def test_a_revision_is_one_state_for_ever(shelf, backbone, tmp_path):
    first = bundle.push(save(tmp_path / "a", backbone, 1.0), "org/moving")
    second = bundle.push(save(tmp_path / "b", backbone, 2.0), "org/moving")
    tried = bundle.push(save(tmp_path / "c", backbone, 3.0), "org/moving", branch="trial")
    values = [float(bundle.load(n).tensors["number"]["value"]) for n in (first, second, tried, "org/moving@trial")]
    assert values == [1.0, 2.0, 3.0, 3.0]
    assert bundle.load("org/moving").source == second
    copy = bundle.pull("org/moving", revision="trial", into=tmp_path / "copy")
    assert bundle.load(copy).source == tried
    assert {p.name for p in copy.iterdir()} == {"bundle.json", "bundle.safetensors", "README.md", "source.json"}


def test_only_the_files_of_a_bundle_are_fetched(shelf, backbone, tmp_path):
    bundle.push(save(tmp_path / "b", backbone), "org/loaded")
    shelf.commit(
        "org/loaded", "main", {"evil.py": b"raise SystemExit", "model.pkl": b"x", "bundle.safetensors.pkl": b"x"}
    )
    shelf.asked.clear()
    folder = bundle.pull("org/loaded")
    assert set(shelf.asked) == {"bundle.json", "bundle.safetensors", "README.md"}
    assert {p.name for p in folder.iterdir()} == set(shelf.asked)


def test_without_a_network_the_cache_answers(shelf, backbone, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    name = bundle.push(save(tmp_path / "b", backbone), "org/cached")
    bundle.pull("org/cached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert bundle.load("org/cached").source == bundle.load(name).source == name
    with pytest.raises(ValueError, match=r"no folder 'org/other' here, and as a hub id it failed.*org/other"):
        bundle.load("org/other")


def test_what_is_no_whole_bundle_is_neither_pushed_nor_pulled(shelf, backbone, tmp_path):
    with pytest.raises(ValueError, match="expected a bundle folder"):
        bundle.push(tmp_path, "org/empty")
    assert ("org/empty", "main") not in shelf.heads
    bundle.push(save(tmp_path / "b", backbone), "org/broken")
    shelf.commit("org/broken", "main", {"bundle.safetensors": b"other"})
    with pytest.raises(ValueError, match="copy the bundle again"):
        bundle.pull("org/broken")
    with pytest.raises(ValueError, match="nothing came from the hub for org/nowhere"):
        bundle.pull("org/nowhere")


@pytest.mark.parametrize("bad", ["name", "a/b/c", "../x", "org/name@v1", ""])
def test_what_cannot_be_a_hub_id_is_refused_before_anything_is_sent(bad, backbone, tmp_path):
    with pytest.raises(ValueError, match="a hub id such as 'org/name'"):
        bundle.push(tmp_path, bad)
    with pytest.raises(ValueError, match="a hub id such as 'org/name'"):
        bundle.pull(bad)


def test_a_refusal_of_the_hub_is_one_sentence(shelf, backbone, tmp_path):
    with pytest.raises(ValueError, match=r"did not take taken/name: .*hf auth login"):
        bundle.push(save(tmp_path / "b", backbone), "taken/name")


def test_the_card_says_what_it_is_and_how_to_load_it(shelf, backbone, tmp_path):
    folder = save(tmp_path / "b", backbone)
    bundle.push(folder, "org/card", license="apache-2.0")
    text = shelf.find("org/card", "main")[1]["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "diffusers",
        "tags": ["physbackbones", "offset", "video-generation"],
        "license": "apache-2.0",
    }
    assert "backbones.attach(backbone, 'org/card')" in body
    assert "| A | 3 |" in body
    assert bundle.load(folder).meta["sha256"] in body
    (folder / "README.md").write_text("my own words")
    bundle.push(folder, "org/card")
    assert shelf.find("org/card", "main")[1]["README.md"] == b"my own words"


def test_the_card_names_a_base_model_that_is_on_the_hub(backbone, tmp_path):
    meta = bundle.load(save(tmp_path, backbone)).meta
    meta["backbone"]["id"] = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    front = hub.card(meta, "org/name").split("---\n")[1]
    assert yaml.safe_load(front)["base_model"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def test_a_hub_that_cannot_be_reached_is_one_sentence(shelf, backbone, tmp_path, monkeypatch):
    import huggingface_hub.utils  # noqa: F401  # which imports its HTTP client

    httpx = sys.modules.get("httpx2") or sys.modules.get("httpx") or pytest.skip("a client without httpx")
    folder = save(tmp_path / "made", backbone)

    def down(*args, **kwargs):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi", down)
    with pytest.raises(ValueError, match="the hub did not take org/name: no route"):
        bundle.push(folder, "org/name")
