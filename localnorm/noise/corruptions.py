"""The fifteen corruptions of CIFAR-10-C, one function each: (images, severity, generator) -> noisy images.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, arXiv 1903.12261, at
their parameters for 32x32 colour images in [0, 1]. Only frost differs: the published one overlays six photographs, this one a drawn
texture. The results are clipped and rounded to 8 bits, as images that come from a file are.
"""

import io
import math
from collections.abc import Callable
from functools import cache, wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from localnorm.noise import named
from localnorm.noise.samples import normal, uniform


def _of_severity(*parameters) -> Callable:
    """Turns a formula of (images, parameters, generator) into one of (images, severity, generator): severity 1 takes the first of them."""

    def decorate(formula: Callable) -> Callable:
        @wraps(formula)
        def draw(images: Tensor, severity: float, generator: torch.Generator | None) -> Tensor:
            noisy = formula(images, parameters[int(severity) - 1], generator)
            return noisy.clamp(0, 1).mul_(255).round_().div_(255)

        return draw

    return decorate


@_of_severity(0.04, 0.06, 0.08, 0.09, 0.10)
def gaussian_noise(images: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    return named.gaussian(images, deviation, generator)


@_of_severity(*(photons**-0.5 for photons in (500, 250, 100, 75, 50)))
def shot_noise(images: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    return named.poisson(images, deviation, generator)


@_of_severity(0.01, 0.02, 0.03, 0.05, 0.07)
def impulse_noise(images: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
    draw = uniform(images, generator)
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, images))


@_of_severity((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
def defocus_blur(images: Tensor, parameters: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    radius, sigma = parameters
    offsets = torch.arange(-2.0, 3, device=images.device, dtype=images.dtype)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(images.dtype)
    soften = torch.exp(-(offsets[1:4] ** 2) / (2 * sigma**2))
    soften = (soften[:, None] * soften) / soften.sum() ** 2
    kernel = F.conv2d((disk / disk.sum())[None, None], soften[None, None], padding=1)  # (1, 1, 5, 5)
    channels = images.shape[1]
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel.expand(channels, 1, 5, 5), groups=channels)


@_of_severity((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
def glass_blur(images: Tensor, parameters: tuple[float, int], generator: torch.Generator | None) -> Tensor:
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


@_of_severity((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
def motion_blur(images: Tensor, parameters: tuple[int, float], generator: torch.Generator | None) -> Tensor:
    angle = 90 * uniform(images[:, 0, 0, 0], generator) - 45
    return _smear(images, *parameters, angle)


@_of_severity(1.06, 1.11, 1.16, 1.21, 1.26)
def zoom_blur(images: Tensor, end: float, generator: torch.Generator | None) -> Tensor:
    import numpy as np

    factors = np.arange(1, end, 0.01)  # its rounding decides, as published, whether the end is among them
    total = images.clone()
    for factor in factors.tolist():
        zoom = _zoom_matrix(images.shape[2], factor).to(images)
        total += zoom @ images @ zoom.T
    return total / (len(factors) + 1)


@_of_severity(
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
def snow(images: Tensor, parameters: tuple, generator: torch.Generator | None) -> Tensor:
    mean, std, factor, threshold, radius, sigma, clear = parameters
    zoom = _zoom_matrix(images.shape[2], factor).to(images)
    flakes = zoom @ (mean + std * normal(images[:, :1], generator)) @ zoom.T  # (B, 1, H, W)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp_(max=1)
    flakes = _smear(flakes, radius, sigma, -135 + 90 * uniform(images[:, 0, 0, 0], generator))
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    whitened = clear * images + (1 - clear) * torch.maximum(images, 1.5 * grey + 0.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))


@_of_severity((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
def frost(images: Tensor, parameters: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    scene, ice = parameters
    needles = 1 - (2 * _plasma(images, 1.5, generator) - 1).abs()  # ridges where the plasma crosses its middle
    return scene * images + ice * needles * images.new_tensor([0.85, 0.95, 1.0]).view(3, 1, 1)


@_of_severity((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
def fog(images: Tensor, parameters: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    thickness, decay = parameters
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * _plasma(images, decay, generator)) * brightest / (brightest + thickness)


@_of_severity(0.05, 0.1, 0.15, 0.2, 0.3)
def brightness(images: Tensor, addition: float, generator: torch.Generator | None) -> Tensor:
    value = images.amax(1, keepdim=True)  # V of HSV; with hue and saturation fixed, a colour scales with it
    brighter = (value + addition).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value), brighter)


@_of_severity(0.75, 0.5, 0.4, 0.3, 0.15)
def contrast(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * share + mean


@_of_severity((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
def elastic_transform(images: Tensor, parameters: tuple, generator: torch.Generator | None) -> Tensor:
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


@_of_severity(0.95, 0.9, 0.85, 0.75, 0.65)
def pixelate(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    box = _box_matrix(images.shape[2], share).to(images)
    return box @ images @ box.T


@_of_severity(80, 65, 58, 50, 40)
def jpeg_compression(images: Tensor, quality: int, generator: torch.Generator | None) -> Tensor:
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
        return mean + displacement * (2 * uniform(mean, generator) - 1)

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
