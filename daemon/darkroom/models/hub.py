"""Models from the hub, fetched into a folder of their own: whole or not there. The only code that goes to the network.

Safetensors, JSON and text files only: no pickle and no code is ever fetched. ``HF_ENDPOINT`` and ``HF_TOKEN`` are the
hub's own variables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from darkroom.errors import DarkroomError, ModelUnavailable, first_line

PATTERNS = ("*.json", "*.txt", "*.safetensors")

NOT_NEEDED = ("safety_checker/*", "*non_ema*", "feature_extractor/*")


def listing(hub: str) -> dict[str, int]:
    """The files of ``owner/name`` or ``owner/name@revision`` that a model is made of, and their bytes.

    Raises ModelUnavailable.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    name, _, revision = hub.partition("@")
    with _explained(hub):
        entries = HfApi().list_repo_tree(name, revision=revision or None, recursive=True)
        sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    wanted = choose(sizes)
    if "model_index.json" not in wanted:
        raise ModelUnavailable(
            f"{hub} on the hub is no diffusers folder: it has no model_index.json, and darkroom fetches only those; "
            "a single checkpoint can be fetched by other means and put into models_dir"
        )
    return {path: sizes[path] for path in wanted}


def fetch(hub: str, folder: Path, files: dict[str, int] | None = None) -> None:
    """Fetch ``files`` of a model into ``folder``, by one rename at the end; ``listing`` says which where left out.

    What was fetched before an interruption is kept beside it and not fetched again. Raises ModelUnavailable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    wanted = listing(hub) if files is None else files
    name, _, revision = hub.partition("@")
    partial = partial_folder(folder)
    disable_progress_bars()
    with _explained(hub):
        partial.mkdir(parents=True, exist_ok=True)
        snapshot_download(name, revision=revision or None, local_dir=partial, allow_patterns=list(wanted))
        # Without an answer from the hub the library is content with what it finds.
        missing = [path for path, size in wanted.items() if not _whole(partial / path, size)]
        if missing:
            raise ModelUnavailable(f"{hub} was not fetched whole: {missing[0]} is missing; run it again")
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        partial.rename(folder)


def partial_folder(folder: Path) -> Path:
    """Where what is fetched lies until it is whole."""
    return folder.with_name(f".{folder.name}.part")


def fetched_bytes(folder: Path) -> int:
    """How much of a model is there so far."""
    total = 0
    for path, _, names in os.walk(partial_folder(folder)):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size  # noqa: PTH116, PTH118
            except OSError:
                continue  # it was renamed in this moment
    return total


def choose(names: Iterable[str]) -> list[str]:
    """Which files of a repository are needed: of weights in two precisions the files of half size.

    What lies at the top besides model_index.json is checkpoints of the same weights.
    """
    kept = [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in PATTERNS)
        and not any(fnmatch(name, pattern) for pattern in NOT_NEEDED)
        and ("/" in name or not name.endswith(".safetensors"))
    ]
    halved = {PurePosixPath(name).parent for name in kept if name.endswith(".safetensors") and ".fp16" in name}
    return [
        name
        for name in kept
        if ".safetensors" not in name or ".fp16" in name or PurePosixPath(name).parent not in halved
    ]


def _whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


@contextmanager
def _explained(hub: str) -> Iterator[None]:
    """Whatever the library raises as one sentence."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import logging

    logging.get_logger("huggingface_hub").setLevel("ERROR")  # it would tell of each of its own attempts
    try:
        yield
    except DarkroomError:
        raise
    except GatedRepoError:
        raise ModelUnavailable(
            f"{hub} asks for its licence to be accepted: do that on its page on the hub, then set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelUnavailable(f"there is no {hub} on the hub, or it is private and HF_TOKEN is not set") from None
    except Exception as error:
        raise ModelUnavailable(f"{hub} cannot be fetched from the hub: {first_line(error)}") from None
