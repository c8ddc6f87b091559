"""The noise of the experiments. The catalogue says what each noise is; drawing one loads torch when it is asked for.

Three suites:

- "released": the noises of the original scripts, under their names, though two of them are not what the name says. They
  act on pixels in whatever domain the caller passes, which is part of the experiment: the released ResNet noises
  standardised pixels (so a masked pixel is the mean colour), VGG and Cars raw ones (0..255). The scripts then rescale
  the noisy set; see `rescale`.
- "named": what the names say, on pixels in [0, 1] and clipped to it, with no look at other images.
- "corruptions": the fifteen of CIFAR-10-C for 32x32 colour images in [0, 1]; the level is their severity.

To add a noise: one record in `localnorm.noise.catalogue` and one function of its name in the module of its suite.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from localnorm.noise.catalogue import SUITES, Noise, check, levels, noises

if TYPE_CHECKING:
    from localnorm.noise.draw import CHUNK, Extrema, apply, extrema, generator_for, rescale

__all__ = [
    "CHUNK",
    "SUITES",
    "Extrema",
    "Noise",
    "apply",
    "check",
    "extrema",
    "generator_for",
    "levels",
    "noises",
    "rescale",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'localnorm.noise' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module("localnorm.noise.draw"), name)
    globals()[name] = value
    return value
