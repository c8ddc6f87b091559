"""One picture in, pixels out: which files are images that can be read here, and how one becomes a square of pixels."""

import importlib.util
import io
from functools import cache
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

__all__ = [
    "BOX_MARGIN",
    "FITS",
    "IMAGE_SUFFIXES",
    "Picture",
    "check_image",
    "is_oblong",
    "open_image",
    "refusals",
    "to_pixels",
    "why_unread",
]

Picture = bytes | np.ndarray  # an encoded image, or uint8 pixels (H, W) or (H, W, C)

FITS = ("squash", "crop")
BOX_MARGIN = 16  # pixels around a car's box, as released
MAX_PIXELS = 89_478_485  # of one image: 268 MB as RGB; Pillow warns from here on and refuses only twice as many
MAX_SIDE = 65_535  # pixels: JPEG's own limit; a header of a few bytes may claim millions of rows, slow to decode
MAX_NAMED = 200  # images that cannot be used, in one message
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow hands none of these to another program
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
OPTIONAL = {  # suffix -> what reads it
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
}
NEEDED = {
    "AVIF": "AVIF, which needs a newer Pillow: pip install --upgrade pillow",
    "HEIF": "HEIC, which needs the package pillow-heif: pip install pillow-heif",
}


@cache
def _optional_formats() -> tuple[str, ...]:
    """Those of NEEDED that this environment reads; whoever wants HEIC installs its package."""
    found = ["AVIF"] if features.check("avif") else []
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        found.append("HEIF")
    return tuple(found)


def why_unread(name: str) -> str:
    """Why a file of this name is not taken for an image, in words that follow a number of files; empty where it is."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES or OPTIONAL.get(suffix) in _optional_formats():
        return ""
    return NEEDED[OPTIONAL[suffix]] if suffix in OPTIONAL else f"no image: {suffix or 'no suffix'}"


def open_image(data: bytes, name: str) -> Image.Image:
    """The image in `data`, its pixels not yet decoded.

    Raises:
        ValueError: no image of a known format, or one of more than MAX_PIXELS pixels (a decompression bomb).
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes)")
    formats = IMAGE_FORMATS + _optional_formats()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is refused: {error}") from error
    except Exception as error:  # Pillow raises whatever a damaged header makes it stumble over
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"  # which names a place in memory
        if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif") and "HEIF" not in formats:
            reason = f"; inside it is {NEEDED['HEIF']}"
        raise ValueError(f"{name} is no image in one of {', '.join(formats)}{reason}") from error
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise ValueError(
            f"{name} is refused: {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are allowed, "
            f"{MAX_SIDE:,} a side"
        )
    return image


def check_image(data: bytes, name: str) -> None:
    """Decode an image once, small, to see that it is whole.

    Raises:
        ValueError: see `to_pixels`.
    """
    to_pixels(data, name, 32, 3, sixteen_bit=True)


def refusals(reasons: list[str], images: int) -> str:
    """One message for all images that cannot be used."""
    more = f"\n  and {len(reasons) - MAX_NAMED:,} more" if len(reasons) > MAX_NAMED else ""
    return (
        f"{len(reasons):,} of {images:,} images cannot be used; replace or remove them, then run the same command again:\n  "
        + "\n  ".join(sorted(reasons)[:MAX_NAMED])
        + more
    )


def is_oblong(picture: Picture) -> bool:
    """Whether a picture that can be opened has unequal sides."""
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else open_image(picture, "").size
    return height != width


def to_pixels(
    picture: Picture,
    name: str,
    size: int | None,
    channels: int,
    box: np.ndarray | None = None,
    *,
    fit: str = "squash",
    sixteen_bit: bool = False,
) -> np.ndarray:
    """One picture as uint8 pixels (C, H, W).

    It is cut to its box and BOX_MARGIN pixels around, then resized with antialiasing. A photograph that says how the camera was held
    (EXIF) is turned upright. What is transparent becomes white, as on a page.

    Args:
        name: for messages.
        size: side of the square that comes out; None keeps the picture's own size.
        channels: 1 (grey) or 3 (RGB).
        box: left, top, right, bottom in the pixels as they are stored.
        fit: how an oblong picture becomes a square: "squash" squeezes its longer side, "crop" takes the square in its middle.
        sixteen_bit: take grey pictures with 16 bits, by the upper 8 of them; Pillow itself does so with coloured ones.

    Raises:
        ValueError: not an image, damaged, too large, or with more bits per channel than are taken.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else open_image(picture, name)
    _check_mode(image, name, sixteen_bit)
    corners = (0, 0, *image.size) if box is None else _around(box, image.size, name)
    try:
        if size is not None and image.format == "JPEG":
            # the decoder itself shrinks a large photograph, its box to no less than twice the size that is wanted
            width, height = image.size
            left, top, right, bottom = corners
            image.draft(None, (2 * size * width // (right - left) + 1, 2 * size * height // (bottom - top) + 1))
            across, down = image.width / width, image.height / height
            corners = (left * across, top * down, right * across, bottom * down)
        if box is None:  # a box is in the pixels as they are stored
            image = ImageOps.exif_transpose(image)
            corners = (0, 0, *image.size)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if "transparency" in image.info or "A" in image.getbands():
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow raises whatever wrong bytes make it stumble over
        raise ValueError(f"{name} is damaged: {error}") from error
    if size is not None:
        corners = _middle(corners) if fit == "crop" else corners
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=corners)
    elif box is not None:
        image = image.crop(corners)
    pixels = np.asarray(image)  # (H, W) or (H, W, 3)
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))  # (C, H, W)


def _check_mode(image: Image.Image, name: str, sixteen_bit: bool) -> None:
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # as older Pillows open it
    if sixteen and not sixteen_bit:
        raise ValueError(f"{name} has 16 bits per pixel; save it with 8, or set sixteen_bit: true to take the upper 8")
    if image.mode.startswith(("I", "F")) and not sixteen:
        raise ValueError(f"{name} has more than 16 bits per pixel (mode {image.mode}); save it with 8")
    if image.mode == "LAB":
        raise ValueError(f"{name} is in the colour space LAB, which Pillow does not convert; save it as RGB")


def _around(box: np.ndarray, size: tuple[int, int], name: str) -> tuple[int, int, int, int]:
    """The corners of a box and BOX_MARGIN pixels around it, inside an image of this (width, height)."""
    left, top, right, bottom = (int(side) for side in box)
    width, height = size
    corners = (
        max(left - BOX_MARGIN, 0),
        max(top - BOX_MARGIN, 0),
        min(right + BOX_MARGIN, width),
        min(bottom + BOX_MARGIN, height),
    )
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(f"{name} is {width} x {height} pixels, its box {tuple(box.tolist())} lies outside")
    return corners


def _middle(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The largest square in the middle."""
    left, top, right, bottom = corners
    side = min(right - left, bottom - top)
    left, top = (left + right - side) / 2, (top + bottom - side) / 2
    return left, top, left + side, top + side
