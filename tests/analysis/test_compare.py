"""compare and stats: the shared walk changes no byte, rows and files have their form, bad input writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jointquant
import jointquant.calibration.calibrate
from conftest import make_model, small
from jointquant.analysis.compare import Comparison
from jointquant.errors import InputError
from jointquant.report.layer_losses import layer_loss_sums
from texts import TEXTS

QUICK = ("rotations.r1.steps=4", "rotations.r2.steps=4")
TEXT = str(TEXTS / "heldout.txt")
LEARNED = ("exp-independent", "exp-joint", "exp-swd")


def compared(out: Path, tokenizer, recipes: tuple[str, ...], *changes: str, **options: object) -> Comparison:
    limits = {"texts": (TEXT,), "eval_seqlen": 32, "max_tokens": 320, "tokenizer": tokenizer}
    changes = (*small(), *changes)
    return jointquant.compare(make_model("llama"), recipes, out, changes=changes, **limits, **options)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_walk_and_the_bytes_of_lone_runs(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    walks, walk = [], jointquant.calibration.calibrate.walk
    monkeypatch.setattr(jointquant.calibration.calibrate, "walk", lambda *a: walks.append(1) or walk(*a))
    result = compared(tmp_path / "all", tokenizer, LEARNED, *QUICK, keep_artifacts=True)
    assert len(walks) == 1
    sums = layer_loss_sums(result.to_dict())
    assert list(sums) == list(LEARNED)
    joint, independent = sums["exp-joint"], sums["exp-independent"]
    assert joint["by_epoch"][0] == pytest.approx(independent["by_epoch"][0])  # one start, on the same tokens
    assert independent["by_epoch"][-1] < joint["by_epoch"][-1] < joint["by_epoch"][0]
    assert len(joint["by_layer"]) == 3
    assert "cannot beat independent R1s" in (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    for name in LEARNED:
        recipe = jointquant.load_recipe(name, [*small(), *QUICK])
        jointquant.quantize(make_model("llama"), tmp_path / name, recipe, tokenizer=tokenizer)
        assert files(tmp_path / "all" / "artifacts" / f"{name}-seed0") == files(tmp_path / name)


@pytest.mark.parametrize("kept", [False, True])
def test_recipes_without_r1_have_a_walk_of_their_own(
    kept: bool, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers keep their gains, as pass 2 has them, so scales and R2 have the bytes of a run alone."""
    walks, walk = [], jointquant.calibration.calibrate.walk
    for module in (jointquant.calibration.calibrate, jointquant.calibration.capture):
        monkeypatch.setattr(module, "walk", lambda *a: walks.append(a[1]) or walk(*a))
    learned = [*small(), "rotations.r2.kind=learned", "rotations.r2.steps=4", "smoothing.alpha=0.5"]
    recipes = {name: jointquant.load_recipe(name, learned) for name in ("rtn", "quarot")}
    options = {"texts": (TEXT,), "eval_seqlen": 32, "max_tokens": 320, "tokenizer": tokenizer}
    options |= {"keep": tmp_path / "kept"} if kept else {"keep_artifacts": True}
    jointquant.compare(make_model("llama"), recipes, tmp_path / "all", **options)  # type: ignore[arg-type]
    assert sorted(walks) == [False, True]
    for name, recipe in recipes.items():
        jointquant.quantize(make_model("llama"), tmp_path / name, recipe, tokenizer=tokenizer)
        made = "kept/{}-seed0/artifact" if kept else "all/artifacts/{}-seed0"
        assert files(tmp_path / made.format(name)) == files(tmp_path / name)


