"""Models from the hub, fetched into a folder of their own: whole or not there. The only code that goes to the network.

Safetensors, JSON and text files only: no pickle and no code is ever fetched. ``HF_ENDPOINT`` and ``HF_TOKEN`` are the
hub's own variables.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from darkroom.errors import ModelUnavailable, first_line

PATTERNS = ("*.json", "*.txt", "*.safetensors")

NOT_NEEDED = ("safety_checker/*", "*non_ema*", "feature_extractor/*")


def fetch(hub: str, folder: Path, *, progress: Any = None) -> None:
    """Fetch ``owner/name`` or ``owner/name@revision`` into ``folder``, by one rename at the end.

    What was fetched before an interruption is kept beside it and not fetched again. ``progress`` is a class like
    tqdm's. Raises ModelUnavailable.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    owner_and_name, _, revision = hub.partition("@")
    partial = folder.with_name(f".{folder.name}.part")
    try:
        names = HfApi().list_repo_files(owner_and_name, revision=revision or None)
        wanted = choose(names)
        if "model_index.json" not in wanted:
            raise ModelUnavailable(
                f"{hub} on the hub is no diffusers folder: it has no model_index.json; darkroom can fetch only those"
            )
        partial.mkdir(parents=True, exist_ok=True)
        snapshot_download(
            owner_and_name, revision=revision or None, local_dir=partial, allow_patterns=wanted, tqdm_class=progress
        )
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        partial.rename(folder)
    except GatedRepoError:
        raise ModelUnavailable(
            f"{hub} asks for its licence to be accepted: do that on the hub's page of it, then set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
        raise ModelUnavailable(f"There is no {hub} on the hub, or it is private and HF_TOKEN is not set") from None
    except HfHubHTTPError as error:
        raise ModelUnavailable(f"{hub} cannot be fetched from the hub: {first_line(error)}") from None
    except OSError as error:
        raise ModelUnavailable(f"{hub} cannot be fetched into {folder.parent}: {first_line(error)}") from None


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
