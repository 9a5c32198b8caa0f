"""Write the API reference from the docstrings: `python docs/reference.py [OUT]`.

The modules that people import, in the order of the data; the front page says where to start.
"""

import sys
from importlib import import_module
from pathlib import Path

import pdoc

MODULES = (
    "kit", "kit.competition", "kit.dicom", "kit.slices", "kit.slices.series", "kit.windowing",
    "kit.images", "kit.classifier", "kit.embeddings", "kit.sequences", "kit.lstm", "kit.ensemble",
    "kit.submission", "kit.training.loop", "kit.training.config", "kit.recipes", "kit.pipeline",
    "kit.runs.prediction", "kit.runs.evaluation", "kit.evaluation.measures",
    "kit.models.importing", "kit.models.kinds", "kit.cli.commands",
)  # fmt: skip


def main() -> None:
    """Write the pages and say where."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "api")
    for module in map(import_module, MODULES):
        for name in getattr(module, "__all__", ()):  # pdoc looks for what is loaded late in files
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="markdown")
    pdoc.pdoc(*MODULES, output_directory=out)
    print(out / "index.html")


if __name__ == "__main__":
    main()
