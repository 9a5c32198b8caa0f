# %% [markdown]
# # Intracranial hemorrhage: from DICOM files to a submission, in one notebook
#
# Trains both stages on two GPUs and predicts the test part, without internet. First of all it
# writes a valid submission of the training prior. When its hours are over it stops with everything
# saved; pushed again, it goes on from its own output. Not a medical device.

# %% install.py

# %% tags=["parameters"]
RECIPE = "tonight"
HOURS = 11.0
CHANGES = {"classifier.image_size": "auto"}

# %%
from kit import kernels

prediction = kernels.tonight(RECIPE, HOURS, CHANGES)

# %%
kernels.tabulate_labels(prediction)

# %%
kernels.show_slices(prediction)
