"""`python -m backbones`: what a model is and costs, and whether an exported bundle does what it did.

inspect NAME        spec, parameters, tokens and memory of a family, folder or hub id, from configurations alone
verify-export DIR   sample as was recorded when the bundle was exported, with and without the adapter, and compare

Bad input is answered with one sentence and status 2; a bundle that is not as recorded gives status 1.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give the exit status."""
    given = _parser().parse_args(arguments)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        return given.run(given)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def inspect(given: argparse.Namespace) -> int:
    """Print what a model is and costs."""
    from backbones.sizes import measure

    found = measure(given.name, frames=given.frames, height=given.height, width=given.width)
    print(json.dumps(found.to_dict(), indent=1) if given.json else found)
    return 0


def verify_export(given: argparse.Namespace) -> int:
    """Repeat the recorded sampling of a bundle, or record one."""
    from backbones import bundle, load, verify

    folder = bundle.resolve(given.bundle)
    bundle.load(folder)  # a folder that is no bundle is known before the backbone is loaded
    backbone = load(given.backbone)
    if given.record:
        path = verify.record(folder, backbone)
        print(json.dumps({"recorded": str(path)}) if given.json else f"recorded in {path}")
        return 0
    found = verify.verify(folder, backbone)
    print(json.dumps(asdict(found)) if given.json else found)
    return 0 if found.holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backbones", description="Frozen video generators and adapters.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = commands.add_parser("inspect", help="spec, parameters, tokens and memory, from configurations alone")
    look.add_argument("name", help="a family (wan2.1-t2v-1.3b, ...), 'world', a diffusers folder or a hub id")
    for size in ("frames", "height", "width"):
        look.add_argument(f"--{size}", type=int, metavar="N", help=f"{size} of the clip (default: the usual clip)")
    look.set_defaults(run=inspect)
    proof = commands.add_parser("verify-export", help="prove that a bundle does what it did when it was exported")
    proof.add_argument("bundle", help="a bundle's folder, shipped name or hub id")
    proof.add_argument("--backbone", default="world", help="the backbone it was recorded on (default: world)")
    proof.add_argument("--record", action="store_true", help="write the record instead")
    proof.set_defaults(run=verify_export)
    for command in (look, proof):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
