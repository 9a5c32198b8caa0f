"""Released models by name: downloaded at a fixed revision, checked, brought into the kit's form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kit import InputError
from kit.files import refuse_existing
from kit.models.released import RELEASED


class FetchError(InputError):
    """A released model cannot be downloaded; the text says why and what to do."""


def fetch_model(name: str, out: Path, classifier_only: bool = False, opt_level: str = "O0") -> Path:
    """Download a released model and turn it into the run directory `out`; return that.

    A download goes on after a failure of the network; what an earlier call has downloaded whole is
    in the cache of `huggingface_hub` and not downloaded again.
    Raises `FetchError` without a network or where there is no such model to download, and
    otherwise as `import_model`.
    """
    if name not in _FETCHERS:
        known = ", ".join(_FETCHERS)
        by_hand = f" ({RELEASED[name].get})" if name in RELEASED else ""
        raise FetchError(f"kit fetch has no {name!r}{by_hand}; it has {known}")
    refuse_existing(out)
    return _FETCHERS[name](out, classifier_only, opt_level)


def _fetch_ianpan(out: Path, classifier_only: bool, opt_level: str) -> Path:
    from kit.models.importing import import_model  # here, because they need torch
    from kit.models.reading import SUMS, check_sums

    files = ["classifier/model.safetensors", "sequence/model.safetensors"]
    entry = RELEASED["ianpan"]
    repository = entry.source.removeprefix("huggingface.co/")
    folder = _download_files(repository, entry.revision, [SUMS, *files])
    try:
        check_sums(folder, [folder / file for file in files])
    except InputError:
        for file in files:  # the same command then downloads them again
            (folder / file).resolve().unlink(missing_ok=True)
            (folder / file).unlink(missing_ok=True)
        raise
    return import_model(folder, out, "ianpan", classifier_only, opt_level).path


def _download_files(repository: str, revision: str, names: list[str]) -> Path:
    """Download files of a repository on Hugging Face; return the folder that holds them.

    `revision` is the beginning of a commit's hash. Raises `FetchError`.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with name_network_errors(repository, "download the folder elsewhere and use kit import-model"):
        commits = [commit.commit_id for commit in HfApi().list_repo_commits(repository)]
        found = [commit for commit in commits if commit.startswith(revision)]
        if len(found) != 1:
            raise FetchError(f"{repository} has no revision {revision} any more")
        paths = [hf_hub_download(repository, name, revision=found[0]) for name in names]
    return Path(paths[0].removesuffix(names[0]))


@contextlib.contextmanager
def name_network_errors(repository: str, instead: str) -> Iterator[None]:
    """Raise `FetchError` where the block cannot be carried out; `instead` can be done by hand."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its second base is the error of the library that carries the requests, whichever that is.
    network: Any = (OSError, HfHubHTTPError.__mro__[1])
    try:
        yield
    except network as error:
        raise FetchError(
            f"{repository} could not be downloaded ({type(error).__name__}): with a network "
            f"connection the same command goes on; or {instead}"
        ) from error


_FETCHERS: dict[str, Callable[[Path, bool, str], Path]] = {"ianpan": _fetch_ianpan}
