"""LocalNorm: group statistics and group affines, for image classifiers that stay right under noise."""

from localnorm._version import __version__
from localnorm.convert import convert_to_batchnorm, convert_to_localnorm, estimate_statistics
from localnorm.layers import LocalNorm1d, LocalNorm2d, LocalNorm3d
from localnorm.predict import majority_vote, predict, use_mode

__all__ = [
    "LocalNorm1d",
    "LocalNorm2d",
    "LocalNorm3d",
    "__version__",
    "convert_to_batchnorm",
    "convert_to_localnorm",
    "estimate_statistics",
    "majority_vote",
    "predict",
    "use_mode",
]
