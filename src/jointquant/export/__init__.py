"""Artifacts in the formats of other runtimes: each export holds all of the model, or is refused."""

from jointquant.export.export import EXPORTS, ExportResult, export_artifact

__all__ = ["EXPORTS", "ExportResult", "export_artifact"]
