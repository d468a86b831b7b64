"""The failures of the hub's client, each as one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors

from jointquant.errors import InputError, printable
from jointquant.hub.repository import Repository

# The base of everything that the HTTP library raises, whichever version of it the client is built on.
HTTPError: type[Exception] = errors.HfHubHTTPError.__mro__[1]
LIBRARIES = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "datasets", "fsspec", "pyarrow")
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EIO}
INSTEAD = "pass a local folder or file, or set HF_HUB_OFFLINE=1 to use what is cached"


@contextmanager
def one_line(repository: Repository) -> Iterator[None]:
    """Run a block that talks to the hub about ``repository``; its failures come out as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        of_library = type(error).__module__.partition(".")[0] in LIBRARIES
        if not (of_library or isinstance(error, (OSError, RuntimeError))):
            raise
        raise InputError(describe(repository, error)) from None


def describe(repository: Repository, error: Exception) -> str:
    """What went wrong with ``repository``, in one line."""
    chain = list(causes(error))
    if constants.HF_HUB_OFFLINE:
        return (
            f"{repository} is not in the cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set: "
            "unset it once to download, or pass a local folder or file"
        )
    expected = "a local folder or a repository" if repository.kind == "model" else "a repository"
    for kind, words in KNOWN:
        if any(isinstance(link, kind) for link in chain):
            return words.format(repository=repository, error=brief(error), hub=constants.ENDPOINT, kind=expected)
    for link in chain:
        if isinstance(link, errors.HfHubHTTPError):
            status = getattr(link.response, "status_code", "no")
            return f"{repository}: the hub at {constants.ENDPOINT} answered with status {status}; try again later"
    for link in chain:
        if isinstance(link, OSError) and link.errno in DISK_ERRORS:
            where = link.filename or constants.HF_HUB_CACHE
            return f"{repository} cannot be stored: {link.strerror} ({where}); HF_HOME names another cache folder"
    if any(isinstance(link, (HTTPError, ConnectionError, TimeoutError)) for link in chain):
        return unreachable(repository, chain[-1])
    return f"{repository} cannot be fetched: {brief(error)}; run the command again (finished files are kept)"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def brief(error: BaseException) -> str:
    """An error's text on one line of at most 200 characters."""
    return printable(str(error), 200) or type(error).__name__


def unreachable(repository: Repository, error: BaseException) -> str:
    """A connection that cannot be made or that broke off."""
    return (
        f"{repository} cannot be fetched: the connection to the hub at {constants.ENDPOINT} failed ({brief(error)}); "
        f"run the command again (finished files are kept), {INSTEAD}"
    )


KNOWN = (
    (
        errors.GatedRepoError,
        "{repository} is gated: accept its licence on its page of the hub, then log in with `hf auth login` or set "
        "HF_TOKEN",
    ),
    (
        errors.RepositoryNotFoundError,
        "no such {repository}: expected {kind} of the hub at {hub} (a private one needs `hf auth login` or HF_TOKEN)",
    ),
    (
        errors.RevisionNotFoundError,
        "{repository}: no such revision: expected a branch, a tag or a commit of the repository",
    ),
    (errors.RemoteEntryNotFoundError, "{repository} lacks a file: {error}"),
)
"""What the client raises, and what that means."""
