"""The noise of the experiments, as pure functions of (images, level, generator).

One registry, SUITES, holds for every noise its formula, unit, levels and function; legends, axes and sweeps read it
from there.

- "released": the noises of the original scripts, under their names, though two of them are not what the name says. They
  act on pixels in whatever domain the caller passes, which is part of the experiment: the released ResNet noises
  standardised pixels (so a masked pixel is the mean colour), VGG and Cars raw ones (0..255). The scripts then rescale
  the noisy set; see rescale.
- "named": what the names say, on pixels in [0, 1] and clipped to it, with no look at other images.
- "corruptions": the fifteen of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261) at their severities for 32x32
  colour images in [0, 1], the level being the severity; rounded to 8 bits, as images that come from a file are. Only
  frost differs: the published one overlays six photographs, this one a drawn texture.

Draws are a function of (suite, name, level, chunk, seed) alone, never of the network, the prediction mode or its batch
size: a set is noised in chunks of CHUNK images, each with its own generator_for, and batched afterwards. So that memory
stays small too, the extrema that the released rescaling needs are gathered over the chunks.
"""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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

CHUNK = 250  # images noised together; divides 10,000, and 250 images of 3x224x224 are 150 MB


@dataclass(frozen=True)
class Noise:
    """One noise: what figures say about it, the levels that are swept, and how it is drawn."""

    label: str
    formula: str  # s is the level; U, N and Poisson are drawn for each pixel and channel unless it says otherwise
    unit: str  # of the level
    levels: tuple[float, ...]  # the first, 0, is the clean image
    draw: Callable[[Tensor, float, torch.Generator | None], Tensor]  # (images, level > 0, generator) -> noisy images
    highest: float = math.inf  # largest level that has a meaning
    cars_levels: tuple[float, ...] = ()  # further levels of the released Stanford Cars script


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
    noise = check(name, level, suite)
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
    if level == 0:
        return images.clone()
    noisy = noise.draw(images, level, generator)
    return noisy if suite == "released" else noisy.clamp_(0, 1)


def check(name: str, level: float, suite: str = "released") -> Noise:
    """The noise of that name, if `level` has a meaning for it.

    Raises:
        ValueError: unknown suite or noise, or a level out of range.
    """
    noise = _find(name, suite)
    if not (isinstance(level, int | float) and 0 <= level <= noise.highest and math.isfinite(level)):
        upper = f"at most {noise.highest:g}" if math.isfinite(noise.highest) else "finite"
        raise ValueError(f"a level of {name!r} ({noise.unit}) is at least 0 and {upper}, got {level!r}")
    return noise


