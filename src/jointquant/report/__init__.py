"""The reports: a page of tables and plots made of results; no model is known here."""
