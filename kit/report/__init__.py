"""The HTML pages: a run's report, the page of one's own scans, explanations."""
