"""What an artifact is to predict on a fixed text, and what it would predict with each of the known faults."""
