# %% [markdown]
# # Intracranial hemorrhage: predict the test part
#
# From the competition's DICOM files to `submission.csv`, by trained weights, on every GPU and
# without internet. Attach the competition, the wheels and the weights. Not a medical device.

# %%
import os
import subprocess
import sys
from pathlib import Path

ROOT, MARKER = Path(os.environ.get("KIT_INPUT", "/kaggle/input")), "kit-requirements.txt"
found = [*ROOT.glob(f"*/{MARKER}"), *ROOT.glob(f"datasets/*/*/{MARKER}")]
if not found:
    sys.exit(f"No wheel of kit is attached: add the dataset with {MARKER} to the inputs.")
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
installed = subprocess.run([*pip, "--find-links", found[0].parent, "-r", found[0]], check=True)

# %%
from kit import kernels

prediction = kernels.prepare_prediction()

# %%
kernels.predict(prediction)

# %%
kernels.tabulate_labels(prediction)

# %%
kernels.show_slices(prediction)
