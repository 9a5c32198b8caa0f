# %% [markdown]
# # Intracranial hemorrhage: from DICOM files to a submission, in one notebook
#
# Trains both stages on two GPUs and predicts the test part, without internet. First of all it
# writes a valid submission of the training prior. When its hours are over it stops with everything
# saved; pushed again, it goes on from its own output. Not a medical device.

# %% tags=["parameters"]
import os
import subprocess
import sys
from pathlib import Path

KIT = ""  # the version that this notebook was built with
ROOT, MARKER = Path(os.environ.get("KIT_INPUT", "/kaggle/input")), "kit-requirements.txt"
found = [*ROOT.glob(f"*/{MARKER}"), *ROOT.glob(f"datasets/*/*/{MARKER}")]
if not found:
    sys.exit(f"No wheel of kit is attached: add the dataset with {MARKER} to the inputs.")
if KIT and f"kit=={KIT}" not in found[0].read_text().split():
    sys.exit(f"The wheel in {found[0].parent} is not of kit {KIT}: build and push both again.")
pip = [sys.executable, "-m", "pip", "install", "--force-reinstall", "--no-deps"]
wheels = ["--no-index", "--find-links", found[0].parent]
installed = subprocess.run([*pip, *wheels, "-r", found[0]], capture_output=True, text=True)
if installed.returncode:
    sys.exit(f"The wheels in {found[0].parent} cannot be installed: {installed.stderr[-300:]}")

# %% tags=["parameters"]
RECIPE = "tonight"
HOURS = 11.0
CHANGES = {}

# %%
from kit import kernels

prediction = kernels.tonight(RECIPE, HOURS, CHANGES)

# %%
kernels.tabulate_labels(prediction)

# %%
kernels.show_slices(prediction)
