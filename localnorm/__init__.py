"""LocalNorm: group statistics and group affines, for image classifiers that stay right under noise."""

from localnorm._version import __version__

__all__ = ["__version__"]
