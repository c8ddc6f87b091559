"""What each noise is, without torch: its label, formula, unit and levels.

One record per noise; legends, axes and answers read it from here. The function that draws it has its name, in the module of its suite.
"""

import math
from dataclasses import dataclass
from numbers import Real

__all__ = ["SUITES", "Noise", "check", "levels", "noises"]


@dataclass(frozen=True)
class Noise:
    """One noise: what figures say about it, and the levels at which it is drawn.

    Args:
        suite: a key of SUITES.
        name: of the noise, and of its function in the module of the suite.
        label: what legends call it.
        formula: s is the level; U, N and Poisson are drawn for each pixel and channel unless it says otherwise. Those of the corruptions
            have parameters a, b, ... that the level picks.
        unit: of the level.
        levels: rising; the first, 0, is the clean image.
        highest: the largest level that has a meaning.
        cars_levels: further levels of the released Stanford Cars script.
    """

    suite: str
    name: str
    label: str
    formula: str
    unit: str
    levels: tuple[float, ...]
    highest: float = math.inf
    cars_levels: tuple[float, ...] = ()


def noises(suite: str = "released") -> dict[str, Noise]:
    """The noises of a suite in the order of the protocol: name -> Noise.

    Raises:
        ValueError: unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown noise suite {suite!r}; choose one of {', '.join(SUITES)}")
    return SUITES[suite]


def levels(name: str, suite: str = "released", *, cars: bool = False) -> tuple[float, ...]:
    """The levels at which a noise is drawn, rising from 0; with `cars`, also those that the released Cars script adds.

    Raises:
        ValueError: unknown suite or noise.
    """
    noise = _find(name, suite)
    return tuple(sorted(noise.levels + noise.cars_levels)) if cars else noise.levels


def check(name: str, level: float, suite: str = "released") -> Noise:
    """The noise of that name, if `level` has a meaning for it.

    Raises:
        ValueError: unknown suite or noise, or a level out of range.
    """
    noise = _find(name, suite)
    if not (isinstance(level, Real) and 0 <= level <= noise.highest and math.isfinite(level)):
        upper = f"at most {noise.highest:g}" if math.isfinite(noise.highest) else "finite"
        raise ValueError(f"a level of {name!r} ({noise.unit}) is at least 0 and {upper}, got {level!r}")
    return noise


def _find(name: str, suite: str) -> Noise:
    if name not in noises(suite):
        raise ValueError(f"unknown noise {name!r} in suite {suite!r}; choose one of {', '.join(SUITES[suite])}")
    return SUITES[suite][name]


_UNIFORM_LEVELS = (0, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 2.5, 5)
_UNIFORM_CARS_LEVELS = (3, 3.5, 4, 4.5)
_TENTHS = tuple(i / 10 for i in range(10))


def _released(name: str, label: str, formula: str, unit: str, levels: tuple[float, ...], **options) -> Noise:
    return Noise("released", name, label, formula, unit, levels, **options)


def _named(name: str, label: str, formula: str, unit: str, levels: tuple[float, ...], **options) -> Noise:
    return Noise("named", name, label, formula, unit, levels, **options)


def _corruption(name: str, label: str, formula: str) -> Noise:
    return Noise("corruptions", name, label, formula, "severity", (0, 1, 2, 3, 4, 5), highest=5)


_NOISES = (
    _released(
        "gaussian_pos",
        "Multiplicative uniform, positive (released as Gaussian)",
        "x (1 + s U(0, 1))",
        "width of the factor's range",
        _UNIFORM_LEVELS,
        cars_levels=_UNIFORM_CARS_LEVELS,
    ),
    _released(
        "gaussian_neg",
        "Multiplicative uniform, centred (released as Gaussian)",
        "x (1 + s U(-0.5, 0.5))",
        "width of the factor's range",
        _UNIFORM_LEVELS,
        cars_levels=_UNIFORM_CARS_LEVELS,
    ),
    _released(
        "poisson",
        "Multiplicative Poisson",
        "x (1 + n), n ~ Poisson(s)",
        "mean of n",
        (0, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1),
    ),
    _released(
        "bernoulli",
        "Bernoulli mask",
        "x m, m = 0 with probability s, one mask for all channels",
        "probability of a masked pixel",
        tuple(i / 20 for i in range(20)),
        highest=1,
    ),
    _released(
        "mnist_foreground",
        "Foreground (MNIST)",
        "x + s U(0, 1)",
        "largest addition",
        tuple(i / 10 for i in range(51)),
    ),
    _released(
        "mnist_background",
        "Background (MNIST)",
        "s U(0, 1) where x = 0, else 1",
        "largest background value",
        tuple(i / 10 for i in range(21)),
    ),
    _named(
        "gaussian",
        "Additive Gaussian",
        "x + s N(0, 1)",
        "standard deviation",
        (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    ),
    _named(
        "gaussian_multiplicative",
        "Multiplicative Gaussian",
        "x (1 + s N(0, 1))",
        "standard deviation of the factor",
        (0, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5),
    ),
    _named(
        "poisson",
        "Additive Poisson (shot)",
        "Poisson(x q) / q, q = 1 / s^2",
        "standard deviation of a white pixel",
        (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1),
    ),
    _named(
        "bernoulli",
        "Bernoulli mask",
        "x m, m = 0 with probability s, one mask for all channels",
        "probability of a masked pixel",
        (*_TENTHS, 0.95),
        highest=1,
    ),
    _named("brightness", "Brightness", "x (1 - s)", "share of the light taken away", (*_TENTHS, 0.95), highest=1),
    _named(
        "contrast",
        "Contrast",
        "(x - 0.5)(1 - s) + 0.5",
        "share of the contrast taken away",
        (*_TENTHS, 0.95),
        highest=1,
    ),
    # for choices on validation images, so that none of the noises above is spent on them
    _named("gamma", "Gamma (darker)", "x^(1 + s)", "addition to the exponent", (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)),
    _named("haze", "Haze", "x (1 - s) + s", "share of white", (*_TENTHS, 0.95), highest=1),
    _corruption("gaussian_noise", "Gaussian noise", "x + a N(0, 1)"),
    _corruption("shot_noise", "Shot noise", "Poisson(x / a^2) a^2"),
    _corruption("impulse_noise", "Impulse noise", "0 or 1 with probability a"),
    _corruption("defocus_blur", "Defocus blur", "disk of radius a, softened by a Gaussian of b"),
    _corruption("glass_blur", "Glass blur", "Gaussian of a, pixels taken from a neighbour b times, Gaussian of a"),
    _corruption("motion_blur", "Motion blur", "half a Gaussian of b over 2 a + 1 pixels, direction U(-45, 45) degrees"),
    _corruption("zoom_blur", "Zoom blur", "mean of x and its enlargements by 1, 1.01, 1.02, ... up to a"),
    _corruption("snow", "Snow", "x whitened by 1 - g, plus flakes N(a, b) enlarged by c, above d, smeared by (e, f)"),
    _corruption("frost", "Frost (drawn)", "a x + b ice"),
    _corruption("fog", "Fog", "(x + a plasma(b)) max x / (max x + a)"),
    _corruption("brightness", "Brightness", "a added to V of HSV"),
    _corruption("contrast", "Contrast", "(x - mean) a + mean"),
    _corruption(
        "elastic_transform",
        "Elastic transform",
        "corners moved by up to c, then pixels by a Gaussian(b) field times a, in sides",
    ),
    _corruption("pixelate", "Pixelate", "shrunk to the share a and back"),
    _corruption("jpeg_compression", "JPEG compression", "quality a"),
)

# suite -> its noises by name, in the order of the protocol
SUITES: dict[str, dict[str, Noise]] = {
    suite: {noise.name: noise for noise in _NOISES if noise.suite == suite}
    for suite in dict.fromkeys(noise.suite for noise in _NOISES)
}
