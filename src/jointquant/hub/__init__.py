"""Models and data sets of a hub: found by id, fetched with a pinned commit, kept in the libraries' own caches."""

from jointquant.hub.location import Location, download, locate, locate_configuration

__all__ = ["Location", "download", "locate", "locate_configuration"]
