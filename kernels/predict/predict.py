# %% [markdown]
# # Intracranial hemorrhage: predict the test part
#
# From the competition's DICOM files to `submission.csv`, by trained weights, on every GPU and
# without internet. Attach the competition, the wheels and the weights. When its hours are over it
# stops; pushed again, it goes on from its own output. Not a medical device.

# %% install.py

# %% tags=["parameters"]
from kit import kernels

HOURS = 11.0

prediction = kernels.prepare_prediction()

# %%
kernels.predict(prediction, HOURS)

# %%
kernels.tabulate_labels(prediction)

# %%
kernels.show_slices(prediction)
