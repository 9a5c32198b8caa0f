"""What a model sees of a slice: what makes no sense is refused, JSON changes nothing."""

import json
from dataclasses import asdict

import pytest

from kit import InputError
from kit.training.config import ClassifierConfig


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale": "bits"}, "scale 'bits' is none of uint8, unit, hounsfield"),
        ({"geometry": "fold"}, "geometry 'fold' is none of"),
        ({"missing": "none"}, "missing 'none' is none of"),
        ({"neighbours": (-1, 1)}, "must hold 0"),
        ({"neighbours": (0, 1, 1)}, "no slice twice"),
        ({"neighbours": (0, 17)}, "farther than 16 slices"),
        ({"neighbours": (0, 0.5)}, "it must be whole numbers"),
        ({"mean": (0.5,)}, "one entry per channel"),
        ({"std": (1, 0, 1)}, "each std more than zero"),
        ({"windows": ((40, 80), (1, 1), (2, 3))}, "must be center and width"),
        ({"windows": (40, 80, 3)}, "windows is"),
        ({"geometry": "cut"}, "does not go with crop"),
        ({"scale": "hounsfield", "crop": False}, "neither crop nor subtract_minimum"),
    ],
)
def test_an_input_that_makes_no_sense_is_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        ClassifierConfig(**options)


def test_an_input_is_the_same_after_json():
    config = ClassifierConfig(windows=((40, 80), (0, 9), (1, 2)), neighbours=(-1, 0))
    assert ClassifierConfig(**json.loads(json.dumps(asdict(config)))) == config
