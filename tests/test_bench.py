"""The bench of the pipeline's parts runs, compares like with like, and writes one row per measurement."""

import pandas as pd

from localnorm.bench import PIXEL_FORMULAS, main


def test_a_quick_run_measures_training_every_noise_answering_and_importing(tmp_path, capsys):
    rows = main(["--quick", "--repeats", "2", "--output", str(tmp_path / "bench.csv")])
    table = pd.read_csv(tmp_path / "bench.csv")
    assert list(table.subject) == [row.subject for row in rows]
    assert (table[["usual", "ours", "ratio"]] > 0).all().all()
    assert (table.lower_quartile <= table.ratio).all()
    noises = table[table.subject.str.startswith("noise")]
    assert len(noises) == len(PIXEL_FORMULAS) > 0
    assert (noises.ratio > 10).all(), "whole arrays against loops over pixels, even on a busy machine"
    printed = capsys.readouterr().out
    assert all(row.subject in printed for row in rows)
