# %% [markdown]
# # Intracranial hemorrhage: train the classifier of one fold
#
# Indexes the competition's DICOM files, trains the slice classifier and embeds every slice. When
# its hours are over it stops with everything saved; pushed again, it goes on from its own output.

# %% install.py

# %% tags=["parameters"]
RECIPE = "blog"
FOLD = 0
HOURS = 11.0
CHANGES = {}

# %%
from kit import kernels

kernels.train_classifier(RECIPE, FOLD, HOURS, CHANGES)
