"""Exports where jointquant cannot be imported: the same perplexity, or a refusal that says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import DEMO
from export.artifacts import Workshop, our_perplexity, plain_perplexities
from jointquant import export_artifact

FAITHFUL = ("w4a16", "asymmetric", "w4a8")


@pytest.fixture(scope="module")
def found(workshop: Workshop) -> dict[str, float | str]:
    """All folders loaded in one process."""
    folder = workshop.folder / "exports"
    for name in (*FAITHFUL, "online"):
        export_artifact(workshop.of_demo(name), "compressed-tensors", folder / name)
    dense = workshop.of_demo("w4a16")
    export_artifact(dense, "dense", folder / "dequantized", dequantized=True, dtype="float32")
    export_artifact(dense, "dense", folder / "rotated", base=DEMO / "model", dtype="float32")
    names = (*FAITHFUL, "online", "dequantized", "rotated")
    return plain_perplexities([*(folder / name for name in names), workshop.of_demo("native only")])


@pytest.mark.parametrize("name", FAITHFUL)
def test_compressed_tensors_computes_what_the_artifact_does(found, workshop: Workshop, name: str) -> None:
    assert found[name] == pytest.approx(our_perplexity(workshop.of_demo(name)), abs=1e-3)


def test_dense_computes_what_the_artifact_or_the_base_model_does(found, workshop: Workshop) -> None:
    quantized, base = our_perplexity(workshop.of_demo("w4a16")), our_perplexity(DEMO / "model")
    assert abs(quantized - base) > 0.01, "the two must differ for this to tell them apart"
    assert found["dequantized"] == pytest.approx(quantized, abs=1e-3)
    assert found["rotated"] == pytest.approx(base, abs=1e-3)


def test_what_transformers_would_compute_wrongly_it_refuses(found, workshop: Workshop) -> None:
    """R4 in a compressed-tensors export, and the native artifact."""
    for name in ("online", "native only"):
        assert "pip install jointquant" in str(found[name])
        assert str(found[name]).startswith("ValueError"), found[name]


def test_the_refusal_of_an_online_r4_is_no_matter_of_arguments(workshop: Workshop, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export_artifact(workshop.of_demo("online"), "compressed-tensors", tmp_path / "a")
    with pytest.raises(ValueError, match="pip install jointquant"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a", attn_implementation="eager")
