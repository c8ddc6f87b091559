"""The README's figure draws what the tables say."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from localnorm.figures.teaser import ARMS, plot_teaser

CURVES = pd.read_csv(ROOT / "data" / "statistics" / "digits-small" / "curves.csv")


def test_images_are_those_of_the_levels_and_lines_those_of_the_table(digits):
    figure = plot_teaser(digits, CURVES, ["brightness"], image=2)
    table = CURVES[(CURVES.suite == "named") & (CURVES.noise == "brightness")]
    levels = sorted(table.level.unique())
    *images, curve = figure.axes
    clean = digits.images("test")[2, 0].numpy() / 255
    for axis, level in zip(images, levels, strict=True):
        np.testing.assert_allclose(axis.images[0].get_array(), clean * (1 - level), atol=1e-5)
    for line, arm in zip(curve.lines, ARMS, strict=True):
        assert line.get_label() == arm
        assert line.get_ydata().tolist() == table[table.arm == arm].sort_values("level").accuracy.tolist()
    plt.close(figure)


def test_a_noise_outside_the_sweep_is_refused_with_those_in_it(digits):
    with pytest.raises(ValueError, match=r"no fog of the named suite, only gaussian, "):
        plot_teaser(digits, CURVES, ["fog"])
