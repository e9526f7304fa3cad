"""A thousand inputs that mean harm, from a seed, and a child process that tries them: `python hostile.py FOLDER SEED`.

The child prints one JSON line a case: [kind, outcome, why]. An outcome is "reported" (a ValueError, or a line in the
list of what was left out), "read" (a sound result: allowed where the harm may miss) or what went wrong.
"""

import json
import math
import os
import random
import struct
import sys
import zlib
from pathlib import Path

# ---- records


def deep(depth):
    value = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def odd_values(rng):
    """What is no path, no caption, no label and no id."""
    return rng.choice(
        [
            math.nan,
            math.inf,
            -1,
            0,
            True,
            3.5,
            [],
            {},
            [[]],
            {"a": None},
            [None],
            deep(200),
            [1, "a"],
            10 ** rng.randint(1, 300),
            [rng.random()],
            {"path": "a.mp4"},
            [math.nan],
        ]
    )  # fmt: skip


def odd_paths(rng, folder):
    outside = [
        "../secret.mp4", "clips/../../secret.mp4", str(folder.parent / "secret.mp4"), "link.mp4", "linked/secret.mp4",
        "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "http://localhost/a.mp4", "concat:good.mp4|good.mp4",
        "~/a.mp4", "..", ".", "/", "..\\secret.mp4", "C:\\a.mp4", "loop.mp4", "pipe.mp4", "folder.mp4", "zero.mp4",
        "good.mp4\0.txt", "\0", "x" * 300 + ".mp4", "a/" * 3000, "\u202egood.mp4", "go\u200bod.mp4", "ｇood.mp4",
        "good.mp4\n", "\ud800.mp4", "%2e%2e/secret.mp4", "${HOME}/a.mp4", "$(touch owned)", "; touch owned", "-y",
        "subfile,,start,0,end,0,,:good.mp4", " ", "\t",
    ]  # fmt: skip
    return (
        rng.choice(outside) if rng.random() < 0.8 else "../" * rng.randint(1, 40) + rng.choice(["etc/passwd", "a.mp4"])
    )


def record(rng, folder):
    """One record that cannot be used, whatever else it says."""
    raw = {"path": "good.mp4", "caption": "a ball", "id": f"i{rng.random()}"}
    if rng.random() < 0.3:
        raw["note"] = rng.choice([deep(300), "é" * 1000, "\0\u2028\u202e\ud800", 10**300, math.nan, {"../a": "../b"}])
    kind = rng.choice(["type", "path", "path", "path type", "caption", "label", "id", "annotation", "filter"])
    if kind == "type":
        return "record: type", rng.choice([None, 3, math.nan, "text", [], ["good.mp4", "a"], True, deep(300), "\0"])
    if kind == "path":
        raw[rng.choice(["path", "path", "path"])] = odd_paths(rng, folder)
    elif kind == "path type":
        raw["path"] = odd_values(rng)
    elif kind == "caption":
        value = rng.choice(["", "  \n", None, odd_values(rng)])
        raw["caption"] = [] if isinstance(value, list) and value and isinstance(value[0], str) else value
    elif kind == "label":
        raw["labels"] = rng.choice([3, [1], [None], {"a": 1}, [["a"]], math.nan, [deep(200)]])
    elif kind == "id":
        raw["id"] = rng.choice([[], {}, math.nan, 1.5, deep(200)])
    elif kind == "annotation":
        raw["physical_annotation"] = rng.choice([[1], "text", 3, math.nan, deep(200)])
    else:
        key = rng.choice(["duration", "width", "text_bbox_num"])
        raw[key] = rng.choice([math.nan, math.inf, -math.inf, -1, True, "wide", [], {}, "1" * 400, 10**400, deep(200)])
    return f"record: {kind}", raw


# ---- tables


