"""Standardise and augment a whole batch on the device that holds it.

The data set stays on the device as uint8 and is standardised first, so that what a shift, a rotation or a zoom uncovers
can be filled with zero, which is then the mean colour, as in the released experiments. Every image has its own draw; a
batch costs a handful of kernels, no loop and no worker process. Shifts and flips move whole pixels by index and keep
every value exact; only rotation and zoom interpolate.
"""

from collections.abc import Sequence
from math import radians

import torch
import torch.nn.functional as F
from torch import Tensor

from localnorm.settings import check_augmentation

__all__ = ["augment", "standardise"]


def standardise(
    images: Tensor, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor
) -> Tensor:
    """(images - mean) / std in float32.

    Args:
        images: (B, C, H, W), uint8 or floating, in units of 0..255; left as it is.
        mean, std: one value, or one for each of the C channels, in units of 0..255.

    Returns:
        (B, C, H, W), float32, on the images' device.

    Raises:
        ValueError: the images are not (B, C, H, W), or mean or std has neither 1 nor C values.
    """
    _check_batch(images)
    mean, std = (_per_channel(name, values, images) for name, values in (("mean", mean), ("std", std)))
    return images.to(torch.float32, copy=True).sub_(mean).div_(std)


def augment(
    images: Tensor,
    *,
    flip: bool = False,
    shift: float = 0.0,
    rotation: float = 0.0,
    zoom: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Transform each image by its own random draw: rotation and zoom about the centre, then flip and shift.

    Args:
        images: (B, C, H, W), standardised floating point; left as it is.
        flip: mirror left and right with probability 1/2.
        shift: largest move along each axis as a fraction of that side, at most 1; drawn uniformly in whole pixels from
            -round(shift * side) to round(shift * side), both included.
        rotation: largest angle in degrees, at most 180; drawn uniformly from -rotation to rotation.
        zoom: the scale of the image is drawn uniformly from 1 - zoom to 1 + zoom, below 1; bilinear, like the rotation.
        generator: source of the draws, on the images' device.

    Returns:
        (B, C, H, W), new, contiguous, same device and dtype; what comes from outside an image is zero, the mean colour.

    Raises:
        TypeError: the images are not floating point.
        ValueError: the images are not (B, C, H, W), or a parameter is outside its range.

    Example:
        >>> import torch
        >>> images = torch.randn(128, 3, 32, 32)
        >>> augment(images, flip=True, shift=0.125, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([128, 3, 32, 32])
    """
    _check_batch(images)
    if not images.is_floating_point():
        raise TypeError(f"augment needs standardised floating-point images, got {images.dtype}; call standardise first")
    check_augmentation(flip=flip, shift=shift, rotation=rotation, zoom=zoom)

    if rotation or zoom:
        images = _rotate_and_zoom(images, rotation, zoom, generator)
    if flip or shift:
        images = _flip_and_shift(images, flip, shift, generator)
    return images.contiguous()


def _check_batch(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"images must be (B, C, H, W), got {tuple(images.shape)}; add a batch dimension with images[None]"
        )


def _per_channel(name: str, values: float | Sequence[float] | Tensor, images: Tensor) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float32, device=images.device)
    if values.numel() not in (1, images.shape[1]):
        raise ValueError(
            f"{name} needs 1 value or one a channel, got {values.numel()} for images of {images.shape[1]} channels; "
            f"compute it over the training images, channel by channel"
        )
    return values.reshape(-1, 1, 1)  # (C or 1, 1, 1)


def _rotate_and_zoom(images: Tensor, rotation: float, zoom: float, generator: torch.Generator | None) -> Tensor:
    batch, _, height, width = images.shape
    angle, scale = 2 * torch.rand(2, batch, generator=generator, device=images.device, dtype=images.dtype) - 1  # (B,)
    angle = angle * radians(rotation)
    scale = 1 + scale * zoom
    # affine_grid works in units of half a side: the aspect ratio keeps a turn of an oblong image a turn.
    aspect = height / width
    cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
    theta = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _flip_and_shift(images: Tensor, flip: bool, shift: float, generator: torch.Generator | None) -> Tensor:
    batch, channels, height, width = images.shape
    down, right = round(shift * height), round(shift * width)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (batch, 1), generator=generator, device=images.device)

    rows = torch.arange(height, device=images.device) + draw(0, 2 * down)  # (B, H), within the padded image
    columns = torch.arange(width, device=images.device) + draw(0, 2 * right)  # (B, W)
    if flip:
        columns = torch.where(draw(0, 1).bool(), width + 2 * right - 1 - columns, columns)
    padded = F.pad(images, (right, right, down, down))  # (B, C, H + 2 down, W + 2 right)
    index = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W)
    index = index.view(batch, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view_as(images)
