"""Which server runs what was written, and how it is started; none of them is ours."""
