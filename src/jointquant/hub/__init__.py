"""Models and data sets of a hub: found by id, fetched with a pinned commit, kept in the libraries' own caches."""

from jointquant.hub.huggingface import fetch_beside
from jointquant.hub.location import Location, download, locate, locate_configuration
from jointquant.hub.upload import Pushed, push

__all__ = ["Location", "Pushed", "download", "fetch_beside", "locate", "locate_configuration", "push"]