def table(rng, parquet):
    """(suffix, bytes) of a file that is no table, or one with rows that are none."""
    good = json.dumps({"path": "good.mp4", "caption": "a ball"})
    kind = rng.choice(["noise", "deep", "cut", "json", "jsonl", "csv", "giant", "parquet", "parquet", "bytes"])
    if kind == "noise":
        return rng.choice([".json", ".jsonl", ".csv", ".tsv", ".parquet"]), rng.randbytes(rng.randint(0, 5000))
    if kind == "deep":
        opening = rng.choice(["[", '{"a":', '[{"path":'])
        return rng.choice([".json", ".jsonl"]), opening.encode() * rng.choice([990, 5000, 10**5])
    if kind == "cut":
        whole = json.dumps([json.loads(good)] * 20)
        return ".json", whole[: rng.randint(0, len(whole) - 1)].encode()
    if kind == "json":
        return ".json", rng.choice(
            [b"3", b"null", b'"good.mp4"', b"[]", b"{}", b"NaN", b"[NaN]", b"1" * 5000, b"[1e999]", b'{"data": 3}',
             b'{"data": []}', b"\xff\xfe[\0]\0", b'[{"path": {"path": "good.mp4"}}]', b'{"../secret.mp4": "x"}']
        )  # fmt: skip
    if kind == "jsonl":
        lines = [
            rng.choice(["{", "[", '{"path"', "\0", "NaN", "]" * 50, '"' + "a" * 10**5, good[:-3]]) for _ in range(5)
        ]
        return ".jsonl", "\n".join(lines).encode()
    if kind == "csv":
        return rng.choice([".csv", ".tsv"]), rng.choice(
            [b"", b"\n\n", b"path,path\ngood.mp4,a", b"path,caption\n\"good.mp4,a\nb,c\n", b"a\0b,c\n\0,\0\n",
             b",\n,\n,,,,",
             b"path,caption\n" + b"x," * 5000, b"path,caption\n\xff\xfe,\x80\n", b"path\tcaption\ngood.mp4\ta",
             b"path,caption\n=cmd|'/c calc'!A1,a\n", b"\xef\xbb\xbf", b"path,caption\r\r\r\n\"\"\"\"\",\n"]
        )  # fmt: skip
    if kind == "giant":
        return ".csv", b"path,caption\nnone.mp4," + b"g" * rng.choice([131_073, 10**6]) + b'\n"' + b"q" * 200_000
    if kind == "parquet":
        data = bytearray(parquet)
        if rng.random() < 0.3:
            return ".parquet", bytes(data[: rng.randrange(len(data))])
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return ".parquet", bytes(data)
    return rng.choice([".json", ".jsonl", ".csv"]), parquet


# ---- films


def box(kind, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind, flags, *parts):
    return box(kind, struct.pack(">I", flags), *parts)


