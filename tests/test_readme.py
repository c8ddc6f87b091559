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
    for target in set(re.findall(r"`?make ([\w-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_lock_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^-", lock, re.M)
    assert all("==" in line for line in lock.splitlines() if line)


def test_the_table_of_results_is_the_one_that_the_pipeline_made(committed_results):
    from localnorm.numbers import README_MARKS, readme_table

    numbers = ROOT / "paper" / "numbers.json"
    table = README.partition(README_MARKS[0])[2].partition(README_MARKS[1])[0]
    assert table.strip() == readme_table(json.loads(numbers.read_text())).strip(), (
        "run `python -m localnorm.numbers --readme`"
    )


def test_the_words_above_the_results_say_what_the_verdicts_say(committed_results):
    numbers = json.loads((ROOT / "paper" / "numbers.json").read_text())
    results = [row | {"claim": claim["claim"]} for claim in numbers["claims"] for row in claim["results"]]
    photographs = set(numbers["experiments"]) - {"digits-small"}

    def verdicts(claim, first, second, part="noisy"):
        key = (claim, first, second, part)
        return {
            row["experiment"]: row["verdict"]
            for row in results
            if (row["claim"], row["first"], row["second"], row["part"]) == key
        }

    lead = " ".join(README.partition("## Results")[2].partition("Accuracy in %")[0].split())
    assert "Under noise LocalNorm is far ahead of BatchNorm with fixed statistics" in lead
    assert set(verdicts("C3", "LN batch", "BN fixed").values()) == {"holds"}
    assert "So is the same BatchNorm network once its statistics come from the test batch" in lead
    assert set(verdicts("C2", "BN-batch", "BN fixed").values()) == {"holds"}
    assert "LocalNorm is on no data set shown to be ahead of that" in lead
    control = verdicts("control", "LN batch", "BN-batch")
    assert len(control) == len(numbers["experiments"])
    assert "holds" not in control.values()
    assert (
        "On clean photographs it is behind, most on Stanford Cars, where it is still behind on its training images too"
        in lead
    )
    clean = [row for row in results if (row["claim"], row["first"], row["second"]) == ("C4", "LN batch", "BN fixed")]
    behind = {
        row["experiment"]: float(row["text"].rstrip("]").split()[-1]) for row in clean
    }  # the interval's upper end
    assert max(behind[name] for name in photographs) < 0
    assert "two groups instead of the released four come closer there, and stay behind BN-batch" in lead
    groups = numbers["experiments"]["cars-efficientnet_lite0"]["groups"]
    ends = {
        (row["arm"], part): [float(end) for end in re.findall(r"[+-][\d.]+", row[part])[1:]]
        for row in groups["against"]
        for part in ("clean", "noisy")
    }
    assert groups["best"] == 2
    assert min(ends["K = 4", part][0] for part in ("clean", "noisy")) > 0
    assert max(ends["BN-batch", part][1] for part in ("clean", "noisy")) < 0
    assert min(behind, key=behind.get) == "cars-efficientnet_lite0"
    trained = numbers["experiments"]["cars-efficientnet_lite0"]["training"]["accuracy"]
    assert float(trained["LN"]["train"]) < float(trained["BN"]["train"]) - 5
    assert (
        "Neither network, as it is, works on one photograph alone. With a prior from the training set both do" in lead
    )
    for name in photographs:
        arms = numbers["experiments"][name]["arms"]
        for norm in ("BN", "LN"):
            assert arms[f"{norm} single"]["clean"] < 0.3
            assert arms[f"{norm} single"]["noisy"] < arms["BN fixed"]["noisy"]
            assert arms[f"{norm} prior"]["noisy"] > arms["BN fixed"]["noisy"]
            assert arms[f"{norm} prior"]["clean"] > 0.9 * arms["BN fixed"]["clean"]
    assert (
        "LocalNorm is then behind on clean photographs, and under noise some points ahead on Stanford Cars "
        "and on CIFAR-10 not shown to be." in lead
    )
    one_image = verdicts("C5", "LN prior", "BN prior")
    assert {name: one_image[name] for name in photographs} == {
        "cars-efficientnet_lite0": "holds",
        "cifar10-resnet32": "undecided",
    }
    (ahead,) = (
        row["text"]
        for row in results
        if (row["claim"], row["first"], row["second"]) == ("C5", "LN prior", "BN prior")
        and row["experiment"] == "cars-efficientnet_lite0"
    )
    assert float(re.search(r"\[([-+][\d.]+)", ahead)[1]) > 1, "the interval begins beyond a point"
    for name in photographs:
        assert (
            numbers["experiments"][name]["arms"]["LN prior"]["clean"]
            < numbers["experiments"][name]["arms"]["BN prior"]["clean"]
        )
    assert (
        "Put into a network that was trained with BatchNorm, it is ahead under noise of that network with fixed statistics, "
        "and on no data set shown to be ahead of it in batches; on clean photographs the network loses." in lead
    )
    conversions = [row for row in results if row["claim"] == "C9"]
    assert {row["experiment"] for row in conversions} == set(numbers["experiments"])
    for row in conversions:
        noisy = row["part"].startswith("noisy")
        if noisy and row["second"] == "BN fixed":
            assert row["verdict"] == "holds"
        elif noisy:
            assert row["verdict"] != "holds"
        elif row["experiment"] in photographs:
            assert float(row["text"].rstrip("]").split()[-1]) < 0, "the whole interval is below zero"
    assert "LocalNorm works on one photograph without a prior too, and loses on clean ones" in lead
    cifar, cars = (numbers["experiments"][name]["arms"] for name in ("cifar10-resnet32", "cars-efficientnet_lite0"))
    shown = [f"{100 * arms[arm]['clean']:.1f}" for arms in (cifar, cars) for arm in ("LN drawn single", "BN fixed")]
    assert (
        "it has {} % on CIFAR-10 where BN fixed has {}, and {} % on Stanford Cars where that has {}.".format(*shown)
        in lead
    )
    drawn = verdicts("C5", "LN drawn single", "BN fixed")
    for name in photographs:
        arms = numbers["experiments"][name]["arms"]
        assert drawn[name] == "holds"
        assert arms["LN drawn single"]["clean"] < arms["LN batch"]["clean"]
