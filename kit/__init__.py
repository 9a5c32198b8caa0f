"""Intracranial hemorrhage on head CT: from DICOM to per-slice probabilities.

An open form of the 2nd-place solution of the RSNA Intracranial Hemorrhage Detection
competition (2019). Not a medical device.
"""

import os

# Read by torch when it first allocates: blocks of 2 MB and more in huge pages, where the system
# has them for who asks. What they gain is told in `cpu.keep_memory`.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
