"""A small trained model with its text, so that everything in this package can be tried without a download."""
