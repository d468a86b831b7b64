"""A run that can be resumed: its model, its journal, its identity, and where it works."""
