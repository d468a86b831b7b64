"""A loopback hub with small repositories, one for every case."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from conftest import DEMO, make_model
from hub.loopback import LoopbackHub, json_lines, repo
from hub.machine import Machine


def parquet(column: str, rows: list[str]) -> bytes:
    """A parquet file of one column."""
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: rows}), data)
    return data.getvalue()


def rows_of_text(count: int, part: str = "heldout.txt") -> list[str]:
    """Lines of the embedded text, as rows of a data set."""
    text = (DEMO / part).read_text(encoding="utf-8")
    return [text[start : start + 200] for start in range(0, 200 * count, 200)]


def model_files(folder: Path) -> dict[str, bytes]:
    """A tiny sharded model with its tokenizer, and files beside it that nobody needs."""
    make_model("llama").save_pretrained(folder, max_shard_size="100KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {name: (DEMO / "model" / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    return files | {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"raise SystemExit",
        "consolidated.safetensors": b"the same weights once more",
        "onnx/config.json": b"{}",
    }


CARD = b"""---
configs:
- config_name: news
  data_files:
  - {split: train, path: news/train-*}
  - {split: test, path: news/test-*}
---
"""


def data_sets() -> dict[str, object]:
    """Data sets laid out as those of the hub, and one of no published protocol."""
    text, calibration = rows_of_text(60), rows_of_text(60, "calibration.txt")
    c4 = [{"text": row, "url": "-"} for row in rows_of_text(40)] + [{"text": "beyond"}] * 1100 + [{"no": "text"}]
    return {
        "datasets/Salesforce/wikitext": repo(
            {
                "wikitext-2-raw-v1/train-00000-of-00001.parquet": parquet("text", calibration),
                "wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet("text", text),
            }
        ),
        "datasets/allenai/c4": repo(
            {
                "en/c4-train.00000-of-01024.json.gz": json_lines([{"text": row} for row in calibration]),
                "en/c4-validation.00000-of-00008.json.gz": json_lines(c4),
            }
        ),
        "datasets/ptb-text-only/ptb_text_only": repo({"penn_treebank/test/0000.parquet": parquet("sentence", text)}),
        "datasets/tiny/news": repo(
            {
                "README.md": CARD,
                "news/train-0.parquet": parquet("body", calibration),
                "news/test-0.parquet": parquet("body", text),
                "news.txt": b"more",
                "tools/script.py": b"raise SystemExit",
            }
        ),
    }


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """The hub, with a repository for every case."""
    files = model_files(tmp_path_factory.mktemp("repository"))
    older = files | {"generation_config.json": b'{"max_length": 7}'}
    large = files | {"rotations.safetensors": bytes(24_000_000)}
    with LoopbackHub() as hub:
        hub.repos = {
            "models/tiny/llama": repo(older, files),
            "models/tiny/unknown": repo(files | {"config.json": b'{"model_type": "gpt2"}'}),
            "models/tiny/pickle": repo({"config.json": b"{}", "pytorch_model.bin": b"pickle"}),
            "models/tiny/gated": repo(files, gated=True),
            "models/tiny/broken": repo(files, status=500),
            "models/tiny/hanging": repo(files, hangs=True),
            "models/tiny/once": repo(large, cuts={"rotations.safetensors": 1}),
            # Once midway, and then each of the library's five new tries before the first byte.
            "models/tiny/cut": repo(large, cuts={"rotations.safetensors": 6}),
            **data_sets(),  # type: ignore[dict-item]
        }
        parquet_branch = hub.repos["datasets/ptb-text-only/ptb_text_only"].branches
        parquet_branch["refs/convert/parquet"] = parquet_branch.pop("main")
        yield hub


@pytest.fixture(scope="session")
def machine(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A user of the hub, with an empty cache at first."""
    return Machine(tmp_path_factory.mktemp("user"), hub.endpoint)
