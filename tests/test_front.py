"""Trainings for one image at a time: what a study's table says, and how it is drawn."""

import pandas as pd
import pytest

from localnorm.evaluators import at_best_mean, at_equal_clean
from localnorm.figures.front import caption, plot_front


@pytest.fixture
def table():
    rows = []
    for seed in (0, 1):
        off = 0.01 * (2 * seed - 1)  # means over seeds are the numbers below
        for variant, network, points in (
            ("BN", "bn", [(64, 0.60, 0.69), (1e9, 0.80, 0.50)]),
            ("shrunk", "bn_shrunk", [(64, 0.795, 0.62), (1024, 0.80, 0.60), (1e9, 0.81, 0.51)]),
            ("drawn", "ln_drawn", [(64, 0.70, 0.66), (1e9, 0.78, 0.55)]),
        ):
            rows += [(variant, network, seed, "prior", n0, clean + off, noisy - off) for n0, clean, noisy in points]
        rows += [("shrunk", "bn_shrunk", seed, "gated", n0, 0.8 + off, 0.61 - off) for n0 in (16, 64)]
        rows += [("BIN", "bin", seed, "own", None, 0.82 + off, 0.55 - off)]
    return pd.DataFrame(rows, columns=["variant", "network", "seed", "statistics", "prior", "clean", "noisy"])


def test_each_training_is_judged_at_the_clean_accuracy_of_fixed_statistics(table):
    best = at_equal_clean(table)
    assert [key for key in best.index if key[1] == "prior"] == [(name, "prior") for name in ("BN", "shrunk", "drawn")]
    assert best.loc[("BN", "prior"), "noisy"] == pytest.approx(0.50), "more noise is borne only at 60 % clean"
    assert (best.loc[("shrunk", "prior"), "prior"], best.loc[("shrunk", "prior"), "noisy"]) == (64, pytest.approx(0.62))
    assert best.loc[("shrunk", "gated"), "prior"] == 16
    assert best.loc[("BIN", "own"), "noisy"] == pytest.approx(0.55)
    assert best.loc[("drawn", "prior")].isna().all(), "no n0 keeps the clean accuracy"
    assert at_equal_clean(table, margin=0.02).loc[("drawn", "prior"), "noisy"] == pytest.approx(0.55)


def test_n0_is_chosen_by_the_mean_of_clean_and_noisy(table):
    best = at_best_mean(table)
    assert best.prior.to_dict() == {
        ("BN", "prior"): 1e9, ("shrunk", "prior"): 64, ("shrunk", "gated"): 16,
        ("drawn", "prior"): 64, ("BIN", "own"): pytest.approx(float("nan"), nan_ok=True),
    }  # fmt: skip
    assert best.loc[("drawn", "prior"), ["clean", "noisy"]].tolist() == pytest.approx([0.70, 0.66])


def test_a_reference_that_was_not_studied_is_named(table):
    with pytest.raises(ValueError, match=r"'GN'.*BN, shrunk, drawn"):
        at_equal_clean(table, "GN")


def test_a_line_is_the_means_over_seeds_in_the_order_of_n0(table):
    shown = {axis.get_title(): axis.lines for axis in plot_front(table.iloc[::-1]).axes}
    lines = {line.get_label(): line for line in shown["BN: each image shrunk towards its batch"]}
    assert lines["shrunk"].get_xdata() == pytest.approx([79.5, 80, 81])
    assert lines["shrunk"].get_ydata() == pytest.approx([62, 60, 51])
    assert all("BN" in [line.get_label() for line in lines] for lines in shown.values()), "what all are measured by"
    assert len(shown) == 3


def test_a_training_that_lies_outside_altogether_is_named_in_the_caption_and_not_in_the_legend(table):
    far = table[table.variant == "drawn"].assign(variant="far", clean=0.3)
    both = pd.concat([table, far])
    named = {text.get_text() for axis in plot_front(both).axes for text in axis.get_legend().get_texts()}
    assert named == {"BN", "shrunk", "drawn", "BIN"}
    assert "and so all of far" in caption(both, "Toys")
    assert "and so all of" not in caption(table, "Toys")
