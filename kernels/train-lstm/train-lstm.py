# %% [markdown]
# # Intracranial hemorrhage: train the LSTM of one fold
#
# On the embeddings that `train-classifier` left. When its hours are over it stops with everything
# saved; pushed again, it goes on from its own output. At its end it scores the fold.

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

# %% tags=["parameters"]
FOLD = 0
HOURS = 11.0

# %%
from kit import kernels

kernels.train_lstm(FOLD, HOURS)
