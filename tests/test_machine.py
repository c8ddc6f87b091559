"""torch is told to use the machine's CPU and memory as training and sweeps need them."""

import platform
import subprocess
import sys

import pytest
import torch

from localnorm.machine import device_name, use_cpu

FAULTS = """
import resource, torch
from localnorm.machine import use_cpu
if {kept}:
    use_cpu(1)
def feature_map():
    torch.ones(16, 96, 80, 80)  # 39 MB, more than glibc ever keeps by itself
for _ in range(30):  # small objects may settle in the first holes
    feature_map()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    feature_map()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_memory_of_a_feature_map_that_is_freed_serves_the_next_one():
    faults = {}
    for kept in (True, False):
        script = FAULTS.format(kept=kept)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        faults[kept] = int(done.stdout)
    assert faults[False] > 20, "glibc's default has changed, so that nothing needs to be set"
    assert faults[True] < faults[False] / 4


def test_threads_are_set_where_a_number_is_given_and_else_left_alone():
    before = torch.get_num_threads()
    try:
        use_cpu(2)
        assert torch.get_num_threads() == 2
        use_cpu(None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_cpu_is_named_with_its_kind():
    assert device_name(torch.device("cpu")) == f"CPU ({platform.machine()})"
