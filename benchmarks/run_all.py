"""Run every benchmark, one after the other, on an otherwise idle machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUESTIONS = (
    "startup", "demo_classifier", "bert_base_shape", "null_duel", "kill_resume", "sizing/this_host", "sizing/queues",
    "native/encoders",
)  # fmt: skip
# These take hours, and need a checkpoint and data that lie beside the checkout.
COMPRESSION = (
    "vocabulary", "techniques", "integers", "recovery", "pruning", "progressive", "search", "banking77", "pages",
)  # fmt: skip


def main() -> None:
    here = Path(__file__).parent
    more = [f"compression/{name}" for name in COMPRESSION] if sys.argv[1:] == ["--compression"] else []
    for name in (*QUESTIONS, *more):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(here / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()
