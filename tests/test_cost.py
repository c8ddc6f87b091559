"""The bench times what it says, alternating, and writes one row a measurement."""

import csv
import time

import pytest
import torch

from localnorm import cost
from localnorm.cost import alternate, main, peak_memory, ratios
from localnorm.machine import computes_bf16


def test_functions_run_in_turn_and_are_told_apart():
    order = []

    def run(name, seconds):
        order.append(name)
        time.sleep(seconds)

    seconds = alternate({"fast": lambda: run("fast", 0.001), "slow": lambda: run("slow", 0.01)}, repeats=4, warmup=1)
    assert order == ["fast", "slow", "fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]
    median, lower, upper = ratios(seconds["slow"], seconds["fast"])
    assert 2 < median < 11
    assert lower <= median <= upper


def test_peak_memory_counts_what_is_held_at_once():
    def one_after_the_other():
        for _ in range(3):
            torch.zeros(2**20, dtype=torch.uint8)

    def together():
        return [torch.zeros(2**20, dtype=torch.uint8) for _ in range(3)]

    assert peak_memory(one_after_the_other) == pytest.approx(2**20, rel=0.01)
    assert peak_memory(together) == pytest.approx(3 * 2**20, rel=0.01)


EMULATED = pytest.mark.skipif(not computes_bf16(torch.device("cpu")), reason="emulated bf16 takes minutes here")


@pytest.mark.parametrize("has_bf16", [pytest.param(True, marks=EMULATED), False])
def test_a_quick_run_prints_the_table_and_writes_every_row(tmp_path, capsys, monkeypatch, has_bf16):
    monkeypatch.setattr(cost, "computes_bf16", lambda device: has_bf16)
    rows = main(["--quick", "--repeats", "2", "--output", str(tmp_path / "sweeps" / "cost.csv")])
    with (tmp_path / "sweeps" / "cost.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in written] == [row.ratio for row in rows]
    assert all(row.ratio > 0 and row.batchnorm > 0 for row in rows)
    assert {(row.subject, row.measure) for row in rows} == {
        ("layer", "step"), ("layer", "memory"), *(("resnet32", m) for m in ("step", "memory", "single", "vote")),
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == ["cost.csv"]
    table = capsys.readouterr().out.splitlines()
    assert torch.__version__ in table[0]
    assert {row.dtype for row in rows} == ({"float32", "bfloat16"} if has_bf16 else {"float32"})
    assert has_bf16 or table.pop(1) == "bfloat16 is left out: this device only emulates it"
    assert table[1].startswith(f"{len(rows)} rows")
    assert len(table) == 3 + len(rows)


def test_rows_of_another_device_stay(tmp_path, monkeypatch):
    output = tmp_path / "cost.csv"
    quick = ["--quick", "--repeats", "2", "--output", str(output)]
    monkeypatch.setattr(cost, "_device_name", lambda: "a GPU")
    first = main(quick)
    monkeypatch.undo()
    main(quick)
    here = main(quick)
    with output.open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in written] == [row.ratio for row in (*here, *first)]


def test_too_few_repeats_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--repeats", "1"])
    assert "--repeats must be at least 2" in capsys.readouterr().err
