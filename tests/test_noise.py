"""Noise: every formula against a pixel-by-pixel reference, draws by their key alone, rescaling, bad input."""

import inspect
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from localnorm import noise
from localnorm.bench import PIXEL_FORMULAS, pixel_loop
from localnorm.noise import draw

EVERY = [(suite, name) for suite in noise.SUITES for name in noise.noises(suite)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs_like(batch: int, channels: int = 3, size: int = 32, seed: int = 0, detail: int = 6) -> torch.Tensor:
    """Images in [0, 1] of 8-bit values with some exact zeros and smooth content, (batch, channels, size, size)."""
    coarse = torch.rand(batch, channels, detail, detail, generator=generator(seed))
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic") * 1.2 - 0.1
    return (images.clamp(0, 1) * 255).round() / 255


def in_domain(suite: str, images: torch.Tensor) -> torch.Tensor:
    """The images as the suite wants them: [0, 1], or standardised for "released", with some zeros kept."""
    if suite != "released":
        return images
    return torch.where(images == 0, 0.0, (images - 0.5) / 0.25)


# The formulas


@pytest.mark.parametrize(("suite", "name"), PIXEL_FORMULAS)
def test_noise_has_the_distribution_of_the_pixel_loop(suite, name):
    from scipy.stats import ks_2samp

    images = in_domain(suite, photographs_like(8))
    level = noise.levels(name, suite)[3]
    ours = noise.apply(images, name, level, generator(), suite).numpy()
    theirs = pixel_loop(suite, name, images.numpy(), level, np.random.default_rng(0))
    assert np.abs(theirs - images.numpy()).mean() > 0.01  # the level does something
    for a, b in ((ours, theirs), (ours - images.numpy(), theirs - images.numpy())):
        a, b = a.round(4), b.round(4)  # shot noise takes few values, and float32 tells equal ones apart
        # 24,576 pixels a side: by chance the statistic is below 0.0176 in 999 of 1,000 cases
        assert ks_2samp(a.ravel(), b.ravel()).statistic < 0.0176


def test_released_gaussian_pos_multiplies_by_a_uniform_factor_above_one():
    factor = noise.apply(torch.full((50, 3, 32, 32), -2.0), "gaussian_pos", 0.5, generator()) / -2
    assert 1 <= float(factor.min()) < 1.001
    assert 1.499 < float(factor.max()) <= 1.5
    assert abs(float(factor.mean()) - 1.25) < 0.002


def test_released_gaussian_neg_centres_the_factor_on_one_and_does_not_repeat_gaussian_pos():
    factor = noise.apply(torch.ones(50, 3, 32, 32), "gaussian_neg", 0.5, generator())
    assert 0.75 <= float(factor.min()) < 0.751
    assert 1.249 < float(factor.max()) <= 1.25
    assert abs(float(factor.mean()) - 1) < 0.002


@pytest.mark.parametrize("level", [0.025, 0.25, 1.0])
def test_released_poisson_multiplies_by_one_plus_a_poisson_count(level):
    counts = noise.apply(torch.full((50, 3, 32, 32), 3.0), "poisson", level, generator()) / 3 - 1
    assert torch.equal(counts, counts.round())
    shares = [float((counts == n).double().mean()) for n in range(4)]
    expected = [np.exp(-level) * level**n / np.prod(range(1, n + 1)) for n in range(4)]
    np.testing.assert_allclose(shares, expected, atol=0.005)  # 153,600 draws: standard error below 0.0013


@pytest.mark.parametrize("suite", ["released", "named"])
def test_bernoulli_masks_whole_pixels_with_the_level_as_probability(suite):
    images = torch.rand(40, 3, 32, 32, generator=generator(1)) * 0.9 + 0.05
    noisy = noise.apply(images, "bernoulli", 0.3, generator(), suite)
    masked = noisy == 0
    assert torch.equal(masked.any(1), masked.all(1))  # one mask for all channels
    assert abs(float(masked.double().mean()) - 0.3) < 0.01
    assert torch.equal(noisy[~masked], images[~masked])
    assert not torch.equal(masked[0], masked[1])
    assert bool((noise.apply(images, "bernoulli", 1, generator(), suite) == 0).all())


def test_mnist_background_keeps_the_stroke_white_and_draws_the_background():
    images = torch.zeros(20, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 0.4
    noisy = noise.apply(images, "mnist_background", 1.5, generator())
    assert bool((noisy[:, :, 10:18, 10:18] == 1).all())
    background = noisy[images == 0]
    assert 0 <= float(background.min()) < 0.01
    assert 1.49 < float(background.max()) <= 1.5


def test_shot_noise_of_a_white_pixel_has_the_level_as_standard_deviation_before_clipping():
    grey = torch.full((50, 3, 32, 32), 0.25)
    noisy = noise.apply(grey, "poisson", 0.1, generator(), "named")
    assert abs(float(noisy.mean()) - 0.25) < 0.001
    assert abs(float(noisy.std()) - 0.1 * 0.25**0.5) < 0.001
    photons = noisy * 100
    torch.testing.assert_close(photons, photons.round(), atol=1e-4, rtol=0)


def test_brightness_and_contrast_are_exact():
    images = photographs_like(2)
    torch.testing.assert_close(noise.apply(images, "brightness", 0.9, suite="named"), images * 0.1)
    torch.testing.assert_close(noise.apply(images, "contrast", 0.9, suite="named"), 0.45 + images * 0.1)


def test_gamma_darkens_the_dark_most_and_haze_mixes_in_white():
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(noise.apply(images, "gamma", 2, suite="named"), images * images * images)
    torch.testing.assert_close(noise.apply(images, "haze", 0.75, suite="named"), 0.75 + images * 0.25)


# CIFAR-10-C


PARAMETERS = {  # Hendrycks & Dietterich 2019, the 32x32 script
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "jpeg_compression": [80, 65, 58, 50, 40],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "zoom_blur": [1.06, 1.11, 1.16, 1.21, 1.26],
}
every_severity = pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])


