"""Synthetic predictions and labels on the disk, as tests of evaluations share them."""

import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.evaluation.cases import match_cases
from kit.evaluation.inputs import read_labels_table, read_predictions

SHORT = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))


def draw_studies(patients, seed=0, strength=2.0):
    """Labels and probabilities, (patients, 6) each; the higher the `strength`, the better."""
    random = np.random.default_rng(seed)
    labels = (random.random((patients, 6)) < 0.3).astype(int)
    labels[:, 5] = labels[:, :5].max(axis=1)
    logits = random.normal(size=(patients, 6)) + strength * (labels - 0.5)
    return labels, np.round(1 / (1 + np.exp(-logits)), 3)


def write_studies(folder, patients=60, seed=0, **extra):
    """Write `predictions.csv` (a row a study, with a classifier's) and `labels.csv`."""
    labels, probabilities = draw_studies(patients, seed)
    _, worse = draw_studies(patients, seed, strength=1.0)
    names = [f"p{number}" for number in range(patients)]
    ids = {"PatientID": names, "StudyInstanceUID": [f"1.2.{n}" for n in range(patients)]}
    classifier = [f"classifier_{label}" for label in LABELS]
    predictions = pd.DataFrame(np.hstack([probabilities, worse]), columns=[*LABELS, *classifier])
    pd.DataFrame(ids).join(predictions).to_csv(folder / "predictions.csv", index=False)
    truth = pd.DataFrame(ids).join(pd.DataFrame(labels, columns=list(LABELS))).assign(**extra)
    truth.to_csv(folder / "labels.csv", index=False)
    return folder / "predictions.csv", folder / "labels.csv"


def make_cases(folder, patients=60, seed=0, **extra):
    predictions, labels = write_studies(folder, patients, seed, **extra)
    return match_cases(read_predictions(predictions), read_labels_table(labels), "study")


def write_reads(path, patients, seed=0):
    """Write CQ500's `reads.csv`: three readers, each wrong now and then; return the majority."""
    random = np.random.default_rng(seed)
    labels, _ = draw_studies(patients, seed)
    votes = np.abs(labels[None] - (random.random((3, patients, 6)) < 0.05))
    table = {
        "name": [f"CQ500-CT-{number}" for number in range(patients)],
        "Category": random.choice(["B1", "B2"], patients),
    }
    for reader in range(3):
        for number, name in enumerate(SHORT.values()):
            table[f"R{reader + 1}:{name}"] = votes[reader, :, number]
    pd.DataFrame(table).to_csv(path, index=False)
    return (votes.sum(axis=0) >= 2).astype(int)