def noises(suite: str = "released") -> dict[str, Noise]:
    """The noises of a suite in the order of the protocol: name -> Noise.

    Raises:
        ValueError: unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown noise suite {suite!r}; choose one of {', '.join(SUITES)}")
    return SUITES[suite]


def levels(name: str, suite: str = "released", *, cars: bool = False) -> tuple[float, ...]:
    """The levels at which a noise is swept, rising from 0; with cars, those that the released Cars script adds.

    Raises:
        ValueError: unknown suite or noise.
    """
    noise = _find(name, suite)
    return tuple(sorted(noise.levels + noise.cars_levels)) if cars else noise.levels


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
    """Smallest and largest values a channel: (C,) over a set, or (B, C) image by image."""

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


def _find(name: str, suite: str) -> Noise:
    if name not in noises(suite):
        raise ValueError(f"unknown noise {name!r} in suite {suite!r}; choose one of {', '.join(SUITES[suite])}")
    return SUITES[suite][name]


def _uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _normal(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _multiply_uniform(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return _uniform(images, generator).mul_(level).add_(1).mul_(images)


def _multiply_centred_uniform(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return _uniform(images, generator).sub_(0.5).mul_(level).add_(1).mul_(images)


def _multiply_poisson(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    # All pixels have one rate, so a count is the inverse of one distribution function: twice as fast as torch.poisson.
    counts = torch.arange(math.ceil(level + 12 * level**0.5 + 12), dtype=torch.float64)
    below = torch.exp(counts * math.log(level) - level - torch.lgamma(counts + 1)).cumsum(0).to(images)  # P(n <= count)
    return torch.bucketize(_uniform(images, generator), below, right=True, out_int32=True).add_(1) * images


def _mask(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    draw = _uniform(images[:, :1], generator)  # (B, 1, H, W): one mask for all channels
    return images * (draw >= level)


def _add_uniform(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return _uniform(images, generator).mul_(level).add_(images)


def _replace_background(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return torch.where(images == 0, _uniform(images, generator).mul_(level), 1.0)


def _add_normal(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return _normal(images, generator).mul_(level).add_(images)


def _multiply_normal(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return _normal(images, generator).mul_(level).add_(1).mul_(images)


def _shot(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    photons = level**-2
    return torch.poisson(images * photons, generator=generator).div_(photons)


def _darken(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return images * (1 - level)


def _flatten(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return (images - 0.5).mul_(1 - level).add_(0.5)


# CIFAR-10-C: (images, parameters of the severity, generator) -> noisy images, clipped and rounded by _corruption


def _corruption(label: str, formula: str, draw: Callable, parameters: list) -> Noise:
    """A noise whose level 1..5 picks its parameters, named a, b, ... in the formula."""

    def at_severity(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
        noisy = draw(images, parameters[int(level) - 1], generator)
        return noisy.clamp(0, 1).mul_(255).round_().div_(255)

    return Noise(label, formula, "severity", (0, 1, 2, 3, 4, 5), at_severity, highest=5)


def _impulse(images: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
    draw = _uniform(images, generator)
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, images))


def _defocus(images: Tensor, parameters: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    radius, sigma = parameters
    offsets = torch.arange(-2.0, 3, device=images.device, dtype=images.dtype)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(images.dtype)
    soften = torch.exp(-(offsets[1:4] ** 2) / (2 * sigma**2))
    soften = (soften[:, None] * soften) / soften.sum() ** 2
    kernel = F.conv2d((disk / disk.sum())[None, None], soften[None, None], padding=1)  # (1, 1, 5, 5)
    channels = images.shape[1]
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel.expand(channels, 1, 5, 5), groups=channels)


def _glass(images: Tensor, parameters: tuple[float, int], generator: torch.Generator | None) -> Tensor:
    sigma, iterations = parameters
    batch, _, height, width = images.shape
    blur = _gaussian_matrix(height, sigma, 4.0, "nearest").to(images)
    shuffled = blur @ images @ blur.T
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    inner = (rows >= 2) & (columns >= 2)
    for _ in range(iterations):
        # The published loop runs from the last pixel to the first and copies from above or left: from pixels it has
        # not changed yet, so all are copied at once.
        up, left = torch.randint(0, 2, (2, batch, height, width), generator=generator, device=images.device) * inner
        shuffled = _gather(shuffled, rows - up, columns - left)
    return blur @ shuffled @ blur.T


def _motion(images: Tensor, parameters: tuple[int, float], generator: torch.Generator | None) -> Tensor:
    angle = 90 * _uniform(images[:, 0, 0, 0], generator) - 45
    return _smear(images, *parameters, angle)


def _zoom(images: Tensor, end: float, generator: torch.Generator | None) -> Tensor:
    import numpy as np

    factors = np.arange(1, end, 0.01)  # its rounding decides, as published, whether the end is among them
    total = images.clone()
    for factor in factors.tolist():
        zoom = _zoom_matrix(images.shape[2], factor).to(images)
        total += zoom @ images @ zoom.T
    return total / (len(factors) + 1)


def _snow(images: Tensor, parameters: tuple, generator: torch.Generator | None) -> Tensor:
    mean, std, factor, threshold, radius, sigma, clear = parameters
    zoom = _zoom_matrix(images.shape[2], factor).to(images)
    flakes = zoom @ (mean + std * _normal(images[:, :1], generator)) @ zoom.T  # (B, 1, H, W)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp_(max=1)
    flakes = _smear(flakes, radius, sigma, -135 + 90 * _uniform(images[:, 0, 0, 0], generator))
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    whitened = clear * images + (1 - clear) * torch.maximum(images, 1.5 * grey + 0.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))


def _frost(images: Tensor, parameters: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    scene, ice = parameters
    needles = 1 - (2 * _plasma(images, 1.5, generator) - 1).abs()  # ridges where the plasma crosses its middle
    return scene * images + ice * needles * images.new_tensor([0.85, 0.95, 1.0]).view(3, 1, 1)


def _fog(images: Tensor, parameters: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    thickness, decay = parameters
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * _plasma(images, decay, generator)) * brightest / (brightest + thickness)


def _brighten(images: Tensor, addition: float, generator: torch.Generator | None) -> Tensor:
    value = images.amax(1, keepdim=True)  # V of HSV; with hue and saturation fixed, a colour scales with it
    brighter = (value + addition).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value), brighter)


def _reduce_contrast(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * share + mean


def _elastic(images: Tensor, parameters: tuple, generator: torch.Generator | None) -> Tensor:
    batch, _, height, width = images.shape
    alpha, sigma, corner = (height * parameter for parameter in parameters)

    def draw(*shape: int) -> Tensor:
        return 2 * torch.rand(batch, *shape, generator=generator, device=images.device, dtype=images.dtype) - 1

    # The affine map that moves three corners of a square in the middle, each by its own draw.
    centre, reach = height // 2, height // 3
    corners = images.new_tensor([[reach, reach], [reach, -reach], [-reach, -reach]]) + centre  # (3, 2) of (x, y)
    moved = corners + corner * draw(3, 2)  # (B, 3, 2)
    inverse = torch.linalg.solve(torch.cat([moved, images.new_ones(batch, 3, 1)], dim=2), corners)  # (B, 3, 2)
    rows, columns = (torch.arange(side, device=images.device, dtype=images.dtype) for side in (height, width))
    points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H, W, 2) of (x, y)
    source = F.pad(points, (0, 1), value=1.0) @ inverse[:, None]  # (B, H, W, 2)
    grid = 2 * source / points.new_tensor([width - 1, height - 1]) - 1
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    if alpha == 0:
        return images
    blur = _gaussian_matrix(height, sigma, 3.0, "reflect").to(images)
    shift = (alpha * (blur @ draw(2, height, width) @ blur.T)).permute(0, 2, 3, 1)  # (B, H, W, 2)
    grid = (2 * (points + shift) + 1) / points.new_tensor([width, height]) - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _pixelate(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    box = _box_matrix(images.shape[2], share).to(images)
    return box @ images @ box.T


def _jpeg(images: Tensor, quality: int, generator: torch.Generator | None) -> Tensor:
    import numpy as np
    from PIL import Image

    decoded = []
    for pixels in images.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


# Resampling along one axis is a matrix: M @ images @ M.T resamples both


@cache
def _gaussian_matrix(size: int, sigma: float, truncate: float, mode: str) -> Tensor:
    from scipy.ndimage import gaussian_filter1d

    return torch.from_numpy(gaussian_filter1d(torch.eye(size).numpy(), sigma, axis=0, truncate=truncate, mode=mode))


@cache
def _zoom_matrix(size: int, factor: float) -> Tensor:
    """Cut out the middle and enlarge it linearly to the old size."""
    cut = math.ceil(size / factor)
    top = (size - cut) // 2
    enlarged = F.interpolate(
        torch.eye(size)[None, top : top + cut].mT, round(cut * factor), mode="linear", align_corners=True
    )
    trim = (enlarged.shape[2] - size) // 2
    return enlarged[0, :, trim : trim + size].T


@cache
def _box_matrix(size: int, share: float) -> Tensor:
    """Shrink with Pillow's box filter and enlarge again."""
    import numpy as np
    from PIL import Image

    small = Image.fromarray(torch.eye(size).numpy()).resize((size, int(size * share)), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small.resize((size, size), Image.Resampling.BOX)))


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images[b, c, rows[b, i, j], columns[b, i, j]] for all channels; rows and columns broadcast to (B, H, W)."""
    index = (rows * images.shape[3] + columns).flatten(1)[:, None]  # (B, 1, H * W)
    return images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)


def _smear(images: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """ImageMagick's motion blur: half a Gaussian of 2 radius + 1 taps along each image's angle (B,) in degrees."""
    _, _, height, width = images.shape
    taps = torch.arange(2 * radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    down, right = (
        torch.ceil(taps * part[:, None] - 0.5).long() for part in (angle.deg2rad().sin(), angle.deg2rad().cos())
    )
    rows = (torch.arange(height, device=images.device) + down[..., None]).clamp_(0, height - 1)  # (B, taps, H)
    columns = (torch.arange(width, device=images.device) + right[..., None]).clamp_(0, width - 1)  # (B, taps, W)
    smeared = torch.zeros_like(images)
    for tap, weight in enumerate(kernel):
        smeared += weight * _gather(images, rows[:, tap, :, None], columns[:, tap, None, :])
    return smeared


def _plasma(images: Tensor, decay: float, generator: torch.Generator | None) -> Tensor:
    """A fractal by midpoint displacement (diamond-square) on a torus, (B, 1, H, W) from 0 to 1.

    The displacement falls by decay^2 from one scale to the next.
    """
    batch, _, size, _ = images.shape
    plasma = images.new_zeros(batch, size, size)
    displacement = 1.0

    def displaced(*neighbours: Tensor) -> Tensor:
        mean = torch.stack(neighbours).mean(0)
        return mean + displacement * (2 * _uniform(mean, generator) - 1)

    step = size
    while step > 1:
        half = step // 2
        corners = plasma[:, ::step, ::step]
        below = corners.roll(-1, 1)
        centres = displaced(corners, below, corners.roll(-1, 2), below.roll(-1, 2))
        plasma[:, half::step, half::step] = centres
        plasma[:, ::step, half::step] = displaced(centres, centres.roll(1, 1), corners, corners.roll(-1, 2))
        plasma[:, half::step, ::step] = displaced(centres, centres.roll(1, 2), corners, corners.roll(-1, 1))
        step = half
        displacement /= decay**2
    plasma -= plasma.amin((1, 2), keepdim=True)
    return (plasma / plasma.amax((1, 2), keepdim=True))[:, None]


_UNIFORM_LEVELS = (0, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 2.5, 5)
_UNIFORM_CARS_LEVELS = (3, 3.5, 4, 4.5)
_MASK_LEVELS = tuple(i / 20 for i in range(20))
_TENTHS = tuple(i / 10 for i in range(10))

SUITES: dict[str, dict[str, Noise]] = {
    "released": {
        "gaussian_pos": Noise(
            label="Multiplicative uniform, positive (released as Gaussian)",
            formula="x (1 + s U(0, 1))",
            unit="width of the factor's range",
            levels=_UNIFORM_LEVELS,
            draw=_multiply_uniform,
            cars_levels=_UNIFORM_CARS_LEVELS,
        ),
        "gaussian_neg": Noise(
            label="Multiplicative uniform, centred (released as Gaussian)",
            formula="x (1 + s U(-0.5, 0.5))",
            unit="width of the factor's range",
            levels=_UNIFORM_LEVELS,
            draw=_multiply_centred_uniform,
            cars_levels=_UNIFORM_CARS_LEVELS,
        ),
        "poisson": Noise(
            label="Multiplicative Poisson",
            formula="x (1 + n), n ~ Poisson(s)",
            unit="mean of n",
            levels=(0, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1),
            draw=_multiply_poisson,
        ),
        "bernoulli": Noise(
            label="Bernoulli mask",
            formula="x m, m = 0 with probability s, one mask for all channels",
            unit="probability of a masked pixel",
            levels=_MASK_LEVELS,
            draw=_mask,
            highest=1,
        ),
        "mnist_foreground": Noise(
            label="Foreground (MNIST)",
            formula="x + s U(0, 1)",
            unit="largest addition",
            levels=tuple(i / 10 for i in range(51)),
            draw=_add_uniform,
        ),
        "mnist_background": Noise(
            label="Background (MNIST)",
            formula="s U(0, 1) where x = 0, else 1",
            unit="largest background value",
            levels=tuple(i / 10 for i in range(21)),
            draw=_replace_background,
        ),
    },
    "named": {
        "gaussian": Noise(
            label="Additive Gaussian",
            formula="x + s N(0, 1)",
            unit="standard deviation",
            levels=(0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
            draw=_add_normal,
        ),
        "gaussian_multiplicative": Noise(
            label="Multiplicative Gaussian",
            formula="x (1 + s N(0, 1))",
            unit="standard deviation of the factor",
            levels=(0, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5),
            draw=_multiply_normal,
        ),
        "poisson": Noise(
            label="Additive Poisson (shot)",
            formula="Poisson(x q) / q, q = 1 / s^2",
            unit="standard deviation of a white pixel",
            levels=(0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1),
            draw=_shot,
        ),
        "bernoulli": Noise(
            label="Bernoulli mask",
            formula="x m, m = 0 with probability s, one mask for all channels",
            unit="probability of a masked pixel",
            levels=(*_TENTHS, 0.95),
            draw=_mask,
            highest=1,
        ),
        "brightness": Noise(
            label="Brightness",
            formula="x (1 - s)",
            unit="share of the light taken away",
            levels=(*_TENTHS, 0.95),
            draw=_darken,
            highest=1,
        ),
        "contrast": Noise(
            label="Contrast",
            formula="(x - 0.5)(1 - s) + 0.5",
            unit="share of the contrast taken away",
            levels=(*_TENTHS, 0.95),
            draw=_flatten,
            highest=1,
        ),
    },
    "corruptions": {
        "gaussian_noise": _corruption(
            "Gaussian noise",
            "x + a N(0, 1)",
            _add_normal,
            [0.04, 0.06, 0.08, 0.09, 0.10],
        ),
        "shot_noise": _corruption(
            "Shot noise",
            "Poisson(x / a^2) a^2",
            _shot,
            [photons**-0.5 for photons in (500, 250, 100, 75, 50)],
        ),
        "impulse_noise": _corruption(
            "Impulse noise",
            "0 or 1 with probability a",
            _impulse,
            [0.01, 0.02, 0.03, 0.05, 0.07],
        ),
        "defocus_blur": _corruption(
            "Defocus blur",
            "disk of radius a, softened by a Gaussian of b",
            _defocus,
            [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        ),
        "glass_blur": _corruption(
            "Glass blur",
            "Gaussian of a, pixels taken from a neighbour b times, Gaussian of a",
            _glass,
            [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)],
        ),
        "motion_blur": _corruption(
            "Motion blur",
            "half a Gaussian of b over 2 a + 1 pixels, direction U(-45, 45) degrees",
            _motion,
            [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        ),
        "zoom_blur": _corruption(
            "Zoom blur",
            "mean of x and its enlargements by 1, 1.01, 1.02, ... up to a",
            _zoom,
            [1.06, 1.11, 1.16, 1.21, 1.26],
        ),
        "snow": _corruption(
            "Snow",
            "x whitened by 1 - g, plus flakes N(a, b) enlarged by c, above d, smeared by (e, f)",
            _snow,
            [
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ],
        ),
        "frost": _corruption(
            "Frost (drawn)",
            "a x + b ice",
            _frost,
            [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        ),
        "fog": _corruption(
            "Fog",
            "(x + a plasma(b)) max x / (max x + a)",
            _fog,
            [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        ),
        "brightness": _corruption(
            "Brightness",
            "a added to V of HSV",
            _brighten,
            [0.05, 0.1, 0.15, 0.2, 0.3],
        ),
        "contrast": _corruption(
            "Contrast",
            "(x - mean) a + mean",
            _reduce_contrast,
            [0.75, 0.5, 0.4, 0.3, 0.15],
        ),
        "elastic_transform": _corruption(
            "Elastic transform",
            "corners moved by up to c, then pixels by a Gaussian(b) field times a, in sides",
            _elastic,
            [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        ),
        "pixelate": _corruption(
            "Pixelate",
            "shrunk to the share a and back",
            _pixelate,
            [0.95, 0.9, 0.85, 0.75, 0.65],
        ),
        "jpeg_compression": _corruption(
            "JPEG compression",
            "quality a",
            _jpeg,
            [80, 65, 58, 50, 40],
        ),
    },
}
