"""Hidden states of the calibration windows on their way through the layers, and who watches them pass."""
