"""The table of families says what the package does."""

from __future__ import annotations

import pytest
import torch

import jointquant
from conftest import FAMILIES, make_model, possible
from jointquant.artifact.obstacles.compressed import compressed_obstacles
from jointquant.artifact.obstacles.facts import Facts, facts_of
from jointquant.artifact.obstacles.gguf import gguf_obstacles
from jointquant.errors import InputError
from jointquant.models.registry import ARCHITECTURES, summary
from jointquant.models.support import COLUMNS, Support, reasons, support_of, support_table
from jointquant.planning.shape import model_of
from jointquant.run.fitting import assemble

SMALL_GROUPS = ("weights.group_size=8", "head.group_size=null")


def facts(family: str, recipe: str, *changes: str) -> Facts:
    """What decides where a tiny model of the family loads."""
    model, architecture = model_of(make_model(family).config)
    settings = jointquant.load_recipe(recipe, possible(family, *changes))
    return facts_of(assemble(model, architecture, settings), torch.bfloat16)


def accepted(family: str, recipe: str, *changes: str) -> bool:
    try:
        facts(family, recipe, *changes)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("family", [*FAMILIES, "deepseek_v3", "gpt_oss"])
def test_the_table_says_what_the_package_does(family: str) -> None:
    found = support_of(ARCHITECTURES[family])
    model, architecture = model_of(make_model(family).config)
    r1 = jointquant.load_recipe("fp16", ["rotations.r1.kind=hadamard"])
    if found["R1"].works:
        assemble(model, architecture, r1)
    else:
        with pytest.raises(InputError, match=r"rotations\.r1"):
            assemble(model, architecture, r1)
    for name, changes in (("R2", ["rotations.r2.kind=hadamard"]), ("R3", ["rotations.r3.kind=hadamard"])):
        assert found[name].works == accepted(family, "fp16", *changes)
    assert found["R4"].works == accepted(family, "fp16", "rotations.r4.kind=hadamard")
    kept = ["rotations.r1.kind=none"] if architecture.norm.subtracts_mean else []
    packed = compressed_obstacles(facts(family, "w4a16", *SMALL_GROUPS, *kept))
    assert bool(packed) != found["compressed-tensors"].works
    with_r4 = facts(family, "w4a8", *SMALL_GROUPS, "rotations.r4.kind=hadamard", "rotations.r4.block_size=8")
    assert bool(compressed_obstacles(with_r4)) == (found["compressed-tensors"].word != "yes")
    named = [each for each in gguf_obstacles(facts(family, "fp16")) if "no GGUF export" in str(each)]
    assert bool(named) != found["GGUF"].works


@pytest.mark.parametrize("family", FAMILIES)
def test_centring_in_part_is_keys_refused(family: str) -> None:
    keys = accepted(family, "fp16", "kv_cache.centring=keys")
    assert accepted(family, "fp16", "kv_cache.centring=values", "activations.centring=mean")
    absolute = ARCHITECTURES[family].absolute_scores
    held = absolute is not None and absolute.holds(make_model(family).config)
    assert keys != held
    assert (support_of(ARCHITECTURES[family])["centring"].word == "yes") == (absolute is None)


@pytest.mark.parametrize(("family", "named"), [("deepseek_v3", "caches latents"), ("gpt_oss", "has a sink")])
def test_neither_keys_nor_values_are_centred(family: str, named: str) -> None:
    for centring in ("keys", "values", "both"):
        with pytest.raises(InputError, match=rf"kv_cache\.centring {centring}: {family} {named}.* expected none$"):
            facts(family, "fp16", f"kv_cache.centring={centring}")
    assert accepted(family, "fp16", "activations.centring=mean")
    assert support_of(ARCHITECTURES[family])["centring"].word == "in part"


def test_every_doubt_has_its_reason() -> None:
    told = [(line.partition(":")[0].split(", ")) for line in reasons(ARCHITECTURES)]
    for model_type, architecture in ARCHITECTURES.items():
        for name, support in support_of(architecture).items():
            lines = [heads for heads in told if heads[0] == name and model_type in heads[1:]]
            assert len(lines) == (support.word != "yes"), (model_type, name)
    assert [Support(True).word, Support(True, "w").word, Support(False, "w").word] == ["yes", "in part", "no"]


def test_the_table_in_markdown() -> None:
    table = support_table(ARCHITECTURES, {name: summary(name) for name in ARCHITECTURES})
    rows = [line for line in table if line.startswith("| `") and "model_type" not in line]
    assert len(rows) == len(ARCHITECTURES)
    assert {line.count(" | ") for line in rows} == {len(COLUMNS) + 1}
