"""``generate_text`` under the name by which programs know it; it is at home in ``jointquant.runtime.generation``."""

from jointquant.runtime.generation import Generation, generate_text

__all__ = ["Generation", "generate_text"]