def corrupt(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    return noise.apply(images, name, severity, generator(seed), "corruptions")


def grey(value: float, batch: int = 50) -> torch.Tensor:
    return torch.full((batch, 3, 32, 32), value)


def spot(batch: int) -> torch.Tensor:
    images = torch.zeros(batch, 3, 32, 32)
    images[:, :, 16, 16] = 1
    return images


def ramps(batch: int) -> torch.Tensor:
    """Red is the column / 31, green the row / 31."""
    steps = torch.linspace(0, 1, 32)
    return torch.stack([steps.expand(32, 32), steps[:, None].expand(32, 32), torch.zeros(32, 32)]).repeat(
        batch, 1, 1, 1
    )


def clipped_zoom(layer: np.ndarray, factor: float) -> np.ndarray:
    from scipy.ndimage import zoom

    size = layer.shape[0]
    cut = int(np.ceil(size / factor))
    top = (size - cut) // 2
    large = zoom(layer[top : top + cut, top : top + cut], factor, order=1)
    trim = (large.shape[0] - size) // 2
    return large[trim : trim + size, trim : trim + size]


def diamond_square(decay: float, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """The published plasma fractal, point by point: displacement wibble^2, wibble 100, 100 / decay, ..."""
    field = np.zeros((size, size))
    step, wibble = size, 100.0
    while step > 1:
        half = step // 2
        for offsets, neighbours in (
            ([(half, half)], [(-half, -half), (-half, half), (half, -half), (half, half)]),
            ([(0, half), (half, 0)], [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            for down, right in offsets:
                for row in range(down, size, step):
                    for column in range(right, size, step):
                        around = [field[(row + i) % size, (column + j) % size] for i, j in neighbours]
                        field[row, column] = np.mean(around) + wibble * rng.uniform(-wibble, wibble)
        step, wibble = half, wibble / decay
    return (field - field.min()) / (field.max() - field.min())


def test_the_corruptions_have_five_severities():
    assert {noise.levels(name, "corruptions") for name in noise.noises("corruptions")} == {(0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("name", list(noise.SUITES["corruptions"]))
def test_the_highest_severity_changes_images_more_than_the_lowest_and_gives_8_bit_values(name):
    images = photographs_like(50, detail=16)
    low, high = (corrupt(images, name, severity) for severity in (1, 5))
    torch.testing.assert_close(high * 255, (high * 255).round(), atol=1e-4, rtol=0)
    if name != "elastic_transform":  # whose lowest severity moves the corners most
        assert float((high - images).abs().mean()) > 1.2 * float((low - images).abs().mean()) > 0.005


@every_severity
def test_corruption_by_gaussian_shot_and_impulse_noise_has_the_published_strength(severity):
    sigma, photons, amount = (PARAMETERS[n][severity - 1] for n in ("gaussian_noise", "shot_noise", "impulse_noise"))
    assert abs(float(corrupt(grey(0.5), "gaussian_noise", severity).std()) / sigma - 1) < 0.01
    # counts of 1 / photons rounded to 8 bits: 3 %
    assert abs(float(corrupt(grey(0.3), "shot_noise", severity).std()) / (0.3 / photons) ** 0.5 - 1) < 0.03
    noisy = corrupt(grey(102 / 255), "impulse_noise", severity)
    for value, share in ((0, amount / 2), (1, amount / 2), (102 / 255, 1 - amount)):
        assert abs(float(torch.isclose(noisy, torch.tensor(float(value))).double().mean()) - share) < 0.0015


@every_severity
def test_defocus_blur_spreads_a_spot_as_the_disk_and_its_softening_do(severity):
    radius, sigma = PARAMETERS["defocus_blur"][severity - 1]
    blurred = corrupt(spot(1), "defocus_blur", severity)[0, 0]
    disk = [(x, y) for x in range(-2, 3) for y in range(-2, 3) if x**2 + y**2 <= radius**2]
    side = np.exp(-1 / (2 * sigma**2))
    expected = np.mean([x**2 for x, _ in disk]) + 2 * side / (1 + 2 * side)  # variances add
    offsets = (torch.arange(32.0) - 16) ** 2
    assert abs(float(blurred.sum()) - 1) < 0.03
    for profile in (blurred.sum(0), blurred.sum(1)):
        assert abs(float((profile * offsets).sum()) - expected) < 0.03


@pytest.mark.parametrize(("severity", "iterations"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_glass_blur_takes_each_pixel_from_half_a_pixel_up_and_left_on_average(severity, iterations):
    moved = (corrupt(ramps(100), "glass_blur", severity) - ramps(100))[:, :2, 6:26, 6:26] * 31
    for channel in range(2):
        assert abs(float(moved[:, channel].mean()) + 0.5 * iterations) < 0.02


def test_glass_blur_of_the_lowest_severity_moves_pixels_by_at_most_one():
    images = torch.randint(0, 256, (20, 3, 32, 32), generator=generator(3)) / 255
    blurred = corrupt(images, "glass_blur", 1)
    candidates = [images.roll((down, right), (2, 3))[:, :, 2:, 2:] for down in (0, 1) for right in (0, 1)]
    hits = torch.stack([torch.isclose(blurred[:, :, 2:, 2:], c).all(1) for c in candidates])
    assert bool(hits.any(0).all())
    assert all(abs(float(hit.double().mean()) - 0.25) < 0.02 for hit in hits)
    torch.testing.assert_close(blurred[:, :, :2], images[:, :, :2])
    torch.testing.assert_close(blurred[..., :2], images[..., :2])


@pytest.mark.parametrize("severity", [3, 5])  # both of sigma 0.4; the smaller ones do not show in 8 bits
def test_glass_blur_filters_twice_with_its_gaussian(severity):
    from scipy.ndimage import gaussian_filter

    corner = torch.zeros(1, 3, 32, 32)
    corner[:, :, 0, 0] = 1  # where no pixel is moved
    expected = gaussian_filter(gaussian_filter(corner[0, 0].numpy(), 0.4, mode="nearest"), 0.4, mode="nearest")[0, 0]
    assert expected < 0.9
    assert abs(float(corrupt(corner, "glass_blur", severity)[0, 0, 0, 0]) - expected) < 0.01


@every_severity
def test_motion_blur_smears_a_spot_to_one_side_along_each_images_angle(severity):
    radius, sigma = PARAMETERS["motion_blur"][severity - 1]
    blurred = corrupt(spot(200), "motion_blur", severity)[:, 0]
    mass = blurred.sum((1, 2))
    assert float((mass - 1).abs().max()) < 0.03
    x = (blurred * (torch.arange(32.0) - 16)).sum((1, 2)) / mass
    y = (blurred * (torch.arange(32.0) - 16)[:, None]).sum((1, 2)) / mass
    taps = np.arange(2 * radius + 1)
    kernel = np.exp(-(taps**2) / (2 * sigma**2))
    expected = (taps * kernel).sum() / kernel.sum()
    # whole-pixel taps off the axes are up to 0.17 sigma further away; severities differ by half
    assert abs(float((x**2 + y**2).sqrt().mean()) / expected - 1) < 0.12
    angles = torch.atan2(y, x).rad2deg() % 180  # the image is read along the angle, so the spot moves against it
    angles = torch.where(angles > 90, angles - 180, angles)
    assert float(angles.abs().max()) < 50
    assert abs(float(angles.std()) - 90 / 12**0.5) < 4
    assert float(x.max()) < 0


@every_severity
def test_zoom_blur_is_the_mean_of_the_published_enlargements(severity):
    image = photographs_like(1)
    factors = np.arange(1, PARAMETERS["zoom_blur"][severity - 1], 0.01)
    expected = image[0].numpy().copy()
    for factor in factors:
        expected += np.stack([clipped_zoom(channel, factor) for channel in image[0].numpy()])
    expected /= len(factors) + 1
    np.testing.assert_allclose(corrupt(image, "zoom_blur", severity)[0].numpy(), expected, atol=0.6 / 255)


@pytest.mark.parametrize(
    ("severity", "mean", "std", "factor", "threshold", "clear"),
    [
        (1, 0.1, 0.2, 1, 0.6, 0.95),
        (2, 0.1, 0.2, 1, 0.5, 0.9),
        (3, 0.15, 0.3, 1.75, 0.55, 0.9),
        (4, 0.25, 0.3, 2.25, 0.6, 0.85),
        (5, 0.3, 0.3, 1.25, 0.65, 0.8),
    ],
)
def test_snow_adds_as_much_light_as_its_flakes_hold_in_upright_streaks(severity, mean, std, factor, threshold, clear):
    rng = np.random.default_rng(0)
    layers = np.stack([clipped_zoom(rng.normal(mean, std, (32, 32)), factor) for _ in range(300)])
    flakes = np.where(layers < threshold, 0, layers).clip(0, 1).mean()
    snow = corrupt(grey(0.0, 300), "snow", severity)
    expected = round((1 - clear) * 0.5 * 255) / 255 + 2 * flakes
    # edge pixels of an enlarged layer are not averaged, hold more flakes, and are smeared inwards: up to 11 % more
    assert -0.03 < float(snow.mean()) / expected - 1 < 0.13
    across, down = ((snow - snow.roll(1, dim)).abs().mean() for dim in (3, 2))
    assert float(across) > 1.3 * float(down)
    darkened = corrupt(grey(0.5), "snow", severity) - 0.5
    assert float(darkened.min()) > 0  # whitening: black gets (1 - clear) / 2, grey more


@pytest.mark.parametrize(
    ("severity", "scene", "ice"), [(1, 1, 0.2), (2, 1, 0.3), (3, 0.9, 0.4), (4, 0.85, 0.4), (5, 0.75, 0.45)]
)
def test_frost_dims_the_scene_and_adds_bluish_ice(severity, scene, ice):
    black, bright = corrupt(grey(0.0), "frost", severity), corrupt(grey(0.4), "frost", severity)
    unclipped = bright < 1
    torch.testing.assert_close(
        (bright - black)[unclipped], torch.full_like(bright[unclipped], 0.4 * scene), atol=0.005, rtol=0
    )
    red, _, blue = (black[:, channel] for channel in range(3))
    assert 0.95 * ice < float(blue.max()) <= ice + 0.002
    assert 0.35 * ice < float(blue.mean()) < 0.75 * ice
    assert abs(float(red.mean() / blue.mean()) - 0.85) < 0.02
    neighbours = float((blue - blue.roll(1, 2)).abs().mean() / blue.std())
    assert 0.1 < neighbours < 0.7  # a texture: neither flat nor white noise (1.1)


@pytest.mark.parametrize(
    ("severity", "thickness", "decay"), [(1, 0.2, 3), (2, 0.5, 3), (3, 0.75, 2.5), (4, 1, 2), (5, 1.5, 1.75)]
)
def test_fog_spans_its_range_in_every_image_and_grows_rougher_as_it_decays_slower(severity, thickness, decay):
    fog = corrupt(grey(0.8, 200), "fog", severity)
    low = 0.8 * 0.8 / (0.8 + thickness)
    torch.testing.assert_close(fog.amax((1, 2, 3)), torch.full((200,), 0.8), atol=0.003, rtol=0)
    torch.testing.assert_close(fog.amin((1, 2, 3)), torch.full((200,), low), atol=0.003, rtol=0)
    assert abs(float(fog.mean()) - (0.8 + low) / 2) < 0.04 * (0.8 - low)
    roughness, expected = (
        np.abs(field - np.roll(field, 1, -1)).mean()
        for field in (
            (fog[:, 0].numpy() - low) / (0.8 - low),
            np.stack([diamond_square(decay, np.random.default_rng(seed)) for seed in range(60)]),
        )
    )
    assert abs(roughness / expected - 1) < 0.06
    assert bool((corrupt(grey(0.0, 2), "fog", severity) == 0).all())  # published: nothing to see, nothing to fog


@every_severity
def test_brightness_of_a_corruption_adds_to_the_value_of_hsv(severity):
    import colorsys

    image = photographs_like(1)
    bright = corrupt(image, "brightness", severity)[0].permute(1, 2, 0).reshape(-1, 3)
    for before, after in zip(image[0].permute(1, 2, 0).reshape(-1, 3).tolist(), bright.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + PARAMETERS["brightness"][severity - 1], 1))
        assert max(abs(a - e) for a, e in zip(after, expected, strict=True)) < 0.51 / 255


@every_severity
def test_contrast_of_a_corruption_shrinks_towards_each_channels_mean(severity):
    images = photographs_like(3)
    mean = images.mean((2, 3), keepdim=True)
    expected = (images - mean) * PARAMETERS["contrast"][severity - 1] + mean
    torch.testing.assert_close(corrupt(images, "contrast", severity), expected, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize(
    ("severity", "alpha", "sigma", "corner"),
    [(1, 0, 0, 0.08), (2, 0.05, 0.2, 0.07), (3, 0.08, 0.06, 0.06), (4, 0.1, 0.04, 0.05), (5, 0.1, 0.03, 0.03)],
)
def test_elastic_transform_moves_corners_by_its_affine_and_pixels_by_its_field(severity, alpha, sigma, corner):
    warped = corrupt(ramps(300), "elastic_transform", severity)[:, :2].flatten(2).mT * 31  # (B, 1024, 2): source x, y
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    inside = ((columns >= rows) & (rows >= 8) & (columns < 25)).flatten()  # the triangle that the corners span
    points = torch.stack([columns, rows, torch.ones(32, 32)], dim=-1).view(-1, 3)[inside]
    affine = torch.linalg.lstsq(points.expand(300, -1, -1), warped[:, inside]).solution  # (B, 3, 2)
    residual = float((warped[:, inside] - points @ affine).std())
    field = 32 * alpha / 3**0.5 / (2 * 32 * sigma * np.pi**0.5) if alpha else 0  # white noise after a Gaussian filter
    rounding = 31 / 255 / 12**0.5  # of 8 bits over 31 pixels
    if severity != 2:  # whose field is wider than the triangle, which takes it for affine
        assert 0.75 < residual / (field**2 + rounding**2) ** 0.5 < 1.1  # a part looks affine
    # where the affine part takes the three corners
    corners = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])
    moved = torch.linalg.solve(affine[:, :2].mT, (corners - affine[:, 2:]).mT).mT - corners
    ratio = float(moved.std()) / (32 * corner / 3**0.5)
    assert 0.95 < ratio < 1.05 + 0.7 * field  # the field shifts the fit
    if alpha == 0:
        assert float(moved.abs().max()) < 32 * corner + 0.2


@every_severity
def test_pixelate_and_jpeg_are_pillows(severity):
    from PIL import Image

    images = photographs_like(4)
    small = int(32 * PARAMETERS["pixelate"][severity - 1])
    for image, pixelated, compressed in zip(
        images, corrupt(images, "pixelate", severity), corrupt(images, "jpeg_compression", severity), strict=True
    ):
        original = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        box = Image.Resampling.BOX
        expected = np.asarray(original.resize((small, small), box).resize((32, 32), box), dtype=np.float32)
        difference = pixelated.permute(1, 2, 0).numpy() * 255 - expected
        assert np.abs(difference).max() < 2.5  # Pillow rounds to 8 bits four times, we once
        assert np.abs(difference).mean() < 0.6
        file = io.BytesIO()
        original.save(file, "JPEG", quality=PARAMETERS["jpeg_compression"][severity - 1])
        np.testing.assert_allclose(compressed.permute(1, 2, 0).numpy() * 255, np.asarray(Image.open(file)), atol=1e-3)


# What holds for every noise


@pytest.mark.parametrize(("suite", "name"), EVERY)
def test_noise_is_a_pure_function_of_images_level_and_generator(suite, name):
    images = in_domain(suite, photographs_like(6))
    level = noise.levels(name, suite)[-1]
    before = images.clone()
    noisy = noise.apply(images, name, level, generator(1), suite)
    assert torch.equal(images, before)
    assert noisy.shape == images.shape
    assert noisy.dtype == images.dtype == torch.float32
    assert torch.equal(noisy, noise.apply(images, name, level, generator(1), suite))
    assert float((noisy - images).abs().mean()) > 0.005
    if suite != "released":
        assert float(noisy.min()) >= 0
        assert float(noisy.max()) <= 1


@pytest.mark.parametrize(("suite", "name"), EVERY)
def test_level_zero_is_the_clean_image_in_new_memory(suite, name):
    images = in_domain(suite, photographs_like(2))
    noisy = noise.apply(images, name, 0, generator(), suite)
    assert torch.equal(noisy, images)
    assert noisy.data_ptr() != images.data_ptr()


@pytest.mark.parametrize(("suite", "name"), EVERY)
def test_images_of_a_batch_do_not_share_their_draw(suite, name):
    images, draws = in_domain(suite, photographs_like(1)).repeat(2, 1, 1, 1), generator()
    noisy = noise.apply(images, name, noise.levels(name, suite)[-1], draws, suite)
    deterministic = torch.equal(draws.get_state(), generator().get_state())
    assert torch.equal(noisy[0], noisy[1]) == deterministic


@pytest.mark.parametrize(("suite", "name"), EVERY)
def test_levels_rise_from_zero_and_each_noise_says_what_it_is(suite, name):
    record = noise.noises(suite)[name]
    assert record.levels[0] == 0
    assert list(record.levels) == sorted(set(record.levels))
    assert record.levels[-1] <= record.highest
    assert all((record.label, record.formula, record.unit))


def test_released_levels_are_the_protocols():
    uniform = (0, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 2.5, 5)
    assert noise.levels("gaussian_pos") == noise.levels("gaussian_neg") == uniform
    assert noise.levels("gaussian_pos", cars=True) == (0, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5)
    assert noise.levels("poisson", cars=True) == noise.levels("poisson") == (0, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
    np.testing.assert_allclose(noise.levels("bernoulli"), np.arange(0, 0.96, 0.05), atol=1e-12)
    np.testing.assert_allclose(noise.levels("mnist_foreground"), np.arange(0, 5.01, 0.1), atol=1e-12)
    np.testing.assert_allclose(noise.levels("mnist_background"), np.arange(0, 2.01, 0.1), atol=1e-12)
    assert list(noise.noises()) == [
        "gaussian_pos",
        "gaussian_neg",
        "poisson",
        "bernoulli",
        "mnist_foreground",
        "mnist_background",
    ]


# The catalogue and the functions


def test_every_record_has_the_function_of_its_name_and_every_function_a_record():
    formulas = [module.__name__ for module in draw.FORMULAS.values()]
    for suite, module in draw.FORMULAS.items():
        own = {
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_") and value.__module__ in formulas
        }
        assert own == set(noise.noises(suite)), suite
    assert set(draw.FORMULAS) == set(noise.SUITES)


def test_the_catalogue_is_read_without_torch():
    code = "import sys, localnorm.noise as n; n.levels('poisson'); n.check('fog', 2, 'corruptions'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Draws


def test_a_generator_is_the_same_in_another_process_whatever_its_hash_seed():
    code = (
        "from localnorm.noise import generator_for; print(generator_for('named', 'gaussian', 0.1, 3, 7).initial_seed())"
    )
    environment = {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout
    assert int(out) == noise.generator_for("named", "gaussian", 0.1, 3, 7).initial_seed()


def test_generators_differ_in_every_part_of_their_key():
    base = ("named", "gaussian", 0.1, 0, 0)
    others = [
        ("released", "gaussian", 0.1, 0, 0),
        ("named", "poisson", 0.1, 0, 0),
        ("named", "gaussian", 0.2, 0, 0),
        ("named", "gaussian", 0.1, 1, 0),
        ("named", "gaussian", 0.1, 0, 1),
    ]
    seeds = {noise.generator_for(*key).initial_seed() for key in (base, *others)}
    assert len(seeds) == 6
    assert noise.generator_for("named", "gaussian", 1, 0, 0).initial_seed() == (
        noise.generator_for("named", "gaussian", 1.0, 0, 0).initial_seed()
    )


# Rescaling


def test_rescaling_maps_the_noisy_sets_range_onto_the_training_range_chunk_by_chunk():
    training = photographs_like(40, seed=1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    noisy = noise.apply(photographs_like(100), "gaussian_pos", 1.5, generator())
    seen = None
    for chunk in noisy.split(30):
        seen = noise.extrema(chunk, seen)
    target = noise.extrema(training)
    rescaled = torch.cat([noise.rescale(chunk, seen, target) for chunk in noisy.split(25)])
    for channel in range(3):
        a, b = training[:, channel], noisy[:, channel]
        expected = (b - b.min()) / (b.max() - b.min()) * (a.max() - a.min()) + a.min()
        torch.testing.assert_close(rescaled[:, channel], expected)
        torch.testing.assert_close(rescaled[:, channel].max(), a.max())


def test_rescaling_per_image_gives_each_image_the_target_range_whatever_its_neighbours():
    images = photographs_like(5) * torch.arange(1.0, 6).view(5, 1, 1, 1)
    target = noise.Extrema(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 5.0, 3.0]))
    rescaled = noise.rescale(images, noise.extrema(images, per_image=True), target)
    torch.testing.assert_close(rescaled.amin((2, 3)), target.low.expand(5, 3))
    torch.testing.assert_close(rescaled.amax((2, 3)), target.high.expand(5, 3))
    alone = noise.rescale(images[3:4], noise.extrema(images[3:4], per_image=True), target)
    torch.testing.assert_close(alone[0], rescaled[3])


def test_rescaling_leaves_a_channel_without_range_as_it_is():
    images = torch.randn(4, 2, 8, 8, generator=generator())
    images[:, 1] = 0.5
    target = noise.Extrema(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]))
    rescaled = noise.rescale(images, noise.extrema(images), target)
    assert bool((rescaled[:, 1] == 0.5).all())
    assert float(rescaled[:, 0].max()) == 1


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"suite": "nmaed"}, ValueError, r"unknown noise suite 'nmaed'; choose one of released, named"),
        (
            {"name": "posson"},
            ValueError,
            r"unknown noise 'posson' in suite 'released'; choose one of gaussian_pos, .*, poisson",
        ),
        (
            {"level": 1.2},
            ValueError,
            r"level of 'bernoulli' \(probability of a masked pixel\) is at least 0 and at most 1, got 1.2",
        ),
        (
            {"name": "poisson", "level": -0.1},
            ValueError,
            r"level of 'poisson' \(mean of n\) is at least 0 and finite, got -0.1",
        ),
        ({"name": "poisson", "level": float("inf")}, ValueError, r"is at least 0 and finite, got inf"),
        (
            {"name": "fog", "level": 6, "suite": "corruptions"},
            ValueError,
            r"\(severity\) is at least 0 and at most 5, got 6",
        ),
        ({"name": "fog", "level": 2, "suite": "corruptions"}, ValueError, r"for \(1, 3, 8, 8\); for other images take"),
        (
            {"images": torch.zeros(1, 3, 32, 32), "name": "fog", "level": 2.5, "suite": "corruptions"},
            ValueError,
            r"the corruptions have severities 0, 1, ..., 5 .*, got 2.5",
        ),
        ({"level": float("nan")}, ValueError, r"is at least 0 and at most 1, got nan"),
        (
            {"images": torch.zeros(3, 8, 8)},
            ValueError,
            r"must be \(B, C, H, W\), got \(3, 8, 8\); add a batch dimension",
        ),
        (
            {"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)},
            TypeError,
            r"float32 or float64 images, got torch.uint8",
        ),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)}, TypeError, r"got torch.bfloat16; convert with"),
        (
            {"images": torch.full((1, 3, 8, 8), 17.5), "suite": "named"},
            ValueError,
            r"pixels in \[0, 1\], got 17.5 to 17.5; divide",
        ),
        (
            {"images": torch.full((1, 3, 8, 8), -0.1), "suite": "named"},
            ValueError,
            r"pixels in \[0, 1\], got -0.1 to -0.1",
        ),
    ],
)
def test_what_cannot_be_noised_is_refused_with_rule_values_and_fix(arguments, error, message):
    with pytest.raises(error, match=message):
        noise.apply(**{"images": torch.zeros(1, 3, 8, 8), "name": "bernoulli", "level": 0.5} | arguments)


@pytest.mark.parametrize("level", [np.int64(2), np.float32(2)])
@pytest.mark.parametrize(("suite", "name"), [("corruptions", "jpeg_compression"), ("named", "poisson")])
def test_a_level_may_be_a_number_of_numpy(suite, name, level):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (noise.apply(images, name, each, torch.Generator().manual_seed(0), suite) for each in (level, 2))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="'2'"):
        noise.apply(images, name, "2", suite=suite)


@pytest.mark.parametrize(("suite", "name"), EVERY)
def test_no_images_stay_none(suite, name):
    assert noise.apply(torch.zeros(0, 3, 32, 32), name, noise.levels(name, suite)[-1], suite=suite).shape == (
        0,
        3,
        32,
        32,
    )
