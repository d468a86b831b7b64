"""JSON: an object, or a refusal."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.errors import InputError
from jointquant.trust.strict_json import parse_object


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]:,"ae10.-NaInfity ', max_size=60).map(str.encode))
def test_any_bytes_for_json(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_object(data, "bytes"), dict)
