"""The command line: one file a verb; each verb calls one function of the public API."""
