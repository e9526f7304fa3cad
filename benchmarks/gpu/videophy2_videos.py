"""Fetch the videos of VideoPhy-2's human labels that `bench judge calibrate` wants, 318 by default.

Each goes to OUT/<model_name>/<file name>, whole or not at all; what is there is not fetched again, and what cannot be
had is named. Only https addresses without a port or password are followed, and no file above 100 MB.

    uv run python benchmarks/gpu/videophy2_videos.py --out runs/videophy2-videos
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit
from urllib.request import urlopen

from bench.official.prompts import DATA
from bench.official.tables import inside, lines

MOST_BYTES = 100 * 2**20


def fetch(row: dict[str, str], out: Path) -> str:
    """Fetch one video; return why there is none, or nothing."""
    parts = urlsplit(row["video_url"])
    path = inside(out, f"{row['model_name']}/{PurePosixPath(unquote(parts.path)).name}")
    if path.is_file():
        return ""
    if parts.scheme != "https" or parts.netloc != parts.hostname:
        return f"expected a plain https address, got {row['video_url']}"
    address = f"https://{parts.hostname}{quote(unquote(parts.path))}"
    try:
        with urlopen(address, timeout=60) as reply:
            data = reply.read(MOST_BYTES + 1)
    except OSError as error:
        return str(error)
    if len(data) > MOST_BYTES:
        return f"above {MOST_BYTES} bytes"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:200]}.tmp")
    part.write_bytes(data)
    part.replace(path)
    return ""


def main() -> None:
    """Fetch all, four at a time; print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, default=DATA / "videophy2" / "human_sample.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = lines(args.labels)
    with ThreadPoolExecutor(4) as pool:
        why = list(pool.map(lambda row: fetch(row, args.out), rows))
    missing = [{"url": row["video_url"], "why": w} for row, w in zip(rows, why, strict=True) if w]
    print(json.dumps({"videos": len(rows), "fetched": len(rows) - len(missing), "missing": missing}))


if __name__ == "__main__":
    main()
