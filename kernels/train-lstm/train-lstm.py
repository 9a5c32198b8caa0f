# %% [markdown]
# # Intracranial hemorrhage: train the LSTM of one fold
#
# On the embeddings that `train-classifier` left. When its hours are over it stops with everything
# saved; pushed again, it goes on from its own output. At its end it scores the fold.

# %% install.py

# %% tags=["parameters"]
FOLD = 0
HOURS = 11.0

# %%
from kit import kernels

kernels.train_lstm(FOLD, HOURS)
