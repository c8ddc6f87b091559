"""The README does what it says."""

import json
import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_runs_and_has_the_shapes_that_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (8, 1000)
    assert names["one"].shape == (1, 1000)
    assert len([line for line in code.splitlines() if line.strip()]) <= 8


def test_every_link_and_every_file_of_the_tree_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"^ {6}([\w./]+?)(?:,| {2})", README, re.M):
        assert (ROOT / "localnorm" / name).exists(), name


def test_every_make_target_of_the_readme_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_lock_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^-", lock, re.M)
    assert all("==" in line for line in lock.splitlines() if line)


def test_the_table_of_results_is_the_one_that_the_pipeline_made(committed_results):
    from localnorm.results import README_MARKS, readme_table

    numbers = ROOT / "paper" / "numbers.json"
    table = README.partition(README_MARKS[0])[2].partition(README_MARKS[1])[0]
    assert table.strip() == readme_table(json.loads(numbers.read_text())).strip(), (
        "run `python -m localnorm.results --readme`"
    )
