"""Initial weights by name: the file with which the published training begins."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from kit.files import hash_file, replace_file
from kit.models.fetching import FetchError, name_network_errors
from kit.progress import log

# timm's own copies on Hugging Face. Their SHA-256 are printed nowhere that we know: what the hub
# records of a file is what a download is compared with.
BACKBONES = {"resnext101": "timm/resnext101_32x8d.fb_wsl_ig1b_ft_in1k"}
_FILE = "model.safetensors"


def fetch_backbone(name: str, out: Path) -> Path:
    """Download the initial weights of a name in `BACKBONES` to the file `out`; return that.

    Size and SHA-256 are those that the hub records, and are logged. A download that was interrupted
    goes on where it stopped, in the cache of `huggingface_hub`. Raises `FetchError`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository = BACKBONES[name]
    with name_network_errors(repository, f"save its {_FILE} as {out}"):
        record = get_hf_file_metadata(hf_hub_url(repository, _FILE))
        if not re.fullmatch("[0-9a-f]{64}", record.etag or ""):
            raise FetchError(f"{repository}: the hub records no SHA-256 to check by")
        path = Path(hf_hub_download(repository, _FILE, revision=record.commit_hash))
    if path.stat().st_size != record.size or hash_file(path) != record.etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise FetchError(f"{repository}: {_FILE} arrived damaged: run the same command again")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as part:
        shutil.copyfile(path, part)
    log.info(f"{out}: {record.size:,} bytes, SHA-256 {record.etag}, as the hub records it")
    return out
