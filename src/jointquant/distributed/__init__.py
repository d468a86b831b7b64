"""The processes that share a run, what they tell each other, and who is gone."""
