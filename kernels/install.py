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
