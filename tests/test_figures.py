"""Figures: what is drawn is what the table says, and the same table gives the same bytes."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from localnorm import figures
from localnorm.evaluate import ARMS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def curves():
    rows = [
        {
            "arm": arm,
            "suite": "named",
            "noise": name,
            "level": level,
            "seeds": 6,
            "accuracy": a,
            "low": a - 0.05,
            "high": a + 0.05,
        }
        for arm, top in (("BN fixed", 0.8), ("LN batch", 0.9))
        for name in ("gaussian", "contrast")
        for level, a in ((0.0, top), (0.2, top / 2), (0.5, top / 3))
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_arm_has_a_colour_and_a_marker_of_its_own():
    assert set(figures.ARM_STYLES) == set(ARMS.values())
    assert len({colour for colour, _, _ in figures.ARM_STYLES.values()}) == len(ARMS)
    assert len({marker for _, marker, _ in figures.ARM_STYLES.values()}) == len(ARMS)


def test_accuracy_figure_draws_a_panel_a_noise_and_a_line_an_arm_with_the_values_of_the_table(curves):
    figure = figures.plot_accuracy(curves)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 2
    for axis, name in zip(shown, ("gaussian", "contrast"), strict=True):
        for line in axis.lines:
            table = curves[(curves.arm == line.get_label()) & (curves.noise == name)]
            assert line.get_xdata().tolist() == table.level.tolist()
            assert line.get_ydata().tolist() == table.accuracy.tolist()
        assert [line.get_label() for line in axis.lines] == ["BN fixed", "LN batch"]


def test_same_table_gives_the_same_bytes_and_another_table_others(project, curves):
    def written(table):
        figures.save(figures.plot_accuracy(table), "accuracy")
        return {
            suffix: (project / "paper" / "figures" / f"accuracy.{suffix}").read_bytes() for suffix in ("pdf", "png")
        }

    first = written(curves)
    assert first == written(curves)
    changed = written(curves.assign(accuracy=curves.accuracy + 0.05))
    assert first["pdf"] != changed["pdf"]
    assert first["png"] != changed["png"]


def test_photographs_under_noise_are_images_and_differ_from_the_clean_one():
    images = figures.noisy_photographs("flower", {"gaussian": 0.2, "brightness": 0.6}, seed=0)
    clean, gaussian, dark = images.values()
    for image in (clean, gaussian, dark):
        assert image.shape[2] == 3
        assert image.min() >= 0
        assert image.max() <= 1
    assert gaussian.std() > clean.std()
    assert dark.mean() == pytest.approx(0.4 * clean.mean(), rel=1e-3)


def test_wall_has_a_row_a_noise_and_starts_clean():
    wall = figures.noise_wall("china", columns=3, size=16, seed=0)
    assert len(wall) == 10
    for row in wall.values():
        assert row[0][0] == "0"
        assert not np.array_equal(row[0][1], row[-1][1])


def test_an_unknown_photograph_names_the_two():
    with pytest.raises(ValueError, match="unknown photograph 'dog'; choose one of flower, china"):
        figures.photograph("dog", 32)
