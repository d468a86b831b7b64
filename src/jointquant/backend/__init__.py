"""Devices and what they lack, products with weights, memory, work behind the computation's back."""
