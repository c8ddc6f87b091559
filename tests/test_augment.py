"""Standardising and augmenting batches: exact pixels, one draw an image, and the distribution of the draws."""

import pytest
import torch

from localnorm.data.augment import augment, standardise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(batch: int, channels: int = 2, height: int = 8, width: int = 10) -> torch.Tensor:
    """Every pixel another value, none of them zero."""
    count = channels * height * width
    return torch.arange(1.0, count + 1).view(1, channels, height, width).repeat(batch, 1, 1, 1)


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """An image (C, H, W) moved pixel by pixel, zero where nothing comes from."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def test_standardise_equals_the_formula_channel_by_channel_and_leaves_its_input():
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, generator=generator())
    before = images.clone()
    mean, std = [125.307, 122.95, 113.865], [62.9932, 62.0887, 66.7048]
    out = standardise(images, mean, std)
    assert out.dtype == torch.float32
    for channel in range(3):
        torch.testing.assert_close(out[:, channel], (images[:, channel].float() - mean[channel]) / std[channel])
    assert torch.equal(images, before)
    torch.testing.assert_close(standardise(images, torch.tensor(mean), torch.tensor(std)), out)
    floats = images.float()
    torch.testing.assert_close(standardise(floats, 120.0, 64.0), (floats - 120) / 64)
    assert torch.equal(floats, before.float())


def test_standardise_refuses_statistics_of_another_number_of_channels():
    with pytest.raises(ValueError, match="mean needs 1 value or one a channel, got 2 for images of 3 channels"):
        standardise(torch.zeros(1, 3, 4, 4), [1.0, 2.0], 1.0)


def test_without_transformations_images_come_back_unchanged():
    images = ramp(3)
    assert torch.equal(augment(images), images)


def test_every_result_is_a_whole_pixel_shift_of_the_image_or_its_mirror_and_all_of_them_occur():
    images = ramp(2000)
    before = images.clone()
    out = augment(images, flip=True, shift=0.2, generator=generator())  # 2 of 8 rows, 2 of 10 columns
    assert torch.equal(images, before)
    seen = {}
    for flipped in (False, True):
        source = images[0].flip(-1) if flipped else images[0]
        for down in range(-2, 3):
            for right in range(-2, 3):
                equal = (out == moved(source, down, right)).flatten(1).all(1)
                seen[flipped, down, right] = int(equal.sum())
    assert sum(seen.values()) == 2000  # nothing else comes out
    expected = 2000 / 50
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < 85  # 99.9 % point of 49 degrees of freedom


def test_flip_mirrors_about_half_of_the_images_and_no_pixel_leaves():
    images = ramp(1000)
    out = augment(images, flip=True, generator=generator())
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert bool((flipped ^ kept).all())
    assert 430 < int(flipped.sum()) < 570  # 4.4 standard deviations


def test_shifted_in_pixels_are_zero_the_mean_colour_of_standardised_images():
    images = standardise(torch.full((64, 1, 8, 8), 200, dtype=torch.uint8), 100.0, 50.0)  # 2 everywhere
    out = augment(images, shift=0.25, generator=generator())
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_what_rotation_and_zooming_out_uncover_is_zero_too():
    images = torch.full((100, 1, 16, 16), 2.0)
    for settings in ({"rotation": 45}, {"zoom": 0.5}):
        out = augment(images, **settings, generator=generator())
        assert float(out[:, 0, 0, 0].min()) == 0  # a corner
        assert float(out[:, 0, 8, 8].min()) > 1.99  # the middle


def test_rotation_by_a_known_angle_moves_a_spot_where_geometry_says():
    size = 33
    images = torch.zeros(400, 1, size, size)
    images[:, :, 15:18, 27:30] = 1.0  # a spot 12 pixels to the right of the centre
    out = augment(images, rotation=30.0, generator=generator())
    weights = out.flatten(1).sum(1)
    grid = torch.arange(size) - size // 2
    x = (out[:, 0] * grid).sum((1, 2)) / weights
    y = (out[:, 0] * grid[:, None]).sum((1, 2)) / weights
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((400,), 12.0), atol=0.1, rtol=0)
    angles = torch.atan2(y, x).rad2deg()
    assert -30.2 < float(angles.min()) < -28
    assert 28 < float(angles.max()) < 30.2
    assert abs(float(angles.mean())) < 3.5  # 4 standard errors of a uniform angle
    assert abs(float(angles.std()) - 30 / 3**0.5) < 1.5


def test_rotation_keeps_the_shape_of_what_an_oblong_image_shows():
    images = torch.zeros(50, 1, 21, 61)
    images[:, :, 9:12, 38:41] = 1.0  # 9 pixels to the right of the centre
    out = augment(images, rotation=60.0, generator=generator())
    weights = out.flatten(1).sum(1)
    x = (out[:, 0] * (torch.arange(61) - 30)).sum((1, 2)) / weights
    y = (out[:, 0] * (torch.arange(21) - 10)[:, None]).sum((1, 2)) / weights
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((50,), 9.0), atol=0.1, rtol=0)


def test_zoom_scales_distances_from_the_centre_within_its_bounds():
    size = 41
    images = torch.zeros(400, 1, size, size)
    images[:, :, 19:22, 29:32] = 1.0  # 10 pixels to the right of the centre
    out = augment(images, zoom=0.2, generator=generator())
    x = (out[:, 0] * (torch.arange(size) - size // 2)).sum((1, 2)) / out.flatten(1).sum(1)
    assert 7.9 < float(x.min()) < 8.3
    assert 11.7 < float(x.max()) < 12.1
    assert abs(float(x.mean()) - 10) < 0.25


def test_each_image_has_its_own_draw():
    images = torch.randn(1, 3, 16, 16, generator=generator()).repeat(32, 1, 1, 1)
    out = augment(images, flip=True, shift=0.25, rotation=15, zoom=0.2, generator=generator())
    distances = (out[:, None] - out[None]).abs().amax((2, 3, 4)) + torch.eye(32)
    assert float(distances.min()) > 0.1


def test_equal_generators_give_equal_results_and_others_do_not():
    images = torch.randn(16, 3, 16, 16, generator=generator())
    settings = {"flip": True, "shift": 0.125, "rotation": 15, "zoom": 0.1}
    first = augment(images, **settings, generator=generator(1))
    assert torch.equal(first, augment(images, **settings, generator=generator(1)))
    assert not torch.equal(first, augment(images, **settings, generator=generator(2)))


def test_channels_last_input_gives_the_same_values():
    images = torch.randn(16, 3, 16, 16, generator=generator())
    settings = {"flip": True, "shift": 0.125, "rotation": 15}
    plain = augment(images, **settings, generator=generator(1))
    strided = augment(images.contiguous(memory_format=torch.channels_last), **settings, generator=generator(1))
    torch.testing.assert_close(strided, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": -0.1}, "shift must be at least 0 and at most 1, got -0.1"),
        ({"shift": 4}, "shift must be at least 0 and at most 1, got 4"),
        ({"rotation": 200}, "rotation must be at least 0 and at most 180 degrees, got 200"),
        ({"zoom": 1.0}, "zoom must be at least 0 and below 1, got 1.0"),
    ],
)
def test_parameters_out_of_range_are_refused_with_rule_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        augment(torch.zeros(1, 3, 4, 4), **settings)


def test_uint8_images_and_single_images_are_refused_with_the_fix():
    with pytest.raises(TypeError, match=r"got torch.uint8; call standardise first"):
        augment(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), flip=True)
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\), got \(3, 4, 4\); add a batch dimension"):
        augment(torch.zeros(3, 4, 4), flip=True)