def test_rows_and_files(tmp_path: Path, tokenizer) -> None:
    result = compared(tmp_path / "out", tokenizer, ("fp16", "rtn", "quarot"), seeds=(0, 1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "report.html",
        "results.json",
    ]
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert [row["recipe"] for row in stored["rows"]] == ["fp16", "rtn", "quarot"]
    for row in stored["rows"]:
        runs = [r for r in stored["runs"] if r["recipe"] == row["recipe"]]
        values = [r["perplexity"][TEXT] for r in runs]
        assert row["seeds"] == [0, 1] == [r["seed"] for r in runs]
        assert row["perplexity"][TEXT] == pytest.approx(sum(values) / 2)
        assert (row["perplexity_min"][TEXT], row["perplexity_max"][TEXT]) == (min(values), max(values))
        assert row["delta"][TEXT] == pytest.approx(row["perplexity"][TEXT] - stored["reference"]["perplexity"][TEXT])
        assert row["seconds"] > 0
        assert row["peak_rss_bytes"] > 0
        distances = [r["divergence"][TEXT]["mean"] for r in runs]
        assert row["divergence"][TEXT] == pytest.approx(sum(distances) / 2)
        assert (row["divergence_min"][TEXT], row["divergence_max"][TEXT]) == (min(distances), max(distances))
        assert row["same_top"][TEXT] == pytest.approx(sum(r["divergence"][TEXT]["same_top"] for r in runs) / 2)
    fp16, rtn, _ = stored["rows"]
    assert fp16["divergence"][TEXT] < 1e-6 < 0.01 < rtn["divergence"][TEXT]
    assert fp16["same_top"][TEXT] > 0.99
    assert fp16["perplexity"][TEXT] == pytest.approx(stored["reference"]["perplexity"][TEXT], rel=1e-4)
    assert rtn["bits"] < 16
    assert set(stored["details"]["quarot"]) == {
        "traces",
        "spreads",
        "errors",
        "transforms",
        "undone",
        "generations",
        "parts",
        "layer_losses",
    }


def test_recipe_files_and_recipes_by_label(tmp_path: Path, tokenizer) -> None:
    mine = tmp_path / "mine & <yours>.yaml"
    mine.write_text("weights: {num_bits: 8, method: rtn}\n")
    named = compared(tmp_path / "a", tokenizer, ("rtn", str(mine)))  # type: ignore[arg-type]
    assert [row["recipe"] for row in named.rows] == ["rtn", "mine & <yours>"]
    labelled = {"eight": jointquant.load_recipe(mine)}
    again = compared(tmp_path / "b", tokenizer, labelled)  # type: ignore[arg-type]
    assert again.rows[0]["perplexity"] == named.rows[1]["perplexity"]
    page = (tmp_path / "a" / "report.html").read_text()
    assert "mine &amp; &lt;yours&gt;" in page
    assert "<yours>" not in page


def test_refusals(tmp_path: Path, tokenizer) -> None:
    def refused(message: str, recipes: tuple[str, ...], *changes: str, **options: object) -> None:
        with pytest.raises(InputError, match=message):
            compared(tmp_path / "o" / "out", tokenizer, recipes, *changes, **options)
        assert not list(tmp_path.iterdir())

    refused("no recipe to compare", ())
    refused("'rtn' is named twice", ("rtn", "rtn"))
    refused("unknown recipe 'nope'", ("rtn", "nope"))
    refused("unknown key", ("rtn",), "weights.bits=3")
    refused("seeds must be different", ("rtn",), seeds=(1, 1))
    refused("too short", ("rtn",), "calibration.num_samples=100000")


def test_kept_artifacts_are_measured_again_and_not_made_again(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another comparison makes what is new alone; a changed setting, or a changed model, is made again and said."""
    caplog.set_level("INFO", logger="jointquant")
    made, write = [], jointquant.analysis.laboratory.write_artifact
    monkeypatch.setattr(jointquant.analysis.laboratory, "write_artifact", lambda *a: made.append(1) or write(*a))
    keep = {"keep": tmp_path / "kept"}
    first = compared(tmp_path / "a", tokenizer, ("rtn", "quarot"), **keep)
    assert len(made) == 2
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["manifest.json", "report.html", "results.json"]
    recipe = jointquant.load_recipe("quarot", [*small()])
    jointquant.quantize(make_model("llama"), tmp_path / "alone", recipe, tokenizer=tokenizer)
    assert files(tmp_path / "kept" / "quarot-seed0" / "artifact") == files(tmp_path / "alone")
    second = compared(tmp_path / "b", tokenizer, ("quarot", "gptq"), **keep)
    assert len(made) == 3
    assert second.rows[0] == first.rows[1]
    assert second.details["quarot"] == first.details["quarot"]
    assert [run.kept for run in second.runs] == [True, False]
    compared(tmp_path / "c", tokenizer, ("rtn",), "weights.num_bits=3", **keep)
    assert len(made) == 4
    assert "made again: recipe.weights.num_bits was 4, now 3" in caplog.text


def test_kept_samples_are_learned_from_again(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One walk for all recipes, none for another objective later; the bytes are those of a run alone."""
    caplog.set_level("INFO", logger="jointquant")
    walks, walk = [], jointquant.calibration.calibrate.walk
    for module in (jointquant.calibration.calibrate, jointquant.calibration.capture):
        monkeypatch.setattr(module, "walk", lambda *a: walks.append(1) or walk(*a))
    keep = {"keep": tmp_path / "kept"}
    first = compared(tmp_path / "a", tokenizer, ("exp-joint", "exp-whip"), *QUICK, **keep)
    (samples,) = (tmp_path / "kept").glob("samples-*")
    assert len(walks) == 1
    assert first.details["exp-joint"]["layer_losses"]
    changes = [*small(), *QUICK, "rotations.r1.objective=range"]
    compared(tmp_path / "b", tokenizer, ("exp-joint",), *changes, **keep)
    assert len(walks) == 1
    made = files(tmp_path / "kept" / "exp-joint-seed0" / "artifact")
    recipe = jointquant.load_recipe("exp-joint", changes)
    jointquant.quantize(make_model("llama"), tmp_path / "alone", recipe, tokenizer=tokenizer)
    assert made == files(tmp_path / "alone")
    jointquant.rotate(samples, tmp_path / "rotations", recipe)
    rotations = (tmp_path / "rotations" / "rotations.safetensors").read_bytes()
    assert rotations == made["rotations.safetensors"]
    walks.clear()
    (samples / "layer-00001.safetensors").write_bytes(b"damaged")
    compared(tmp_path / "c", tokenizer, ("exp-joint",), *QUICK, "rotations.r1.steps=5", **keep)
    assert len(walks) == 1
    assert "is captured again" in caplog.text


def test_a_folder_that_keeps_is_none_of_the_output(tmp_path: Path, tokenizer) -> None:
    with pytest.raises(InputError, match="inside it: expected another folder"):
        compared(tmp_path / "a", tokenizer, ("rtn",), keep=tmp_path / "a" / "kept")
    with pytest.raises(InputError, match="expected one of them"):
        compared(tmp_path / "a", tokenizer, ("rtn",), keep=tmp_path / "kept", keep_artifacts=True)
    (tmp_path / "kept" / "rtn-seed0").mkdir(parents=True)
    (tmp_path / "kept" / "rtn-seed0" / "mine").write_text("")
    with pytest.raises(InputError, match="has no manifest of jointquant"):
        compared(tmp_path / "a", tokenizer, ("rtn",), keep=tmp_path / "kept")
