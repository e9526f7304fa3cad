"""The Hugging Face Hub: named files go there in one commit and come back from a commit.

Only the files that a caller names travel, and what comes back is read as JSON and safetensors: nothing is executed or
unpickled. A pull always ends in one commit, whatever branch or tag was asked for, and says which.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["card", "commit_of", "download", "split_id", "upload"]

ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def split_id(name: str) -> tuple[str, str | None] | None:
    """Split "org/name@revision"; None when the name cannot be a hub id.

    >>> split_id("org/name@v1"), split_id("org/name"), split_id("a/b/c")
    (('org/name', 'v1'), ('org/name', None), None)
    """
    found = ID.fullmatch(name)
    return (found["repo"], found["revision"]) if found else None


def upload(
    files: Mapping[str, bytes],
    repo_id: str,
    *,
    message: str,
    private: bool = False,
    branch: str | None = None,
    token: str | None = None,
) -> str:
    """Create the model repository if it is not there, commit the files, give the commit; ValueError when refused."""
    hub = _client()
    try:
        api: Any = hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        add = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
        done = api.create_commit(repo_id, add, commit_message=message, revision=branch)
    except (OSError, ValueError, *_refusals(hub)) as error:
        raise ValueError(
            f"the hub did not take {repo_id}: {_first_line(error)} (log in with `hf auth login`)"
        ) from error
    return done.oid


def download(
    repo_id: str, names: Sequence[str], *, revision: str | None = None, token: str | None = None
) -> tuple[Path, str]:
    """Fetch the named files of one commit into the hub's cache; give their folder and the commit.

    Without a network the cache answers, if it has them. ValueError when neither does.
    """
    hub = _client()
    try:
        folder = hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(names), token=token)
    except (OSError, ValueError, *_refusals(hub)) as error:
        at = "" if revision is None else f" at {revision}"
        raise ValueError(f"nothing came from the hub for {repo_id}{at}: {_first_line(error)}") from error
    return Path(folder), Path(folder).name


def commit_of(folder: Path) -> tuple[str, str] | None:
    """Read repository and commit out of the path of a folder in the hub's cache; None for any other folder.

    >>> commit_of(Path("hub/models--org--name/snapshots/0123abc"))
    ('org/name', '0123abc')
    """
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return None
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name


def card(meta: Mapping[str, Any], repo_id: str, *, license: str | None = None) -> str:
    """Write the model card of a bundle from its `bundle.json`: what it is, what it was made for, how to load it."""
    made = meta["backbone"]
    latent = made["spec"]["latent"]
    head: dict[str, Any] = {"library_name": "diffusers", "tags": ["physbackbones", meta["kind"], "video-generation"]}
    if split_id(made["id"]):
        head["base_model"] = made["id"]
    if license:
        head["license"] = license
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())  # JSON is YAML
    fits = (
        f"every backbone with this latent space ({latent['channels']} channels, stride {latent['stride']})"
        if meta["requires"] == "latent"
        else f"the architecture of `{made['id']}` alone"
    )
    rows = [f"| {s.get('name', '?')} | {s.get('steps', '?')} |" for s in meta.get("stages", ())]
    stages = "\n".join(["| stage | steps |", "|---|---|", *rows]) + "\n\n" if rows else ""
    versions = ", ".join(f"{name} {number}" for name, number in meta.get("versions", {}).items())
    return f"""---
{front}
---
# {repo_id}

An adapter of kind `{meta["kind"]}`, made for `{made["id"]}`. It fits {fits}; another backbone is refused.

```python
import backbones

backbone = backbones.load({made["id"]!r})
with backbones.attach(backbone, {repo_id!r}):  # or "{repo_id}@COMMIT", to stay with one
    video = backbones.sample(backbone, ["a prompt"], seed=0)
```

The package that knows the kind must be installed, by its wheel where it is not on the package index.

{stages}Tensors: SHA-256 `{meta["sha256"]}`, groups {", ".join(f"`{g}`" for g in meta["groups"])}. Weights of the
backbone: `{made["backbone_digest"]}`. Made with {versions or "versions that were not recorded"}.
"""


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError("the hub needs its client: uv pip install huggingface-hub") from error
    return huggingface_hub


def _refusals(hub: Any) -> tuple[type[Exception], ...]:
    """Give what the client raises beside OSError: newer ones speak through httpx, whose errors are no OSError."""
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (hub.errors.HfHubHTTPError, *(client.HTTPError for client in clients))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
