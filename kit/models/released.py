"""What there is to get: each released model with its source, licence, training data and figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Released:
    """The facts about a released model, as its authors state them."""

    name: str
    source: str
    revision: str
    licence: str
    size: str
    gives: str
    labels: str
    trained_on: str
    figures: str
    get: str  # the command, or where to download it by hand


_SIX = "epidural, intraparenchymal, intraventricular, subarachnoid, subdural, any"

RELEASED = {
    entry.name: entry
    for entry in (
        Released(
            name="ianpan",
            source="huggingface.co/ianpan/ct-head-hemorrhage-detection",
            revision="e6d89c2",
            licence="MIT",
            size="about 130 MB",
            gives="a classifier (MaxViT, 512 px, three slices) and a model over series (GRU)",
            labels=_SIX,
            trained_on="RSNA 2019: 661,118 slices of 16,910 patients",
            figures="AUROC of any on 989 held-out patients of RSNA 2019: .983 by slice, .980 by "
            "series. No log loss, calibration, thresholds or external test are stated.",
            get="kit fetch ianpan --out MODEL",
        ),
        Released(
            name="appian",
            source="kaggle.com/datasets/appian/rsna-model100 (also rsna-model110-1, -2)",
            revision="not stated",
            licence="not stated; see the dataset's page",
            size="about 110 MB a file with 50 layers",
            gives="classifiers alone (SE-ResNeXt-50 at 512 px, -101 at 480 px), 8 folds",
            labels=_SIX + " (in the file in another order)",
            trained_on="RSNA 2019, 7 of 8 parts of the patients; the file does not say which",
            figures="part of the 11th place; none of a single file is stated",
            get="download by hand, then: kit import-model fold0_ep3.pt --out MODEL",
        ),
    )
}


def list_released() -> list[dict[str, str]]:
    """The facts about each released model, as a table has them."""
    return [asdict(entry) for entry in RELEASED.values()]