def claims(samples=1, width=64, height=48, length=1000, fragment=0, sample_size=1, per_chunk=None):
    """An mp4 of a thousand bytes whose tables say what they like."""
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    entry = box(
        b"mp4v", bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">HH", width & 0xFFFF, height & 0xFFFF),
        struct.pack(">II", 0x480000, 0x480000), bytes(4), struct.pack(">H", 1), bytes(32), struct.pack(">Hh", 24, -1),
    )  # fmt: skip
    tables = box(
        b"stbl",
        full(b"stsd", 0, struct.pack(">I", 1), entry),
        full(b"stts", 0, struct.pack(">III", 1, samples, 512)),
        full(b"stsc", 0, struct.pack(">IIII", 1, 1, per_chunk or samples, 1)),
        full(b"stsz", 0, struct.pack(">II", sample_size, samples)),
        full(b"stco", 0, struct.pack(">II", 1, 48)),
    )
    handler = full(b"hdlr", 0, bytes(4), b"vide", bytes(13))
    where = box(b"dinf", full(b"dref", 0, struct.pack(">I", 1), full(b"url ", 1)))
    media = box(
        b"mdia",
        full(b"mdhd", 0, struct.pack(">IIIIHH", 0, 0, 12288, 0x7FFFFFFF, 0, 0)),
        handler,
        box(b"minf", full(b"vmhd", 1, bytes(8)), where, tables),
    )
    shown = struct.pack(">II", (width << 16) & 0xFFFFFFFF, (height << 16) & 0xFFFFFFFF)
    track = box(
        b"trak", full(b"tkhd", 3, struct.pack(">IIIII", 0, 0, 1, 0, 0x7FFFFFFF), bytes(16), matrix, shown), media
    )
    movie = full(
        b"mvhd", 0, struct.pack(">IIII", 0, 0, 1000, 0x7FFFFFFF), struct.pack(">IH", 0x10000, 0x100), bytes(10), matrix,
        bytes(24), struct.pack(">I", 2),
    )  # fmt: skip
    pieces = b""
    extends = b""
    if fragment:
        extends = box(b"mvex", full(b"trex", 0, struct.pack(">IIIII", 1, 1, 512, sample_size, 0)))
        run = full(b"trun", 0, struct.pack(">I", fragment))
        pieces = box(
            b"moof", full(b"mfhd", 0, bytes(4)), box(b"traf", full(b"tfhd", 0x20000, struct.pack(">I", 1)), run)
        )
    begin = box(b"ftyp", b"isomiso2mp41", bytes(4)) + box(b"moov", movie, track, extends)
    return begin + pieces + box(b"mdat", bytes(length))


def avi(width, height, codec, picture):
    """An AVI of one picture."""

    def chunk(kind, body):
        return struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)

    header = chunk(b"avih", struct.pack("<14I", 41666, 0, 0, 0x10, 1, 0, 1, 0, width, height, 0, 0, 0, 0))
    stream = chunk(
        b"strh",
        b"vids" + codec + struct.pack("<IHHIIIIIIIIhhhh", 0, 0, 0, 0, 1, 24, 0, 1, 0, 0, 0, 0, 0, 64, 48),
    )
    layout = chunk(b"strf", struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, codec, 0, 0, 0, 0, 0))
    listed = chunk(b"LIST", b"hdrl" + header + chunk(b"LIST", b"strl" + stream + layout))
    return chunk(b"RIFF", b"AVI " + listed + chunk(b"LIST", b"movi" + chunk(b"00dc", picture)))


def png(width, height):
    """A true grey picture of black pixels: a thousandth of their size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bombs():
    """Each would take gigabytes, minutes or another's file if it were believed."""
    boxes = box(b"ftyp", b"isomiso2mp41", bytes(4))
    nested = b""
    for _ in range(2000):
        nested = box(b"moov", nested)
    yield "bomb: 1e9 frames", claims(samples=10**9)
    yield "bomb: 3e7 frames", claims(samples=3 * 10**7)
    yield "bomb: 3e7 empty frames", claims(samples=3 * 10**7, sample_size=0)
    yield "bomb: 3e7 frames in a fragment", claims(fragment=3 * 10**7)
    yield "bomb: frames beyond the file", claims(samples=900, sample_size=10**6)
    yield "bomb: 65535 px", claims(width=65535, height=65535)
    yield "bomb: 100000 px", avi(100_000, 100_000, b"MJPG", b"\xff\xd8" + bytes(500))
    yield "bomb: raw 20000 px", avi(20_000, 20_000, b"\0\0\0\0", bytes(500))
    yield "bomb: raw -1 px", avi(-1 & 0x7FFFFFFF, -1 & 0x7FFFFFFF, b"\0\0\0\0", bytes(500))
    yield "bomb: a picture larger than its header says", avi(64, 48, b"MPNG", png(10_000, 10_000))
    yield "bomb: boxes in boxes", boxes + nested
    yield "bomb: a million boxes", boxes + box(b"free") * 10**6
    yield "bomb: a box without end", boxes + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + bytes(100)
    yield "bomb: a box of no length", boxes + struct.pack(">I4s", 0, b"moov") + bytes(100)
    yield "bomb: a box shorter than itself", boxes + struct.pack(">I4s", 3, b"moov") * 50
    yield "bomb: a playlist", b"#EXTM3U\n#EXTINF:1,\n../secret.mp4\n#EXT-X-ENDLIST\n"
    yield "bomb: a list of files", b"ffconcat version 1.0\nfile '../secret.mp4'\n"
    yield "bomb: an image sequence", b"frame%d.png"
    yield "bomb: a session description", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"


