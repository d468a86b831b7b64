"""The verb ``probe``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jointquant.cli.options import HubOption, JsonOption, RevisionOption
from jointquant.cli.output import finish
from jointquant.errors import check_all
from jointquant.trust.model_name import check_model_name


def probe(
    model: Annotated[
        str, typer.Argument(help="A configuration file (config.json of a model), a folder that holds one, or a hub id.")
    ],
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    as_json: JsonOption = False,
) -> None:
    """Describe a family that JointQuant does not know: watch a small copy run, try rotations on it, print a file.

    Example: jointquant probe ./config.json
    """
    check_all(lambda: None if os.path.isfile(model) else check_model_name(model))
    from jointquant.probing.probe import probe as probed

    found = probed(model, revision=revision, hub=hub)
    if not as_json:
        print(f"# src/jointquant/models/{found.model_type}.py" + (" (there is one already)" if found.known else ""))
        print(found.file)
        for name, error in found.errors.items():
            verdict = "exact" if name in found.holds else "NOT exact"
            print(f"# {name}: {verdict}, logits move by {error:.1e} in float64")
        for doubt in found.doubts:
            print(f"# {doubt}")
        print(f'# SPECIAL["{found.model_type}"] in tests/conftest.py, of: {found.tiny}')
    finish(found.to_dict(), as_json)
