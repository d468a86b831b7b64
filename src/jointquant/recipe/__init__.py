"""Every setting, frozen and checked; presets, sizes, and what a training is made of."""