def wrong(rng, good):
    """What is no film under a film's name."""
    return rng.choice(
        [
            b"", b"\0", b"not a film", png(8, 8), b"RIFF\x24\0\0\0WAVEfmt ", b"%PDF-1.7", b"<html>",
            b"PK\x03\x04" + bytes(50),
            b"\x7fELF" + bytes(60), b"GIF89a\xff\xff\xff\xff\0\0\0;", b"ftyp" * 100, bytes(10**5), good[:8], good[:40],
            b"\x1aE\xdf\xa3" + bytes(100), b"OggS" + bytes(100), b"FLV\x01\x05" + bytes(100),
            b"\0\0\0\x18ftypmp42" + bytes(50),
        ]
    )  # fmt: skip


def films(rng, good, count):
    yield from bombs()
    for _ in range(count - 19):
        kind = rng.choice(["wrong", "cut", "cut", "cut", "header", "header", "body", "body", "noise", "spliced"])
        data = bytearray(good)
        media = good.index(b"mdat")  # `video.write` puts the tables before it
        if kind == "wrong":
            data = wrong(rng, good)
        elif kind == "cut":
            data = data[: rng.randrange(len(data))]
        elif kind == "header":
            spans = (
                [*range(media), *range(good.find(b"moov"), len(good))] if good.find(b"moov") > media else range(media)
            )
            for at in rng.sample(list(spans), rng.choice([1, 4, 16])):
                data[at] = rng.choice([0, 255, data[at] ^ (1 << rng.randrange(8))])
        elif kind == "body":
            for _ in range(rng.choice([3, 10, 40])):
                data[rng.randrange(media + 4, len(data))] ^= 1 << rng.randrange(8)
        elif kind == "noise":
            at = rng.randrange(len(data))
            data[at : at + 200] = rng.randbytes(200)
        else:
            at, other = sorted(rng.sample(range(len(data)), 2))
            data = data[:at] + data[other:] + data[at:other]
        yield f"film: {kind}", bytes(data)


# ---- the child


def prepare(folder):
    """The folder with one good clip, and things that are no files; what must not be read or changed is beside it."""
    import numpy as np

    from trainers import video

    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.integers(-9, 10, (30, 48, 64, 3)), 0) + 128
    folder.mkdir()
    video.write(folder / "good.mp4", walk.clip(0, 255).astype(np.uint8), 8)
    (folder.parent / "secret.mp4").write_bytes((folder / "good.mp4").read_bytes())
    (folder.parent / "secret.txt").write_text("the password")
    (folder / "link.mp4").symlink_to(folder.parent / "secret.mp4")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    return (folder / "good.mp4").read_bytes()


def outcome_of_records(path, filters):
    from trainers import read_records

    records, skipped = read_records(path, filters=filters)
    if any("password" in record.caption or "secret" in str(record.path) for record in records):
        return "a secret was read", ""
    why = "; ".join(f"{item.path}: {item.why}" for item in skipped)
    if len(why) > 20_000:
        return "a report as long as the harm", why[:200]
    return ("reported" if skipped else "read"), why


def outcome_of_film(path):
    """The header, a clip by whatever decoder there is, and the whole file by the one that refuses damage."""
    import numpy as np

    from trainers import video

    spec = video.ClipSpec(9, 8, 24, 32)
    why = ""
    for look in (
        lambda: video.probe(path),
        lambda: video.load(path, spec, share=0.9, max_jitter=10.0),
        lambda: video.read(path, decoder="pyav"),
    ):
        try:
            got = look()
        except ValueError as error:
            why = str(error)
            if str(path) not in why and "expected" not in why:
                return "an error that does not name the file", why
            continue
        if isinstance(got, video.Decoded) and not (
            len(got.frames) == len(got.times_s) and np.isfinite(got.times_s).all() and (np.diff(got.times_s) > 0).all()
        ):
            return "frames that are none", str(got.times_s)
    return ("reported" if why else "read"), why


