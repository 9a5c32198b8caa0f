"""A trained run on disk: its directory, scores, predictions, state and export."""
