"""Predictions against labels: losses of slices, intervals, curves, calibration."""