def outcome_of_pipeline(folder, films, good):
    """A folder of films, every second one sound, as training reads it: each is read or listed, never both."""
    from trainers import read_records
    from trainers.buckets import Buckets
    from trainers.clips import Clips

    folder.mkdir()
    for i, (_, data) in enumerate(films):
        for name, held in ((f"{i}", data), (f"good{i}", good)):
            (folder / f"{name}.mp4").write_bytes(held)
            (folder / f"{name}.txt").write_text("a ball")
    records, skipped = read_records(folder)
    table = Buckets(sizes=((32, 48), (48, 32)), frames=(1, 5, 25), fps=8)
    data = Clips(records, table, report=folder / "skipped.jsonl", threads=1)
    got = {data.at(i, 0)["id"] for i in range(len(data))}
    listed = [json.loads(line)["path"] for line in (folder / "skipped.jsonl").read_text().splitlines()]
    everyone = {record.id for record in records}
    if skipped or got | set(listed) != everyone or got & set(listed) or len(listed) != len(set(listed)):
        return "a film lost or doubled", str(everyone ^ got ^ set(listed))
    sound = sum(name.startswith("good") for name in got)
    return "read" if sound == len(records) // 2 and len(listed) > 40 else "too few are read or listed", str(listed)


def peak_mib():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) // 1024


def main(folder, seed, count_records=620, count_tables=130, count_films=250):
    import torch

    from trainers import Filters

    torch.set_num_threads(1)
    good = prepare(folder)
    rng = random.Random(seed)
    cases = []
    filters = Filters(duration_s=(3, None), width_px=(720, 3000), text_boxes=1)

    outcome_of_film(folder / "good.mp4")  # what importing and a first decode take is no case's memory
    parquet = b""
    try:
        import pyarrow
        from pyarrow import parquet as format

        sink = pyarrow.BufferOutputStream()
        format.write_table(
            pyarrow.table({"path": ["good.mp4"] * 50, "caption": [f"ball {i}" for i in range(50)]}), sink
        )
        parquet = sink.getvalue().to_pybytes()
    except ImportError:
        parquet = b"PAR1" + bytes(500) + b"PAR1"
    before = peak_mib() if Path("/proc/self/status").exists() else 0

    def attempt(kind, outcome, *args):
        try:
            result, why = outcome(*args)
        except ValueError as error:
            result, why = "reported", str(error)
        except Exception as error:
            result, why = f"{type(error).__name__}", str(error)
        cases.append([kind, result, why[:300]])

    for _ in range(count_records):
        kind, raw = record(rng, folder)
        (folder / "case.json").write_text(json.dumps([{"path": "good.mp4", "caption": "good", "id": "good"}, raw]))
        attempt(kind, outcome_of_records, folder / "case.json", filters)
    for _ in range(count_tables):
        suffix, data = table(rng, parquet)
        path = folder / f"case{suffix}"
        path.write_bytes(data)
        attempt(f"table: {suffix}", outcome_of_records, path, filters)
    for kind, data in films(rng, good, count_films):
        path = folder / f"case{rng.choice(['.mp4', '.mp4', '.mov', '.webm', '.avi'])}"
        path.write_bytes(data)
        attempt(kind, outcome_of_film, path)
        path.unlink()
    attempt(
        "all films at once", outcome_of_pipeline, folder.parent / "many", films(random.Random(seed + 1), good, 60), good
    )
    attempt("the good film at last", outcome_of_film, folder / "good.mp4")
    for case in cases:
        print(json.dumps(case))
    print(json.dumps(["memory", before, peak_mib() if before else 0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
