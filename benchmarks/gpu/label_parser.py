"""A language model's labels of prompts beside the keywords': precision, recall and F1 on prompts labelled by hand.

    uv run python benchmarks/gpu/label_parser.py --model FOLDER [--device cuda] [--out FILE.json]

The 100 prompts of the test half (docs/labels.md), never looked at when the keywords were written. The model labels
them with and without `refine`; a prompt that it leaves without an answer is labelled by the keywords and counted.
Figures are averages over the eight mechanisms; one JSON line a parser.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from physexperts import Keywords, LanguageModel, LocalModel, Parser, macro_f1, score

PROMPTS = Path(__file__).resolve().parents[2] / "packages" / "physexperts" / "tests" / "data" / "prompts.jsonl"


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a model with a chat template")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--max-tokens", type=int, default=256, help="of one answer")
    parser.add_argument("--most", type=int, help="prompts at most (none: all)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of prompts without an answer: they are counted
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    prompts = [(row["prompt"], row["mechanisms"]) for row in rows if row["half"] == "test"][: given.most]
    chat = LocalModel(given.model, given.device, given.max_tokens)
    parsers: dict[str, Callable[[], Parser]] = {
        "keywords": Keywords,
        "language model": lambda: LanguageModel(chat, refine=False),
        "language model, refine": lambda: LanguageModel(chat, refine=True),
    }
    lines = []
    for name, make in parsers.items():
        made, began = make(), time.perf_counter()
        table = score(made, prompts)
        lines.append(
            {
                "parser": name,
                "model": Path(given.model).name,
                "prompts": len(prompts),
                "precision": round(sum(row.precision for row in table.values()) / len(table), 3),
                "recall": round(sum(row.recall for row in table.values()) / len(table), 3),
                "macro_f1": round(macro_f1(table), 3),
                "fallbacks": getattr(made, "fallbacks", 0),
                "seconds_a_prompt": round((time.perf_counter() - began) / len(prompts), 3),
            }
        )
        print(json.dumps(lines[-1]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
