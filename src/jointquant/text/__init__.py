"""Text for calibration and evaluation: where it comes from, and how it is cut into windows."""
