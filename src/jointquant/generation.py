"""``generate_text`` under the import path of earlier versions; it is at home in ``jointquant.runtime.generation``."""

from jointquant.runtime.generation import Generation, generate_text

__all__ = ["Generation", "generate_text"]
