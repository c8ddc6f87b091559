"""Draw the noises of the catalogue: pure functions of (images, level, generator).

What is drawn depends only on (suite, name, level, chunk, seed), never on the network, its statistics or its batch size. For this, noise is
added to a data set in chunks of CHUNK images, each with the generator of `generator_for`, and batches are formed afterwards. The extrema
that the released rescaling needs are collected over the chunks, so that memory stays small.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from localnorm.noise import corruptions, named, released
from localnorm.noise.catalogue import check

__all__ = ["CHUNK", "Extrema", "apply", "extrema", "generator_for", "rescale"]

FORMULAS = {"released": released, "named": named, "corruptions": corruptions}  # a noise is the function of its name
CHUNK = 250  # images noised together; divides 10,000, and 250 images of 3x224x224 are 150 MB


def apply(
    images: Tensor,
    name: str,
    level: float,
    generator: torch.Generator | None = None,
    suite: str = "released",
) -> Tensor:
    """Noisy copies of the images.

    Args:
        images: (B, C, H, W) of float32 or float64; in [0, 1] for "named", in the caller's domain for "released". Left
            as it is.
        name: a noise of the suite, see noises.
        level: at least 0; 0 returns the images as they are.
        generator: source of the draws, on the images' device; None is torch's global one.
        suite: a key of SUITES.

    Returns:
        (B, C, H, W), same device and dtype.

    Raises:
        ValueError: unknown suite or noise, a level or pixel out of range, images that are not (B, C, H, W).
        TypeError: the images are not float32 or float64.
    """
    check(name, level, suite)
    level = float(level)
    if images.ndim != 4:
        raise ValueError(
            f"images must be (B, C, H, W), got {tuple(images.shape)}; add a batch dimension with images[None]"
        )
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"noise is drawn on float32 or float64 images, got {images.dtype}; convert with images.float()")
    if suite != "released" and images.numel():
        low, high = (extreme.item() for extreme in images.aminmax())
        if low < 0 or high > 1:
            raise ValueError(
                f"suite {suite!r} acts on pixels in [0, 1], got {low:.4g} to {high:.4g}; "
                f"divide raw pixels by 255 or undo the standardisation"
            )
    if suite == "corruptions" and (images.shape[1:] != (3, 32, 32) or level != int(level)):
        raise ValueError(
            f"the corruptions have severities 0, 1, ..., 5 for (B, 3, 32, 32) images, got {level} for "
            f"{tuple(images.shape)}; for other images take suite 'named'"
        )
    if level == 0 or not images.numel():
        return images.clone()
    noisy = getattr(FORMULAS[suite], name)(images, level, generator)
    return noisy if suite == "released" else noisy.clamp_(0, 1)


def generator_for(
    suite: str, name: str, level: float, chunk: int, seed: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of chunk number `chunk` of a set: the same for equal arguments, in any process and on any day.

    Draws differ between device types, so one comparison stays on one of them.
    """
    key = f"{suite}/{name}/{float(level)!r}/{chunk}/{seed}"
    digest = hashlib.sha256(key.encode()).digest()  # Python's own hash changes from process to process
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Extrema(NamedTuple):
    """The smallest and largest value of each channel: (C,) over a set, or (B, C) image by image."""

    low: Tensor
    high: Tensor


def extrema(images: Tensor, seen: Extrema | None = None, *, per_image: bool = False) -> Extrema:
    """Each channel's extrema over images (B, C, H, W) and those seen in earlier chunks; or over each image alone."""
    dims = (2, 3) if per_image else (0, 2, 3)
    low, high = images.amin(dims), images.amax(dims)
    if seen is None:
        return Extrema(low, high)
    return Extrema(torch.minimum(low, seen.low), torch.maximum(high, seen.high))


def rescale(images: Tensor, source: Extrema, target: Extrema) -> Tensor:
    """Map each channel's range onto another: (b - min b) / (max b - min b) (max a - min a) + min a.

    As released: `source` is the extrema over the whole noisy test set, `target` over the training set. With the noisy
    images' own extrema, `extrema(images, per_image=True)`, no image depends on the others. A channel that never varies
    has no range to map and stays as it is.

    Args:
        images: (B, C, H, W).
        source, target: Extrema of shape (C,) or (B, C), on the images' device.
    """
    source_low, source_high, target_low, target_high = (
        extreme[..., None, None].to(images.dtype) for extreme in (*source, *target)
    )
    span = source_high - source_low
    rescaled = (images - source_low) / span * (target_high - target_low) + target_low
    return torch.where(span > 0, rescaled, images)
