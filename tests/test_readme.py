"""The README does what it says."""

import json
import re

from conftest import ROOT

from localnorm.params import load_params
from localnorm.tables import read_table

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

    def points(claim, first, second, part):
        """Estimate and ends of the interval, a data set."""
        key = (claim, first, second, part)
        return {
            row["experiment"]: [float(number) for number in re.findall(r"[+-][\d.]+", row["text"])]
            for row in results
            if (row["claim"], row["first"], row["second"], row["part"]) == key
        }

    lead = " ".join(README.partition("## Results")[2].partition("LN is LocalNorm")[0].replace("**", "").split())
    cifar, cars = (numbers["experiments"][name] for name in ("cifar10-resnet32", "cars-efficientnet_lite0"))

    assert "Under noise LocalNorm is far ahead of BatchNorm with fixed statistics" in lead
    assert set(verdicts("C3", "LN batch", "BN fixed").values()) == {"holds"}
    assert "So is the same BatchNorm network once its statistics come from the test batch" in lead
    assert set(verdicts("C2", "BN-batch", "BN fixed").values()) == {"holds"}
    control = points("control", "LN batch", "BN-batch", "noisy")
    behind = -control["cars-efficientnet_lite0"][0]
    assert (
        f"LocalNorm is on no data set shown to be ahead of that, and on Stanford Cars it is {behind:.1f} points behind "
        "with the released four groups" in lead
    )
    verdict = verdicts("control", "LN batch", "BN-batch")
    assert len(verdict) == len(numbers["experiments"])
    assert "holds" not in verdict.values()
    assert verdict["cars-efficientnet_lite0"] == "does not hold here"

    falls = {
        arm: [
            "from {uniform} to {mixed}".format(**numbers["experiments"][name]["mixed"]["arms"][arm])
            for name in ("digits-small", "cifar10-resnet32", "cars-efficientnet_lite0")
        ]
        for arm in ("LN batch", "BN-batch")
    }
    assert (
        "Where a batch mixes several noises and clean images, LocalNorm falls {} % on digits, {} on CIFAR-10 and {} on Stanford Cars; "
        "BN-batch {}, {} and {}. BN fixed, which no batch moves, has {}, {} and {} % under these noises: in such batches test statistics "
        "still bring LocalNorm {}, {} and {} points.".format(
            *falls["LN batch"],
            *falls["BN-batch"],
            *(
                numbers["experiments"][name]["mixed"]["fixed"][key]
                for key in ("accuracy", "LN batch")
                for name in ("digits-small", "cifar10-resnet32", "cars-efficientnet_lite0")
            ),
        )
        in lead
    )

    assert (
        "On clean photographs LocalNorm is behind, most on Stanford Cars, where it is still behind on its training images too"
        in lead
    )
    clean = points("C4", "LN batch", "BN fixed", "clean")
    assert max(clean[name][2] for name in photographs) < 0
    assert min(clean, key=lambda name: clean[name][2]) == "cars-efficientnet_lite0"
    trained = cars["training"]["accuracy"]
    assert float(trained["LN"]["train"]) < float(trained["BN"]["train"]) - 5

    two = {row["arm"]: row for row in cars["full_length"]}
    assert {(row["groups"], row["seeds"]) for row in two.values()} == {(2, 3)}
    against = {(arm, other["arm"]): other for arm, row in two.items() for other in row["against"]}
    released, plain = against["LN batch", "LN batch, K = 4"], against["LN batch", "BN-batch"]
    assert (
        f"Two groups instead of four on Stanford Cars (3 seeds, trained as long) bring LocalNorm {released['clean']} points on clean "
        f"photographs and {released['noisy']} under noise: from BN-batch it is then {plain['clean']} and {plain['noisy']} away."
        in lead
    )
    accuracy, prior = two["LN prior"]["accuracy"], against["LN prior", "BN prior"]
    assert (
        f"With a prior, on one photograph, it has {accuracy['clean']} % clean and {accuracy['noisy']} % noisy, "
        f"{prior['clean']} and {prior['noisy']} points from BN with a prior." in lead
    )
    best = cifar["groups"]
    assert (best["best"], load_params("cifar10-resnet32")["ablations"]["train"]["epochs"]) == (2, 2)
    (eight,) = (row for row in best["against"] if row["arm"] == "K = 8")
    assert (
        "On CIFAR-10, after two epochs of training, two groups instead of eight bring "
        f"{eight['clean']} points clean and {eight['noisy']} under noise." in lead
    )

    (groups, affines), (groups_on_cars, affines_on_cars) = (
        (each["affines"]["groups"], each["affines"]["affines"]) for each in (cifar, cars)
    )
    assert {each["affines"]["seeds"] for each in (cifar, cars)} == {3}
    assert (
        "The groups cost clean accuracy, and an affine for each brings nothing that shows. Ghost BatchNorm has LocalNorm's groups under "
        f"one (γ, β). In batches, of networks of few epochs (3 seeds), the groups bring {groups['clean']} points clean and "
        f"{groups['noisy']} under noise on CIFAR-10 and {groups_on_cars['clean']} and {groups_on_cars['noisy']} on Stanford Cars, whose "
        f"groups are of four images; an affine for each brings {affines['clean']} and {affines['noisy']} on CIFAR-10 and "
        f"{affines_on_cars['clean']} and {affines_on_cars['noisy']} on Stanford Cars." in lead
    )
    for cost in (groups, groups_on_cars):
        assert float(cost["clean"].rstrip("]").split()[-1]) < 0
    shared = [each["affines"]["affines"] for each in numbers["experiments"].values() if each["affines"] is not None]
    assert shared
    for found in (text for parts in shared for text in parts.values()):
        low, high = map(float, re.findall(r"[+-][\d.]+", found)[1:])
        assert low < 0 < high

    assert "One photograph alone gives neither network, as it is, statistics to work with" in lead
    assert "With a prior from the training set both networks work on one photograph" in lead
    for name in photographs:
        arms = numbers["experiments"][name]["arms"]
        for norm in ("BN", "LN"):
            assert arms[f"{norm} single"]["clean"] < 0.3
            assert arms[f"{norm} single"]["noisy"] < arms["BN fixed"]["noisy"]
            assert arms[f"{norm} prior"]["noisy"] > arms["BN fixed"]["noisy"]
            assert arms[f"{norm} prior"]["clean"] > 0.9 * arms["BN fixed"]["clean"]
        assert arms["LN companions"]["clean"] > 0.9 * arms["BN fixed"]["clean"]
    assert (
        "(*companions*) LocalNorm works, under noise ahead of BN fixed on Stanford Cars and on CIFAR-10 and digits not shown to be."
        in lead
    )
    assert verdicts("C5", "LN companions", "BN fixed") == {
        "cars-efficientnet_lite0": "holds",
        "cifar10-resnet32": "undecided",
        "digits-small": "undecided",
    }
    asked = points("C5", "LN companions", "BN companions", "noisy")
    assert (
        f"It is ahead of BatchNorm among the same companions, by {asked['digits-small'][0]:.1f} points on digits, "
        f"{asked['cifar10-resnet32'][0]:.1f} on CIFAR-10 and {asked['cars-efficientnet_lite0'][0]:.1f} on Stanford Cars."
        in lead
    )
    assert set(verdicts("C5", "LN companions", "BN companions").values()) == {"holds"}

    noisy, clean = points("C5", "LN prior", "BN prior", "noisy"), points("C4", "LN prior", "BN prior", "clean")
    assert (
        f"Under noise LocalNorm is then {noisy['cars-efficientnet_lite0'][0]:.1f} points ahead on Stanford Cars and "
        f"{-noisy['cifar10-resnet32'][0]:.1f} behind on CIFAR-10, and on clean photographs {-clean['cars-efficientnet_lite0'][0]:.1f} and "
        f"{-clean['cifar10-resnet32'][0]:.1f} behind, all undecided" in lead
    )
    assert {verdicts("C5", "LN prior", "BN prior")[name] for name in photographs} == {"undecided"}
    weak, *_, strong = cars["equal_strengths"]
    assert (
        f"Held to one strength n0, on validation images of Stanford Cars, LocalNorm leads under noise by {weak['noisy_difference']} points "
        f"with the weakest prior on offer and {strong['noisy_difference']} with the strongest." in lead
    )
    unsure = verdicts("C4", "LN prior", "BN prior", "clean")
    assert {unsure[name] for name in photographs} == {"undecided"}
    undecided = [row for row in results if row["claim"] == "C4" and row["verdict"] == "undecided"]
    lowest = min(undecided, key=lambda row: float(row["text"].split()[0]))
    assert (lowest["first"], lowest["second"], lowest["experiment"]) == (
        "LN prior",
        "BN prior",
        "cars-efficientnet_lite0",
    )
    assert f"these rows go down to {lowest['text'].split()[0]} points" in " ".join(README.split())
    costs = read_table("cost")
    trained = costs[(costs.measure == "step") & (costs.layout == "channels_last") & (costs.subject != "layer")]
    assert (trained.lower_quartile > trained.bound).all()
    assert (
        f"a training step takes {trained.ratio.min():.2f} to {trained.ratio.max():.2f} times as long as BatchNorm's, beyond the bound "
        "in every setting" in " ".join(README.split())
    )

    assert "(ours) LocalNorm works on one photograph without a prior" in lead
    drawn = points("C5", "LN drawn single", "BN prior", "noisy")
    assert (
        f"it is ahead under noise on digits ({drawn['digits-small'][0]:.1f} points) and CIFAR-10 ({drawn['cifar10-resnet32'][0]:.1f}) "
        f"and behind on Stanford Cars ({-drawn['cars-efficientnet_lite0'][0]:.1f})" in lead
    )
    assert verdicts("C5", "LN drawn single", "BN prior") == {
        "digits-small": "holds",
        "cifar10-resnet32": "holds",
        "cars-efficientnet_lite0": "does not hold here",
    }
    shown = [
        f"{100 * each['arms'][arm]['clean']:.1f}" for each in (cifar, cars) for arm in ("LN drawn single", "BN fixed")
    ]
    assert (
        "It loses on clean photographs: {} % on CIFAR-10 where BN fixed has {}, and {} % on Stanford Cars where that has {}.".format(
            *shown
        )
        in lead
    )

    assert (
        "Put into a network that was trained with BatchNorm it is ahead under noise of that network with fixed statistics. "
        "In batches it is on no data set shown to be ahead of it, and behind it on Stanford Cars and, before fine-tuning, on CIFAR-10. "
        "On clean photographs the network loses." in lead
    )
    assert (
        "These are networks of few epochs (3 seeds). Of those that were trained to the end (6 seeds) the exchange alone brings, on the "
        "images and three noises of the study of test batches, {clean} points clean and {noisy} under noise against BN fixed on "
        "CIFAR-10, ".format(**cifar["exchanged"]["against"][0])
        + "and {clean} and {noisy} on Stanford Cars.".format(**cars["exchanged"]["against"][0])
        in lead
    )
    for each in (cifar, cars):
        fixed, batch = each["exchanged"]["against"]
        assert (each["exchanged"]["seeds"], fixed["arm"], batch["arm"]) == (6, "BN fixed", "BN-batch")
        assert float(fixed["clean"].rstrip("]").split()[-1]) < 0 < float(fixed["noisy"].split("[")[1].split(",")[0])
    conversions = [row for row in results if row["claim"] == "C9"]
    assert {row["experiment"] for row in conversions} == set(numbers["experiments"])
    for row in conversions:
        noisy, untuned = row["part"].startswith("noisy"), row["part"].endswith("after 0 epochs")
        if noisy and row["second"] == "BN fixed":
            assert row["verdict"] == "holds"
        elif noisy:
            assert row["verdict"] != "holds"
            if row["experiment"] == "cars-efficientnet_lite0" or (row["experiment"] == "cifar10-resnet32" and untuned):
                assert row["verdict"] == "does not hold here"
        elif row["experiment"] in photographs:
            assert float(row["text"].rstrip("]").split()[-1]) < 0, "the whole interval is below zero"
    drawn = verdicts("C5", "LN drawn single", "BN fixed")
    for name in photographs:
        arms = numbers["experiments"][name]["arms"]
        assert drawn[name] == "holds"
        assert arms["LN drawn single"]["clean"] < arms["LN batch"]["clean"]
