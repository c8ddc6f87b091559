"""The vocabulary: one record per arm, each with a label, a colour and a marker of its own, and no torch behind it."""

import subprocess
import sys

import pytest

from localnorm import arms
from localnorm.arms import ARMS, NETWORKS, STATISTICS


def test_a_label_is_layer_training_and_statistics():
    for label, arm in ARMS.items():
        network, statistics = NETWORKS[arm.network], STATISTICS[arm.statistics]
        assert label == f"{network.label} {statistics.label}".strip()
        assert arms.arm_of(arm.network, arm.statistics) is arm
    assert arms.arm_of("ln_drawn", "single").label == "LN drawn single"
    assert arms.arm_of("bn", "batch").label == "BN batch"


def test_every_arm_has_a_colour_and_a_marker_of_its_own():
    assert len({arm.colour for arm in ARMS.values()}) == len(ARMS)
    assert len({str(arm.marker) for arm in ARMS.values()}) == len(ARMS)


@pytest.mark.parametrize(
    ("network", "statistics", "named"), [("gbn", "prior", "batch, single"), ("ghost", "batch", "bn, ln")]
)
def test_an_arm_that_is_not_there_names_those_that_are(network, statistics, named):
    with pytest.raises(ValueError, match=named):
        arms.arm_of(network, statistics)


def test_labels_are_put_in_the_order_of_the_vocabulary_and_unknown_ones_refused():
    assert arms.in_order(["LN batch", "BN fixed", "LN batch"]) == ["BN fixed", "LN batch"]
    with pytest.raises(ValueError, match=r"BN-batch.*BN fixed"):
        arms.in_order(["BN-batch"])


def test_tables_comparisons_figures_and_texts_are_read_and_made_without_torch():
    modules = "arms settings noise scores gather comparisons evaluators publish compare figures.accuracy figures.forest figures.streams"
    modules += (
        " figures.ablations figures.one_image figures.cost render.readme render.latex render.numbers render.reproducing"
    )
    code = f"import sys, {', '.join('localnorm.' + name for name in modules.split())}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
