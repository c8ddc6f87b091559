"""The bench times what it says, alternating, and writes one row per measurement."""

import csv
import time

import pytest
import torch

from localnorm import _triton, cost, timing
from localnorm.cost import bound_of, main
from localnorm.machine import computes_bf16
from localnorm.timing import alternate, peak_memory, ratios


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
        ("layer", "step"), ("layer", "relu"), ("layer", "memory"),
        *(("resnet32", m) for m in ("step", "drawn", "shrunk", "memory", "single", "prior", "gated", "vote")),
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == ["cost.csv"]
    table = capsys.readouterr().out.splitlines()
    assert torch.__version__ in table[0]
    assert {row.dtype for row in rows} == ({"float32", "bfloat16"} if has_bf16 else {"float32"})
    assert has_bf16 or table.pop(1) == "bfloat16 is left out: this device only emulates it"
    assert len(table) == 3 + len(rows)
    assert {(row.driver, row.kernels) for row in rows} == {("", "torch")}, "there is no GPU, so no driver"


def test_rows_of_another_device_stay_whatever_columns_they_have(tmp_path):
    output = tmp_path / "cost.csv"
    here = timing.about_machine()
    setting = {"subject": "layer", "shape": (2, 3), "layout": "contiguous", "dtype": "float32"}
    setting |= {"assignment": "interleaved", "kernels": "torch"}
    row = cost.make_row(setting, "step", [1.0, 1.0], [1.5, 1.5])
    output.write_text("subject,ratio,device\nlayer,1.25,a GPU\nlayer,9.0,cpu\n")
    cost.save([row], output)
    with output.open() as file:
        written = list(csv.DictReader(file))
    assert [(kept["device"], kept["ratio"]) for kept in written] == [(here["device"], "1.5"), ("a GPU", "1.25")]
    assert (written[0]["torch"], written[0]["triton"]) == (here["torch"], here["triton"])
    assert written[1]["triton"] == ""


def test_the_bounds_are_tighter_where_batchnorm_has_no_advantage_of_layout():
    assert bound_of("resnet50", "step", "contiguous") == 1.03
    assert bound_of("resnet50", "step", "channels_last") == (1.03 if torch.cuda.is_available() else 1.05)
    assert bound_of("resnet50", "memory", "contiguous") == 1.02
    assert bound_of("resnet32", "vote", "contiguous") == cost.NUM_GROUPS


def test_a_bench_by_our_kernels_leaves_the_option_as_it_was():
    chosen = []
    with cost.kernels("triton"):
        chosen.append(_triton.KERNELS)
    assert chosen == ["triton"]
    assert _triton.KERNELS == "measured"


def test_drawn_sizes_go_up_to_the_layers_own():
    from localnorm import LocalNorm2d

    seen = []
    layer = LocalNorm2d(3, num_groups=8)
    layer.register_forward_hook(lambda module, inputs, y: seen.append(y[:2].mean((0, 2, 3)).abs().max() < 1e-5))
    step = cost.with_drawn_sizes(lambda: layer(torch.randn(16, 3, 4, 4)), 16)
    for _ in range(4):
        step()
    alone_or_in_pairs = [bool(value) for value in seen]
    assert alone_or_in_pairs == [True] * 4, "groups of one and of two consecutive images are normalised"


def test_a_step_with_shrunken_statistics_normalises_each_image_by_its_own():
    from localnorm import LocalNorm2d

    seen = []
    layer = LocalNorm2d(3, num_groups=1)
    images = torch.randn(2, 3, 16, 16) + torch.tensor([0.0, 9.0]).view(2, 1, 1, 1)
    step = cost.with_shrunken_statistics(lambda: seen.append(layer(images)))
    step()
    with torch.no_grad():
        apart = layer(images)
    assert apart[1].mean() - apart[0].mean() > 1.9, "together, the dark image and the bright one stay apart"
    assert seen[0][1].mean() - seen[0][0].mean() < 1.7


def test_too_few_repeats_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--repeats", "1"])
    assert "--repeats must be at least 2" in capsys.readouterr().err
