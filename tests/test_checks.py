"""What has to hold before a stage starts: a wrong params.yaml costs a second, and is told with the valid choices."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from localnorm.checks import check_params

RELEASED = ROOT / "params" / "released.yaml"


@pytest.fixture
def params(project):
    """A function that writes params.yaml with some values changed and checks it; paths are keys joined by dots."""

    def check(changes: dict, source=ROOT / "params.yaml") -> None:
        values = yaml.safe_load(source.read_text())
        for path, value in changes.items():
            *folders, key = path.split(".")
            block = values
            for folder in folders:
                block = block[folder]
            block[key] = value
        (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        check_params()

    return check


@pytest.mark.parametrize("source", [ROOT / "params.yaml", RELEASED], ids=["params", "released"])
def test_the_settings_of_the_repository_are_valid(params, source):
    params({}, source)


@pytest.mark.parametrize("network", ["gbn", "gn", "in"])
def test_every_network_of_the_vocabulary_is_admitted_once_it_is_asked_something(params, network):
    with pytest.raises(
        ValueError, match=rf"networks lists {network}, and statistics has none for it; add e.g. `{network}: \["
    ):
        params({"networks": ["bn", network], "digits-small.networks": ["bn", network]})
    usual = {"bn": ["fixed"], network: ["batch" if network == "gbn" else "own"]}
    names = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]
    own = {f"{name}.networks": ["bn", network] for name in names}
    params({"networks": ["bn", network]} | own | {f"{name}.answers.statistics": usual for name in names})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ["bn", "ghost"]}, "unknown network 'ghost'; choose one of bn, ln, "),
        ({"networks": ["bn", "bn"]}, "none of them twice"),
        ({"seeds": [-1]}, "seeds must be at least 0"),
        ({"digits-small.train.epoch": 3}, "digits-small: unknown key epoch in the train block; it knows model, epochs"),
        ({"digits-small.train.learning_rate": "1e-3"}, "learning_rate must be a finite number, got '1e-3'"),
        (
            {"digits-small.answers.statistics": {"bn": ["votes"]}},
            "statistics: .*'bn' with statistics 'votes'; it has fixed",
        ),
        ({"digits-small.answers.statistics": {"layer": ["batch"]}}, "statistics: unknown network 'layer'"),
        ({"digits-small.answers.noises": {"named": ["gauss"]}}, "noises: unknown noise 'gauss' in suite 'named'"),
        ({"digits-small.ablations.networks": ["ghost"]}, "unknown network 'ghost'; choose one of bn"),
        ({"digits-small.ablations.groups_at_fixed_batch": [128]}, "num_groups=128 needs at least 128 images"),
        ({"digits-small.train.group_sizes": [1, 16]}, "the networks ln and ln_drawn are the same"),
        ({"digits-small.prepare.datasets": "digits"}, "unknown key datasets in the prepare block"),
        ({"digits-small.sweep": {}}, "the block digits-small must have prepare, train, answers and may have ablations"),
        ({"ablated": ["digits"]}, "ablated must be a list of experiments"),
        ({"tuned": ["digits"]}, "tuned must be a list of experiments"),
    ],
)
def test_a_mistake_is_refused_before_any_work_with_its_place_and_the_valid_choices(params, changes, message):
    with pytest.raises(ValueError, match=message):
        params(changes)


def test_params_are_checked_without_torch():
    """Each `make` starts with this check, and torch alone takes longer than all of it."""
    code = "import sys; from localnorm.checks import check_params; check_params(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
