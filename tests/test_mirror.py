"""Tests lie where the modules lie that they test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import jointquant
from conftest import ASSEMBLED, FAMILIES, WRAPPED
from imports import ROOT, files, graph, imports_of, reached

TESTS = Path(__file__).parent

WHOLE_SYSTEM = {
    "export/test_gguf_parity.py": "metadata of GGUF files against the gguf package's own reader of tokenizers",
    "verification/test_in_vllm.py": "what `verify` says of exports in the real vLLM",
    "verification/test_presets.py": "what `verify` says of every preset, as it is",
    "hostile/test_artifact_facts.py": "configurations, cards and disks that are not as they should be",
    "hostile/test_damaged_artifacts.py": "whatever becomes of a finished artifact's files",
    "hostile/test_environment.py": "what the machine refuses",
    "hostile/test_messages.py": "what the user is told",
    "hostile/test_numbers.py": "weights of zeros, and of what overflows",
    "models/test_families.py": "families put together of what others have",
    "models/test_layouts.py": "folders as transformers reads them",
    "models/test_positions.py": "rotary embeddings that depend on the length",
    "quantization/test_named_grids.py": "grids and groups as other systems have them",
    "quantization/test_group_tails.py": "rows that groups do not divide, from rounding to artifacts",
    "rotations/test_distribution_objectives.py": "objectives that compare distributions, value and gradient",
    "rotations/test_training_parity.py": "training against scripts written out: Adam, accumulation, a growing set",
    "rotations/test_zero_samples.py": "rotations that nothing is to be learned for",
    "runtime/test_copies.py": "copies and pickles of a loaded artifact",
    "analysis/test_resumed_inspection.py": "what is measured beside pass 2, when a run is stopped and goes on",
    "export/test_drafting.py": "layers that draft, from a checkpoint through an artifact and its exports",
    "export/test_llama_cpp.py": "what llama.cpp computes from our files",
    "export/test_vllm.py": "what vLLM computes from our exports",
    "export/test_vllm_arithmetic.py": "exports for vLLM's integers of 4 bits, against its arithmetic in plain torch",
    "hostile/test_hostile.py": "input that nobody vouches for, through the command line",
    "runtime/kernels/test_cpu_kernels.py": "every product that a processor computes, against one reference",
    "runtime/kernels/test_triton_kernels.py": "every program for GPUs, against the same",
    "runtime/kernels/test_triton_compile.py": "what every program for GPUs takes of one, compiled without it",
    "run/test_damage.py": "whatever becomes of an unfinished run's files",
    "test_coming_from_rotations.py": "keys, presets and commands of the page for those who come from other systems",
    "test_jointquant_parity.py": "the preset jointquant, end to end, against the method written out",
    "test_peer_flatquant.py": "an own quantizer of the benchmarks, after another's publication",
    "test_peer_spinquant.py": "an own learner of rotations of the benchmarks, after another's publication",
    "test_gpu_stages.py": "the script that measures all of it on a GPU",
    "test_docs.py": "what the pages say of the tree",
    "test_layers.py": "what may import what",
    "test_mirror.py": "this file",
    "planning/test_published.py": "plans of published configurations",
    "test_notebooks.py": "the notebooks of the documentation",
    "test_mixtures.py": "models with experts through both passes and back",
    "test_real_model.py": "the published figures of a trained model",
}
"""Test files that mirror no module, and what they test."""

COVERED_ELSEWHERE = {
    "probing/data_file.py": "tests/probing/test_probe.py",
    "probing/findings.py": "tests/probing/test_probe.py",
    "probing/precision.py": "tests/probing/test_probe.py",
    "probing/proposal.py": "tests/probing/test_probe.py",
    "probing/shrink.py": "tests/probing/test_probe.py",
    "probing/trace.py": "tests/probing/test_probe.py",
    "probing/trial.py": "tests/probing/test_probe.py",
    "cli/probe.py": "tests/probing/test_probe.py",
    "models/recurrence.py": "tests/models/test_families.py",
    "models/requirements.py": "tests/models/test_registry.py",
    "rounding/towers.py": "tests/models/test_wrapper.py",
    "analysis/capture.py": "tests/analysis/test_rotate.py",
    "analysis/rotation_facts.py": "tests/cli/test_rotate.py",
    "calibration/capture.py": "tests/analysis/test_rotate.py",
    "calibration/reuse.py": "tests/calibration/test_calibrate.py",
    "calibration/samples.py": "tests/analysis/test_rotate.py",
    "calibration/training.py": "tests/calibration/test_calibrate.py",
    "cli/capture.py": "tests/cli/test_rotate.py",
    "cli/rotate_draft.py": "tests/export/test_draft.py",
    "runtime/kernels/shared_memory.py": "tests/runtime/kernels/test_triton_kernels.py",
    "cli/rotations.py": "tests/cli/test_rotate.py",
    "cli/boundary.py": "tests/hostile/test_environment.py",
    "distributed/launch.py": "tests/distributed/test_process_group.py",
    "export/formats.py": "tests/cli/test_usage.py",
    "rotations/accumulation.py": "tests/rotations/test_learning.py",
    "recipe/rotations.py": "tests/recipe/test_recipe.py",
    "recipe/catalogue.py": "tests/recipe/test_recipe.py",
    "recipe/targets.py": "tests/artifact/test_advice.py",
    "recipe/faults.py": "tests/recipe/test_recipe.py",
    "recipe/keys.py": "tests/recipe/test_reference_table.py",
    "text/names.py": "tests/text/test_sources.py",
    "trust/model_name.py": "tests/hub/test_location.py",
    "rotations/names.py": "tests/recipe/test_settings.py",
    "generation.py": "tests/runtime/test_generation.py",
    "models/contents.py": "tests/models/test_layouts.py",
    "models/overflow.py": "tests/hostile/test_numbers.py",
    "runtime/artifact_facts.py": "tests/hostile/test_artifact_facts.py",
    "__main__.py": "tests/cli/test_main.py",
    "activations/hidden_states.py": "tests/distributed/test_ranks.py",
    "activations/propagation.py": "tests/rounding/test_site_runs.py",
    "activations/routing.py": "tests/test_mixtures.py",
    "activations/unquantized.py": "tests/rounding/test_teacher.py",
    "analysis/candidates.py": "tests/analysis/test_compare.py",
    "calibration/learners.py": "tests/calibration/test_calibrate.py",
    "cli/hub.py": "tests/hub/test_upload.py",
    "cli/options.py": "tests/cli/test_quantize.py",
    "cli/given.py": "tests/cli/test_usage.py",
    "cli/plan.py": "tests/planning/test_dry_run.py",
    "cli/plan_table.py": "tests/planning/test_dry_run.py",
    "cli/ranks.py": "tests/distributed/test_process_group.py",
    "cli/stats.py": "tests/cli/test_compare.py",
    "demo/train.py": "tests/demo/test_corpus.py",
    "evaluation/pair.py": "tests/evaluation/test_check.py",
    "evaluation/runners.py": "tests/evaluation/test_streaming.py",
    "export/native.py": "tests/export/test_compressed.py",
    "export/fingerprints.py": "tests/verification/test_verify.py",
    "fingerprint/carried.py": "tests/verification/test_verify.py",
    "fingerprint/variants.py": "tests/fingerprint/test_make.py",
    "runtime/speaker.py": "tests/cli/test_chat.py",
    "verification/at_server.py": "tests/verification/test_verify.py",
    "verification/in_llama_cpp.py": "tests/verification/test_verify.py",
    "verification/in_transformers.py": "tests/verification/test_verify.py",
    "verification/runtime.py": "tests/verification/test_verify.py",
    "verification/words.py": "tests/cli/test_verify.py",
    "files/manifest.py": "tests/files/test_working_folder.py",
    "models/layer.py": "tests/models/test_transforms.py",
    "models/scaling.py": "tests/calibration/test_smoothing.py",
    "models/source.py": "tests/trust/test_shard_index.py",
    "planning/needs.py": "tests/planning/test_plan.py",
    "planning/workload.py": "tests/planning/test_plan.py",
    "quantization/ranges.py": "tests/rounding/test_input_ranges.py",
    "quantization/smoothing.py": "tests/calibration/test_smoothing.py",
    "quantization/straight_through.py": "tests/quantization/test_learned_rounding.py",
    "report/figure.py": "tests/report/test_loss_figures.py",
    "report/figures.py": "tests/report/test_page.py",
    "report/plain.py": "tests/cli/test_output.py",
    "rounding/cache.py": "tests/models/test_transforms.py",
    "rounding/demand.py": "tests/rounding/test_layers.py",
    "rounding/hessians.py": "tests/distributed/test_ranks.py",
    "rounding/layer.py": "tests/rounding/test_site_runs.py",
    "rounding/shards.py": "tests/test_pipeline.py",
    "rounding/weights.py": "tests/rounding/test_site_runs.py",
    "run/job.py": "tests/run/test_journal.py",
    "run/workspace.py": "tests/calibration/test_calibrate.py",
    "runtime/checks.py": "tests/runtime/test_assembly.py",
    "runtime/integration.py": "tests/test_pipeline.py",
    "text/download_lists.py": "tests/hub/test_downloads.py",
    "analysis/kept.py": "tests/analysis/test_compare.py",
    "analysis/kept_samples.py": "tests/analysis/test_compare.py",
    "runtime/tied_source.py": "tests/runtime/test_tied_ends.py",
    "runtime/kernels/capabilities.py": "tests/rounding/test_layers.py",
    "runtime/kernels/grids.py": "tests/runtime/kernels/test_quantized_tokens.py",
    "runtime/kernels/dense.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/expanded_tiles.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/int4_rows.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/int4_triton.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/int8_product.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/interface.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/launching.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/reference.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/selection.py": "tests/runtime/kernels/test_cpu_kernels.py",
    "runtime/kernels/triton_pieces.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/triton_attention.py": "tests/runtime/kernels/test_attention_triton.py",
    "runtime/kernels/attention_interface.py": "tests/runtime/kernels/test_attention_triton.py",
    "runtime/kernels/attention_selection.py": "tests/runtime/kernels/test_attention_triton.py",
    "runtime/kernels/triton_few_rows.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/triton_hadamard.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/triton_many_rows.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/triton_one_row.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/kernels/triton_tokens.py": "tests/runtime/kernels/test_triton_kernels.py",
    "runtime/linear.py": "tests/rounding/test_site_runs.py",
    "runtime/loading.py": "tests/test_pipeline.py",
    "runtime/online.py": "tests/analysis/test_inspection.py",
    "trust/folder.py": "tests/hub/test_location.py",
    **{f"models/{family}.py": "tests/models/test_registry.py" for family in FAMILIES},
    **{f"models/{family}.py": "tests/models/test_families.py" for family in ASSEMBLED},
    **{f"models/{family}.py": "tests/models/test_wrapper.py" for family in WRAPPED},
}
"""Modules without a test file of their own, and the one that tests them. Where a module gets its own, its row goes."""

COMMANDS = ("commands", "processes", "hub.machine")
"""Helpers that run the command line."""


def mirror_of(module: Path) -> Path:
    """Where the test file of a module of src lies, below ``tests``."""
    return module.parent / f"test_{module.stem}.py"


def modules() -> list[Path]:
    """All but the lists of names that packages export."""
    found = (path.relative_to(ROOT) for path in files().values())
    return [path for path in found if path.name != "__init__.py"]


def dotted(module: str) -> str:
    return module.removesuffix(".py").replace("/", ".")


def used_by(test: Path) -> set[str]:
    """What a test file imports, what that imports in turn, and all that the verbs run that it calls."""
    text = test.read_text(encoding="utf-8")
    direct = set(imports_of(test, graph())) - {"__init__"}
    verbs = {"cli.main"} & direct
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jointquant":
            verbs |= home_of(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "jointquant":
            verbs |= {module for alias in node.names for module in home_of(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module in COMMANDS:
            verbs |= {"cli.main"}
    started = {"__main__"} if '"-m", "jointquant"' in text else set()
    return started | direct.union(*(graph()[module] for module in direct)) | reached(verbs, graph())


def home_of(name: str) -> set[str]:
    """The module of something that the package exports; nothing for other names."""
    module = getattr(getattr(jointquant, name, None), "__module__", "") if name in jointquant.__all__ else ""
    return {module.removeprefix("jointquant.")} & set(graph())


@pytest.mark.parametrize("module", modules(), ids=str)
def test_a_module_has_its_test_file(module: Path) -> None:
    own, other = TESTS / mirror_of(module), COVERED_ELSEWHERE.get(module.as_posix())
    if other is None:
        assert own.is_file(), f"nothing tests {module}: expected tests/{mirror_of(module)}, or a row in the table"
        return
    assert not own.exists(), f"{module} has a test file of its own: its row in COVERED_ELSEWHERE goes"
    assert dotted(module.as_posix()) in used_by(TESTS.parent / other), f"{other} does not import {module}"


@pytest.mark.parametrize("test", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_file_has_its_module(test: Path) -> None:
    place = test.relative_to(TESTS)
    mirrored = place in {mirror_of(module) for module in modules()}
    assert mirrored != (place.as_posix() in WHOLE_SYSTEM), f"{place} mirrors no module of src, or is named in vain"


@pytest.mark.parametrize("name", sorted({*COVERED_ELSEWHERE} | {*WHOLE_SYSTEM}))
def test_the_tables_name_what_is_there(name: str) -> None:
    assert (ROOT / name if name in COVERED_ELSEWHERE else TESTS / name).is_file()


def test_what_a_file_does_not_import_it_does_not_test(tmp_path: Path) -> None:
    """The check above can fail."""
    test = tmp_path / "test_x.py"
    test.write_text("import jointquant\nfrom jointquant.quantization.packing import pack\n")
    assert "quantization.packing" in used_by(test)
    assert not {"rounding.layers", "cli.main", "pipeline"} & used_by(test)
    test.write_text("import jointquant\n\njointquant.quantize('model', 'out')\n")
    assert "rounding.layers" in used_by(test)
    assert not {"cli.main", "analysis.compare"} & used_by(test)
