"""To look rather than to ship: recipes compared, activations measured, a model beside its quantized twin."""
