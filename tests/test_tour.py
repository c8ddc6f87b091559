"""The first notebook that a reader opens: its method is the layer's, and what its text says is what its cells give."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT

CELLS = [
    (cell["id"], "".join(cell["source"]))
    for cell in json.loads((ROOT / "notebooks" / "tour.ipynb").read_text())["cells"]
    if cell["cell_type"] == "code"
]
METHOD = ("tour-05", "tour-07", "tour-07c")


@pytest.fixture(scope="module")
def tour():
    """The names that the notebook leaves behind; its own cells compare the method with the layer."""
    threads, names = torch.get_num_threads(), {}
    try:
        for _, source in CELLS:
            exec(source, names)
    finally:
        torch.set_num_threads(threads)
        plt.close("all")
    return names


def test_the_method_takes_twenty_lines_of_plain_torch():
    source = "\n".join(text for name, text in CELLS if name in METHOD)
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    assert "nn." not in source
    assert "predict" not in source


def test_statistics_of_training_leave_the_dark_image_dark_and_its_own_bring_it_back(tour):
    spread = {mode: pixels.std().item() for mode, pixels in tour["shown"].items()}
    assert spread["fixed"] < spread["prior"] < spread["single"]
    torch.testing.assert_close(tour["shown"]["single"], tour["single"], atol=0.01, rtol=0)


def test_both_networks_fail_with_the_statistics_of_training_and_recover_with_those_of_the_test_images(tour):
    right = tour["right"]
    for mode in ("fixed", "batch", "single", "prior"):
        bn, ln = right[f"BN {mode}"], right[f"LN {mode}"]
        assert bn == pytest.approx(ln, abs=0.06), "here the statistics decide, not the layer"
        assert min(bn[0], ln[0]) > 0.93, "clean digits lose little"
        assert (max(bn[1], ln[1]) < 0.2) if mode == "fixed" else (min(bn[1], ln[1]) > 0.88)


def test_four_positions_of_prior_do_little_harm_in_poor_light_and_sixteen_do(tour):
    clean, noisy = (dict(zip(tour["dial"], tour["right"][name], strict=True)) for name in ("clean", "noisy"))
    assert 0 < max(clean.values()) - clean[0] < 0.03
    assert noisy[0] - noisy[4] < 0.02
    assert noisy[0] - noisy[16] > 0.05
    assert noisy[1024] < 0.2
