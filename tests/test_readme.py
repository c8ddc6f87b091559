"""The texts at the top do what they say: code runs, files and commands are there, and they stay short."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_of_the_readme_runs_and_has_the_shapes_that_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (8, 1000)
    assert names["one"].shape == (1, 1000)


@pytest.mark.parametrize("name", ["README.md", "REPRODUCING.md", "data/README.md", "paper/README.md"])
def test_every_link_and_every_make_target_is_there(name):
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (folder / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_file_of_the_readmes_tree_is_there():
    names = re.findall(r"^ {6}([\w./]+?) {2}", README, re.M)
    assert len(names) > 10
    for name in names:
        assert (ROOT / "localnorm" / name).exists(), name


@pytest.mark.parametrize(("name", "most"), [("README.md", 1500), ("REPRODUCING.md", 2500)])
def test_a_text_stays_short_enough_to_be_read(name, most):
    """Generated tables among it; what holds no letter or digit is no word."""
    assert sum(bool(re.search(r"\w", word)) for word in (ROOT / name).read_text(encoding="utf-8").split()) <= most
