"""The HTML pages: of a run, of predictions for a folder of scans, and of explanations."""
