"""Each failure of the client as one line that says what to do."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub import constants, errors

from jointquant.errors import InputError
from jointquant.hub.failures import one_line
from jointquant.hub.repository import Repository

MODEL = Repository("tiny/llama", "model")


def line_of(error: Exception, cause: Exception | None = None) -> str:
    """What the user reads when the client raises ``error`` from ``cause``."""
    with pytest.raises(InputError) as caught, one_line(MODEL):
        raise error from cause
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_full_disk_is_named_with_its_folder() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/cache/blobs/1")
    line = line_of(full)
    assert "cannot be stored: No space left on device (/cache/blobs/1)" in line
    assert "HF_HOME" in line
    assert "cannot be stored" in line_of(RuntimeError("wrapped"), full)


def test_a_folder_that_may_not_be_written_is_named() -> None:
    assert "cannot be stored: Permission denied (/cache)" in line_of(
        PermissionError(errno.EACCES, "Permission denied", "/cache")
    )


def test_a_connection_error_deep_in_the_chain_is_one() -> None:
    line = line_of(errors.LocalEntryNotFoundError("many\nlines"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    assert f"the connection to the hub at {constants.ENDPOINT} failed" in line


def test_a_file_of_the_wrong_size_may_be_fetched_again() -> None:
    assert "Consistency check failed: run" in line_of(OSError("Consistency check failed:\nrun")).replace("\n", " ")


def test_defects_are_not_hidden() -> None:
    with pytest.raises(TypeError), one_line(MODEL):
        raise TypeError("ours")
    with pytest.raises(InputError, match=r"^said already$"), one_line(MODEL):
        raise InputError("said already")
