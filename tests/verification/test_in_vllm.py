"""``verify`` through the real vLLM's server: what is right passes, and damage done on purpose is found and named.

Skipped where vLLM's environment is missing. Where the processor lacks kernels of vLLM, plain torch stands in for them,
as in tests/export/test_vllm.py; here it comes in by a plugin, which vLLM loads in each of its processes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import DEMO, small
from export.vllm_plugins import put_on_the_path
from export.vllm_runtime import vllm_python
from jointquant import export_artifact, load_recipe, quantize, verify
from jointquant.runtime.loading import load_tokenizer
from verification.damage import DAMAGE, TEMPLATE, TURNED, damaged, without_transforms

GROUPS = ("weights.group_size=32", "refinement.steps=0")
R4 = "rotations.r4.kind=hadamard"
EXPORTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "dense": ("dense", "fp16", TURNED),
    "W4A16": ("compressed-tensors", "w4a16", GROUPS),
    "W4A16, R4": ("compressed-tensors", "w4a16", (*GROUPS, R4)),
}
"""Name → format, preset, changes; of the embedded model."""
DROPPED = "r4_dropped"
CASES = [
    *((name, "") for name in EXPORTS),
    *(("dense", fault) for fault in DAMAGE),
    *(("W4A16", fault) for fault in DAMAGE),
    ("W4A16, R4", DROPPED),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each export, and the artifact that it was made of."""
    vllm_python()
    folder = tmp_path_factory.mktemp("for vllm")
    tokenizer = load_tokenizer(DEMO / "model")
    tokenizer.chat_template = TEMPLATE
    found = {}
    for number, (name, (form, preset, changes)) in enumerate(EXPORTS.items()):
        artifact, out = folder / f"artifact {number}", folder / f"export {number}"
        quantize(DEMO / "model", artifact, load_recipe(preset, small(*changes)), tokenizer=tokenizer)
        export_artifact(artifact, form, out, dequantized=form == "dense")
        found[name] = (out, artifact)
    return found


@pytest.fixture
def vllm_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command `vllm`, with what stands in for kernels."""
    put_on_the_path(tmp_path, monkeypatch)


@pytest.mark.usefixtures("vllm_on_the_path")
@pytest.mark.parametrize(("name", "fault"), CASES)
def test_the_server(made: dict[str, tuple[Path, Path]], tmp_path: Path, name: str, fault: str) -> None:
    folder, artifact = made[name]
    if fault == DROPPED:
        folder = without_transforms(folder, tmp_path / "damaged")
    elif fault:
        folder = damaged(folder, tmp_path / "damaged", fault, artifact)
    found = verify(folder, runtime="vllm", dtype="float32")
    print(name, fault or "as it is", found)
    assert found.runtime == "vLLM"
    assert not found.not_asked
    assert (found.passed, found.faults) == (not fault, (fault,) if fault else ())
