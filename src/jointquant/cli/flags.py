"""Settings, which messages name as Python does, as the flags of the command line."""

from __future__ import annotations

import re

SETTINGS = (
    "allow_pickle",
    "base",
    "dequantized",
    "device",
    "diagnose",
    "device_budget",
    "dtype",
    "max_new_tokens",
    "max_tokens",
    "memory_budget",
    "num_samples",
    "out",
    "overwrite",
    "raw",
    "recipe",
    "seqlen",
)
"""Options of the API whose flag has the same name."""

OTHERS = {'digests="ignore"': "--no-verify", "changes": "--set", "prompts": "--prompt"}
"""Settings whose flag is called otherwise."""

QUOTE = '"'
NAMED = re.compile(r"`([a-z][a-z0-9_.]*)(?:=([^`\s]*))?`")


def as_flags(message: str) -> str:
    """A message with each setting in backticks as a flag.

    `overwrite=True` becomes --overwrite, `seqlen=512` --seqlen 512, and what a recipe holds, such as
    `weights.method=rtn`, --set weights.method=rtn. Whatever else stands in backticks stays.
    """
    return NAMED.sub(_flag, message)


def _flag(found: re.Match[str]) -> str:
    whole, name, value = found[0], found[1], found[2]
    if whole.strip("`") in OTHERS:
        return OTHERS[whole.strip("`")]
    if "." in name:
        return whole if value is None else f"--set {name}={value}"
    if name not in SETTINGS:
        return whole
    flag = "--" + name.replace("_", "-")
    return flag if value in (None, "True") else f"{flag} {value.strip(QUOTE)}"
