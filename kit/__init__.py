"""Intracranial hemorrhage on head CT: from DICOM to per-slice probabilities.

An open implementation of the 2nd-place solution of the RSNA Intracranial Hemorrhage Detection
competition (2019). Not a medical device.

```python
import kit

model = kit.load_model("MODEL")  # a run, or what `kit fetch` wrote; stays in memory
studies = model.predict("SCANS", by="study")  # a folder, a zip, NIfTI, files, or an array in HU
```

| to | start at |
|---|---|
| predict scans | `load_model`, `predict`, `kit.runs.prediction.TrainedModel`, `read_table` |
| know what a folder holds | `index_slices`, `kit.slices.series.describe_series` |
| read and show one slice | `read_hounsfield`, `window_image` |
| evaluate predictions | `kit.runs.evaluation.evaluate_files`, `kit.evaluation.measures` |
| train, stage by stage | `kit.pipeline`, `kit.recipes`, `kit.classifier`, `kit.lstm` |
| bring in another's model | `kit.models.importing.import_model`, `kit.models.kinds` |

Every error that is raised on purpose is a `KitError`; its text is one sentence for the user. The
command line is in `kit.cli.commands`; every command has a `--help`.
"""

import re
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

__path__.append(f"{__path__[0]}/training/apex")  # where `kit.amp` is found

__all__ = [
    "InputError",
    "KitError",
    "index_slices",
    "load_model",
    "predict",
    "read_hounsfield",
    "read_table",
    "window_image",
]

_HOMES = {
    "index_slices": "kit.slices",
    "load_model": "kit.runs.prediction",
    "predict": "kit.runs.prediction",
    "read_hounsfield": "kit.dicom",
    "read_table": "kit.runs.tables",
    "window_image": "kit.windowing",
}


class KitError(Exception):
    """The base of every error that kit raises on purpose; its text is for the user."""

    exit_code = 1  # of the command line


class InputError(KitError, ValueError):
    """A file, a folder or a value that was given cannot be used; the text says why."""


# Control characters, C1 too, which a terminal obeys; halves of characters, which no file takes; and
# those that end a line or turn its direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str, keep: str = "") -> str:
    """The text with its control characters, but those to `keep`, as in source code: `\\x1b`."""
    return _CONTROLS.sub(
        lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text
    )


def __getattr__(name: str) -> Any:
    """Import what most people want when it is first used: `import kit` itself loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
