"""Initial weights by name: the files with which the trainings of recipes begin."""

from __future__ import annotations

import re
from pathlib import Path

from kit.files import refuse_existing
from kit.models.fetching import FetchError, download_file, keep_partial, name_network_errors
from kit.progress import log
from kit.recipes import RECIPES

# timm's own copies on Hugging Face. Their SHA-256 are printed nowhere that we know: what the hub
# records of a file is what a download is compared with.
BACKBONES = {
    "resnext101": "timm/resnext101_32x8d.fb_wsl_ig1b_ft_in1k",
    "convnext_small": "timm/convnext_small.in12k_ft_in1k_384",
}
_FILE = "model.safetensors"


def find_backbone(recipe: str) -> str | None:
    """The name in `BACKBONES` of the weights with which a recipe begins; None if it has none."""
    classifier = RECIPES[recipe].classifier
    known = {source.removeprefix("timm/"): name for name, source in BACKBONES.items()}
    return known.get(classifier.architecture) if classifier.weights == "pretrained" else None


def fetch_backbone(name: str, out: Path) -> Path:
    """Download the initial weights of a name in `BACKBONES` to the file `out`; return that.

    Size and SHA-256 are those that the hub records, and are logged. What has arrived of a download
    that was interrupted stands in `OUT.partial`; a second call goes on. Raises `FetchError`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repository = BACKBONES[name]
    refuse_existing(out)
    instead = f"save its {_FILE} as {out}"
    with keep_partial(out) as partial, name_network_errors(repository, instead):
        record = get_hf_file_metadata(hf_hub_url(repository, _FILE))
        if not record.size or not re.fullmatch("[0-9a-f]{64}", record.etag or ""):
            raise FetchError(f"{repository}: the hub records no size and SHA-256 to check by")
        url = hf_hub_url(repository, _FILE, revision=record.commit_hash)
        download_file(url, partial / _FILE, record.size, str(record.etag))
        (partial / _FILE).rename(out)
    log.info(f"{out}: {record.size:,} bytes, SHA-256 {record.etag}, as the hub records it")
    return out
