"""How the product of a quantized linear is computed: one interface, a reference that all others must match.

``selection.KERNELS`` is the table. A kernel says for a problem (formats, shape, dtype, device) why it does not do it,
or nothing; the first that does it is taken, and the reference does everything.
"""
