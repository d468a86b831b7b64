"""Which server runs what was written, and how it is started; none is ours. Artifacts inside that of vLLM."""
