"""Intracranial hemorrhage on head CT: from DICOM to per-slice probabilities.

An open form of the 2nd-place solution of the RSNA Intracranial Hemorrhage Detection
competition (2019). Not a medical device.
"""

__version__ = "0.1.0"
