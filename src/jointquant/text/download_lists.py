"""Lists of models and texts to download: YAML files of the user's, and those that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jointquant.errors import require, unknown
from jointquant.hub.downloads import Wanted
from jointquant.hub.location import parse_repository
from jointquant.text.hub_text import NAMED_TEXTS
from jointquant.text.names import NAMES, named
from jointquant.trust.strict_yaml import read_yaml

LISTS = Path(__file__).parent / "lists"
KEYS = ("description", "models", "texts")


def wanted_of(source: str) -> list[Wanted]:
    """What a list names.

    Args:
        source: the name of a list of the package, or a YAML file with ``models``, hub ids with or without @revision,
            and ``texts``, names of texts as ``--calib`` takes them.

    Raises:
        InputError: no such list, or one that names something else.
    """
    names = sorted(path.stem for path in LISTS.glob("*.yaml"))
    path = LISTS / f"{source}.yaml" if source in names else Path(source)
    require(path.is_file(), unknown("list", source, [*names, "a YAML file"]))
    data: Any = read_yaml(path, f"list {source}")
    require(isinstance(data, dict), f"list {source} is no mapping: expected the keys {', '.join(KEYS)}")
    for key in data:
        require(key in KEYS, f"list {source}: {unknown('key', str(key), list(KEYS))}")
    models, texts = (_strings(data.get(key) or [], f"{key} of list {source}") for key in ("models", "texts"))
    require(bool(models or texts), f"list {source} names neither models nor texts: expected one at least")
    found = [Wanted(name, parse_repository(name, "model")) for name in models]
    for text in texts:
        known = named(text)
        require(known is not None, unknown(f"text of list {source}", text, list(NAMES)))
        assert known is not None
        found.append(Wanted(text, NAMED_TEXTS[known].repository, tuple(NAMED_TEXTS[known].files.values())))
    return found


def _strings(values: Any, what: str) -> list[str]:
    whole = isinstance(values, list) and all(isinstance(value, str) for value in values)
    require(whole, f"{what} is no list of names: expected one name a line, each after a dash")
    return list(dict.fromkeys(values))
