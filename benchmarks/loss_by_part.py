"""Where an artifact loses: ``jointquant diagnose`` as a result file.

    python benchmarks/loss_by_part.py ARTIFACT MODEL TEXT.txt --name NAME [--seqlen 256] [--max-tokens 4096]

Writes benchmarks/results/loss_by_part_NAME.json, one row a part that was left unquantized.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jointquant
from report import Result

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, and write the parts in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    sizes = {"seqlen": arguments.seqlen, "max_tokens": arguments.max_tokens}
    found = jointquant.loss_by_part(arguments.artifact, arguments.model, str(arguments.text), **sizes)
    command = f"python benchmarks/loss_by_part.py … --name {arguments.name}"
    facts = {"artifact": arguments.artifact.name, "text": arguments.text.name, **sizes}
    result = Result(RESULTS / f"loss_by_part_{arguments.name}.json", command, **facts)
    for part, divergence in found.divergence.items():
        result.add({"part": part, "kl": divergence.mean, "kl_stderr": divergence.stderr, "top1": divergence.same_top})


if __name__ == "__main__":
    main()
