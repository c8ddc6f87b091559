"""Tables turned into what a text needs: the numbers and verdicts of the paper, its LaTeX, and the README's results.

Every number of the paper goes through `collect_numbers`, with the record of what it was measured on beside it.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
import pandas as pd

from localnorm import noise, paths, stats
from localnorm.ablations import FULL_LENGTH
from localnorm.evaluate import ARMS, SweepConfig
from localnorm.figures.captions import describe, experiments_with_results, scored_images, seed_count, title
from localnorm.figures.estimates import clean_and_noisy
from localnorm.params import load_params
from localnorm.results import percent, with_interval
from localnorm.shifts import beyond_clean
from localnorm.tables import read_table

__all__ = [
    "collect_numbers",
    "conversion",
    "estimate_text",
    "latex_numbers",
    "readme_table",
    "verdicts_of",
    "write_latex_tables",
]


NETWORKS = {"batch": "BN", "local": "LN", "drawn": "LN drawn", "group": "GN", "instance": "IN"}
CLAIMS = {
    "C1": "Noise shifts the statistics of images.",
    "C2": "BatchNorm with fixed statistics fails under noise; statistics of the test batch help, and cost accuracy on clean images.",
    "C3": "LocalNorm is far more robust than BatchNorm.",
    "control": "LocalNorm is more robust than BatchNorm with the statistics of the test batch.",
    "C4": "LocalNorm is the same or slightly better on clean images.",
    "C5": "On large images LocalNorm works on a single test image.",
    "C6": "Poorly lit objects are recognised from one image.",
    "drawn": "LocalNorm trained with a group size drawn for each step (1 to B / K) beats LocalNorm on one image and equals it in batches.",
    "C7": "The extra cost of training is negligible.",
    "C8": "There is little or no extra cost at inference.",
    "C9": "LocalNorm can be put into many already-trained networks simply.",
}


def collect_numbers() -> dict:
    """Every number of the paper, from the tables that there are; an experiment, cost or ablation without results is left out.

    Returns:
        experiments: name -> {label, source, about, training, test_images, conditions, levels (of a noise); suites (noises a suite);
            arms; own_part (what LN batch gains under noise, and at most how much of it BN-batch lacks); constant (arms that answer
            with one class alone, nearly); unmoved (what test statistics bring where pixels keep theirs); prior_noises (that n0 is
            chosen by); strengths (n0 that the networks took); equal_strengths (LN and BN at the same n0); mcnemar; equal (accuracy at
            equal images a statistic); mixed (accuracy in test batches of several noises); exchanged (BN's layers for LN's, without
            fine-tuning); ablations; groups (the best K of the ablation); affines (LocalNorm against groups under one affine); full_length
            (LN with another K, trained as long as the experiment); claims}. A label is the data set's title, with the network where two
            experiments share it.
        claims: C1 to C9, the control, and what is not the original's ("drawn"), each with its statement, its verdicts in short (see
            `verdicts_of`) and a row a result; no rows, not tested.
        figures: name -> caption of every figure in paper/figures.
        Accuracies are in percent where they are text.
    """
    experiments = {name: _experiment_numbers(name) for name in experiments_with_results()}
    captions = {
        file.stem: file.read_text(encoding="utf-8").strip() for file in (paths.paper() / "figures").glob("*.txt")
    }
    results = {claim: _results_of(claim, experiments) for claim in CLAIMS}
    return {
        "experiments": experiments,
        "claims": [
            {
                "claim": claim,
                "statement": statement,
                "verdicts": verdicts_of(results[claim]),
                "results": results[claim],
            }
            for claim, statement in CLAIMS.items()
        ],
        "figures": dict(sorted(captions.items())),
    }


VERDICTS = ("holds", "holds in part", "undecided", "does not hold here")  # in the order in which they are said


def verdicts_of(results: list[dict]) -> list[dict]:
    """The results of a claim in short, apart by whether their first arm is the original's, and by what they are against: BN fixed, BN in
    the same mode (BN-batch, BN prior ...), or BN with a prior where the other arm has none.

    Returns:
        A row a kind, the original's first: ours; against, empty where there is one kind alone; and found, on -> verdict -> what it
        is of: the arm where arms differ, and the part where parts do.
    """
    kinds: dict[tuple[bool, str], list[dict]] = {}
    for row in results:
        kinds.setdefault((_is_ours(row["first"]), _against(row)), []).append(row)
    differ = [key for key in ("first", "part") if len({row[key] for row in results}) > 1] or ["part"]
    rows = []
    for (ours, against), group in sorted(kinds.items(), key=lambda kind: kind[0][0]):
        found: dict[str, dict[str, list[str]]] = {}
        for row in group:
            label, *part = (row[key] for key in differ)
            label = f"{label} ({part[0]})" if part else label
            found.setdefault(row["on"], {}).setdefault(row["verdict"], []).append(label)
        ordered = {on: {v: verdicts[v] for v in VERDICTS if v in verdicts} for on, verdicts in found.items()}
        rows.append({"ours": ours, "against": against if len(kinds) > 1 else "", "found": ordered})
    return rows


def _is_ours(arm: str) -> bool:
    """Whether an arm is this package's and not the original's: see the README on *prior*, *last fixed* and *LN drawn*."""
    return arm.startswith("LN drawn") or arm.endswith((" prior", " last fixed"))


def _against(row: dict) -> str:
    if row["second"] == "BN fixed":
        return "BN fixed"
    return "BN prior" if row["second"] == "BN prior" and not row["first"].endswith("prior") else "BN in the same mode"


def _results_of(claim: str, experiments: dict) -> list[dict]:
    """What was measured of a claim: a row an experiment and comparison, or a row a network for the costs."""
    rows = [
        {"on": experiment["label"], "experiment": name} | {key: row[key] for key in row if key != "claim"}
        for name, experiment in experiments.items()
        for row in experiment["claims"]
        if row["claim"] == claim
    ]
    if claim == "C1":
        made = [name for name in experiments if paths.statistics(f"{name}-shifts.csv").is_file()]
        rows += [_shift_result(name, experiments[name]["label"]) for name in made]
    return rows + _cost_results(claim)


def _shift_result(experiment: str, title: str) -> dict:
    """Claim C1: how many noises and levels move a test batch's statistics beyond those of clean batches."""
    table = read_table("shifts", experiment)
    noisy, beyond = table[table.level > 0], beyond_clean(table)
    clean = table[table.level == 0].distance.iloc[0]
    return {
        "on": title,
        "experiment": experiment,
        "what": f"distance of a batch of {table.batch_size[0]} from the training statistics, in their deviations, "
        "beyond that of clean batches",
        "first": "noisy",
        "second": "clean images",
        "over_images": None,
        "part": f"{beyond.sum()} of {len(beyond)} noises and levels",
        "text": f"{noisy.distance.median():.2f}, clean {clean:.2f}",
        "p": None,
        "verdict": "holds" if beyond.all() else "holds in part" if beyond.any() else "does not hold here",
    }


# claim -> the kinds of cost that it speaks of
COSTS = {
    "C7": {"step": "time of a training step", "memory": "memory of a training step"},
    "C8": {"single": "{}"},  # as many images as its rows have
}


def _cost_results(claim: str) -> list[dict]:
    """The ratio of every setting of a network against the bound in the table; a row a device, network and measure.

    A setting is within its bound where the upper quartile of the ratio is, and beyond where the lower one is.
    """
    file = paths.sweep("cost")
    if claim not in COSTS or not file.is_file():
        return []
    table = read_table("cost")
    several = table.device.nunique() > 1
    rows = []
    for (device, subject), of_network in table[table.subject != "layer"].groupby(["device", "subject"], sort=False):
        for measure, what in COSTS[claim].items():
            costs = of_network[of_network.measure == measure]
            if costs.empty:
                continue
            images = costs["shape"].iloc[0].partition("x")[0]
            what = what.format(f"{images} images, each alone" if images != "1" else "one image")
            within = int((costs.upper_quartile <= costs.bound).sum())
            beyond = int((costs.lower_quartile > costs.bound).sum())
            rows.append(
                {
                    "on": f"{subject} on {'CPU' if device == 'cpu' else device}" if several else subject,
                    "experiment": None,
                    "what": f"LN over BN at most {costs.bound.iloc[0]:.2f}: kept in {within} of {len(costs)} settings, missed in {beyond}",
                    "first": "LN",
                    "second": "BN",
                    "part": what,
                    "over_images": None,
                    "text": f"{costs.ratio.min():.2f} to {costs.ratio.max():.2f}",
                    "p": None,
                    "verdict": _cost_verdict(within, beyond, len(costs)),
                }
            )
    return rows


def _cost_verdict(within: int, beyond: int, settings: int) -> str:
    if within:
        return "holds" if within == settings else "holds in part"
    return "does not hold here" if beyond > settings / 2 else "undecided"


def conversion(table: pd.DataFrame, margin: float) -> list[dict]:
    """Claim C9: trained BatchNorm networks, converted and fine-tuned, in batches, against the same networks as they were and
    against these in batches.

    Args:
        table: an experiment's ablations; needs the fine-tuning and the norm "batch".
        margin: clean accuracies closer than this count as the same.

    Returns:
        Rows for noisy and clean images at the fewest and the most epochs; none without the ablation.
    """
    tuned = table[(table.ablation == "fine-tuning epochs after conversion") & (table["mode"] == "batch")]
    original = table[(table.ablation == "norm") & (table.norm == "batch") & table["mode"].isin(["fixed", "batch"])]
    if tuned.empty or original.empty:
        return []
    epochs = tuned.value.astype(int)
    rows = []
    for value in sorted({epochs.min(), epochs.max()}):
        pair = pd.concat([tuned[epochs == value], original])
        after = f"after {value} epoch{'' if value == 1 else 's'}"
        for part, other, what, threshold in (
            ("noisy", "BN fixed", "a converted network is more robust", 0.0),
            ("clean", "BN fixed", "and no worse on clean images", -margin),
            ("noisy", "BN-batch", "a converted network is more robust than it was in batches", 0.0),
        ):
            found = stats.paired_differences(pair, "LN batch", other, part)
            arms = ("LN batch", other)
            rows.append(stats.difference_row("C9", what, arms, f"{part} {after}", *found, threshold=threshold))
    return rows


def _experiment_numbers(name: str) -> dict:
    folder = paths.statistics(name)
    runs = read_table("runs", name)
    summary = read_table("summary", name)
    claims = read_table("claims", name)
    sweep = read_table("sweep", name)
    ablations = read_table("ablations", name) if paths.ablations(name).is_file() else None
    if ablations is not None:
        converted = conversion(ablations, load_params(name)["statistics"]["margin"])
        claims = pd.concat([claims, pd.DataFrame(converted)], ignore_index=True)
    arms = stats.label_arms(sweep).astype({"arm": str})
    suites, sweeps = read_table("suites", name), load_params(name)["sweep"]
    batches = read_table("batches", name) if sweeps.get("batches") else None
    return {
        "label": title(name),
        "source": describe(name),
        "about": json.loads((folder / "about.json").read_text(encoding="utf-8")),
        "training": {
            "model": runs.model[0],
            "epochs": int(runs.epochs[0]),
            "batch_size": int(runs.batch_size[0]),
            "num_groups": int(runs.num_groups[0]),
            "seeds": int(runs.seed.nunique()),
            "runs": len(runs),
            "device": "; ".join(sorted(runs.device.unique())),
            "torch": "; ".join(sorted(runs.torch.unique())),
            "precision": ", ".join(sorted(runs.precision.unique())),
            "minutes": round(float(runs.seconds.sum()) / 60, 1),
            "accuracy": {  # of the last epoch, the training images augmented
                NETWORKS[norm]: {part: percent(rows[f"{part}_accuracy"].mean()) for part in ("train", "validation")}
                for norm, rows in runs.groupby("norm", sort=False)
            },
        },
        "test_images": scored_images(sweep),
        "conditions": len(sweep[sweep.level > 0].drop_duplicates(["suite", "noise", "level"])),
        "levels": "; ".join(_levels(sweep)),
        "suites": {suite: int(rows.noise.nunique()) for suite, rows in sweep.groupby("suite", sort=False)},
        "arms": {
            row.arm: {
                "clean": row.clean,
                "noisy": row.noisy,
                "text": {part: with_interval(row, part) for part in ("clean", "noisy")},
                "suites": {each.suite: percent(each.accuracy) for each in suites[suites.arm == row.arm].itertuples()},
                "images": f"{arms[(arms.arm == row.arm) & (arms.level > 0)].images.max():,}",
            }
            for row in summary.itertuples()
        },
        "own_part": _own_part(claims),
        "constant": _constant_arms(name),
        "unmoved": _unmoved(name, arms),
        "equal_strengths": _equal_strengths(read_table("choice", name)) if _has_choice(name) else [],
        "strengths": _chosen_strengths(arms, sweeps.get("prior", SweepConfig.prior)),
        "prior_noises": [
            f"{noise.noises(suite)[name].label} ({suite}, level {level:g})"
            for suite, levels in sweeps.get("prior_noises", {}).items()
            for name, level in levels.items()
        ],
        "mcnemar": _mcnemar_counts(name),
        "equal": [] if batches is None else _equal_images(batches, int(runs.num_groups[0])),
        "mixed": None if batches is None else _mixed_batches(batches),
        "exchanged": None if batches is None else _exchanged(batches, int(runs.num_groups[0]), int(runs.batch_size[0])),
        "ablations": [] if ablations is None else _ablation_numbers(ablations[ablations.ablation != FULL_LENGTH]),
        "groups": None if ablations is None else _best_groups(ablations, int(runs.num_groups[0])),
        "affines": None if ablations is None else _shared_affine(ablations, int(runs.num_groups[0])),
        "full_length": [] if ablations is None else _full_length(ablations, sweep, int(runs.num_groups[0])),
        "claims": [_claim_numbers(row) for row in claims.itertuples()],
    }


def _levels(sweep: pd.DataFrame) -> list[str]:
    """How many levels above 0 a noise has: "2", and where suites differ "2 (named); 5 (corruptions)"."""
    noisy = sweep[sweep.level > 0].groupby(["suite", "noise"], sort=False)["level"].nunique().reset_index()
    suites: dict[str, list[str]] = {}
    for suite, counts in noisy.groupby("suite", sort=False)["level"]:
        least, most = counts.min(), counts.max()
        suites.setdefault(f"{least}" if least == most else f"{least} to {most}", []).append(suite)
    return list(suites) if len(suites) == 1 else [f"{count} ({', '.join(names)})" for count, names in suites.items()]


def _own_part(claims: pd.DataFrame) -> dict | None:
    """What LN batch is ahead of BN fixed under noise, and what it is ahead of BN-batch at most, in points.

    The most is the upper end of the difference's widened interval, so it counts what seeds and test images leave open.
    """
    noisy = claims[(claims["first"] == "LN batch") & (claims.part == "noisy")].set_index("claim")
    if not {"C3", "control"} <= set(noisy.index):
        return None
    gain, control = noisy.loc["C3"], noisy.loc["control"]
    most = stats.widened(control.estimate, control.low, control.high, control.over_images)[1]
    return None if np.isnan(most) else {"gain": f"{100 * gain.estimate:.1f}", "most": f"{max(100 * most, 0):.1f}"}


ONE_CLASS = 0.9  # of an arm's answers, from where on it is said to answer with one class


def _constant_arms(experiment: str) -> list[str]:
    """Arms that answered with one class for (nearly) every image and condition, in every seed."""
    least = stats.label_arms(read_table("answers", experiment)).groupby("arm", observed=True).commonest.min()
    return [str(arm) for arm in least.index[least >= ONE_CLASS]]


def _chosen_strengths(sweep: pd.DataFrame, offered: float | list[float]) -> list[dict]:
    """n0 of each arm that has one, in the order of the seeds, the number of networks, and how many took the largest of several.

    Args:
        sweep: with the column `arm`.
    """
    chosen = sweep.dropna(subset="prior").groupby(["arm", "seed"], sort=False)[["prior"]].first()
    offered = offered if isinstance(offered, list) else [offered]
    return [
        {
            "arm": arm,
            "n0": ", ".join(f"{value:g}" for value in rows.prior),
            "networks": len(rows),
            "largest": int((rows.prior == max(offered)).sum()) if len(offered) > 1 else 0,
        }
        for arm, rows in chosen.groupby("arm", sort=False)
    ]


def _has_choice(experiment: str) -> bool:
    return (paths.statistics(experiment) / "choice.csv").is_file()


def _equal_strengths(choice: pd.DataFrame) -> list[dict]:
    """LN prior and BN prior at the same n0, on the validation images and noises that each network took its own n0 by.

    Args:
        choice: of the statistics, a row a network, n0 and number of fixed layers.

    Returns:
        A row an n0 that both have: n0; of each arm its accuracy, clean and noisy; and of each part the difference in points, LN less
        BN, with its interval over seeds.
    """
    alone = choice[choice.fixed_last == 0].set_index(["norm", "prior", "seed"]).sort_index()
    offered = [
        set(alone.loc[norm].index.get_level_values("prior")) for norm in ("local", "batch") if norm in alone.index
    ]
    if len(offered) < 2:
        return []
    rows = []
    for prior in sorted(set.intersection(*offered)):
        own, other = (alone.loc[(norm, prior)] for norm in ("local", "batch"))
        differences = {part: (own[part] - other[part]).dropna() for part in ("clean", "noisy")}
        rows.append(
            {"n0": f"{prior:g}"}
            | {
                arm: {part: percent(at[part].mean()) for part in differences}
                for arm, at in (("LN prior", own), ("BN prior", other))
            }
            | {f"{part}_difference": _estimate(*stats.interval(found)) for part, found in differences.items()}
        )
    return rows


def _unmoved(experiment: str, sweep: pd.DataFrame) -> dict | None:
    """What statistics of the test batch bring a BatchNorm network where noise leaves the statistics of pixels among those of clean batches.

    Args:
        sweep: with the column `arm`.

    Returns:
        conditions; mean and most: points by which BN-batch is ahead of BN fixed there, over seeds; condition: that of the most. None
        without the arms, the table of shifts, or such a condition.
    """
    if not paths.statistics(f"{experiment}-shifts.csv").is_file() or not {"BN fixed", "BN-batch"} <= set(sweep.arm):
        return None
    by = ["suite", "noise", "level"]
    shifts = read_table("shifts", experiment)
    beyond = beyond_clean(shifts)
    within = shifts.loc[beyond.index[~beyond], by]
    scores = sweep.groupby(["arm", *by]).accuracy.mean()
    gains = (scores["BN-batch"] - scores["BN fixed"]).reindex(pd.MultiIndex.from_frame(within)).dropna()
    if gains.empty:
        return None
    suite, name, level = gains.idxmax()
    return {
        "conditions": len(gains),
        "mean": _signed(gains.mean()),
        "most": _signed(gains.max()),
        "condition": f"{noise.noises(suite)[name].label} ({suite}, level {level:g})",
    }


def _mcnemar_counts(experiment: str) -> dict | None:
    """Of all conditions and seeds, how many set LN batch and BN-batch apart on single images, after Holm's adjustment."""
    if not (paths.statistics(experiment) / "mcnemar.csv").read_text(encoding="utf-8").strip():
        return None  # an experiment without both arms
    table = read_table("mcnemar", experiment)
    apart = table[table.p_holm < 0.05]
    return {
        "tests": len(table),
        "first": int((apart.only_first > apart.only_second).sum()),
        "second": int((apart.only_first < apart.only_second).sum()),
    }


def _equal_images(batches: pd.DataFrame, num_groups: int) -> list[dict]:
    """LN batch and BN-batch where a statistic has as many images, so at test batches of different sizes.

    Args:
        batches: of the test batch study.
        num_groups: K of the LocalNorm networks.

    Returns:
        A row a size that both have: images a statistic; of each arm its accuracy, clean and noisy; and of each part the difference
        between the arms in points with its interval over seeds, and the sign-flip test's p.
    """
    uniform = batches[(batches.composition == "uniform") & (batches["mode"] == "batch")]
    scores = (
        clean_and_noisy(uniform, ["batch_size"]).set_index(["norm", "batch_size", "part", "seed"]).accuracy.sort_index()
    )
    sizes = {norm: sorted(uniform.batch_size[uniform.norm == norm].unique()) for norm in ("batch", "local")}
    rows = []
    for size in sizes["batch"]:
        if size == 1 or size * num_groups not in sizes["local"] or not (uniform.level > 0).any():
            continue
        arms = {"LN batch": ("local", size * num_groups), "BN-batch": ("batch", size)}
        row = {"images": int(size)}
        for arm, own in arms.items():
            row[arm] = {part: percent(scores[(*own, part)].mean()) for part in ("clean", "noisy")}
        for part in ("clean", "noisy"):
            first, second = (scores[(*own, part)] for own in arms.values())
            differences = (first - second).dropna()
            p = stats.sign_flip(differences)
            row[f"{part}_difference"] = {
                "text": _estimate(*stats.interval(differences)),
                "p": None if np.isnan(p) else f"{p:.3f}",
            }
        rows.append(row)
    return rows


def _mixed_batches(batches: pd.DataFrame) -> dict | None:
    """What is left under noise where a test batch holds several noises and clean images: the largest batch of the study.

    Args:
        batches: of the test batch study.

    Returns:
        size (images a batch); arms: LN batch and BN-batch -> accuracy under noise where a batch shares one noise and level (uniform) and
        where it does not (mixed), and the difference in points with its interval over seeds; fixed: accuracy of BN fixed, and of the
        arms in mixed batches the difference to it, None where it was not asked. None without a noise.
    """
    size = int(batches.batch_size.max())
    largest = batches[batches.batch_size == size]
    if not (largest.level > 0).any():
        return None
    scores = clean_and_noisy(largest, ["composition"]).set_index(["norm", "mode", "part", "composition", "seed"])
    scores = scores.accuracy.sort_index()
    alone = scores["batch", "fixed", "noisy", "mixed"] if "fixed" in set(largest["mode"]) else None
    fixed = None if alone is None else {"accuracy": percent(alone.mean())}
    arms = {}
    for arm, norm in (("BN-batch", "batch"), ("LN batch", "local")):
        uniform, mixed = (scores[norm, "batch", "noisy", composition] for composition in ("uniform", "mixed"))
        arms[arm] = {"uniform": percent(uniform.mean()), "mixed": percent(mixed.mean())}
        arms[arm]["difference"] = _estimate(*stats.interval((mixed - uniform).dropna()))
        if fixed is not None:
            fixed[arm] = _estimate(*stats.interval((mixed - alone).dropna()))
    return {"size": size, "arms": arms, "fixed": fixed}


def _exchanged(batches: pd.DataFrame, num_groups: int, batch_size: int) -> dict | None:
    """Claim C9 for the experiment's own networks: BatchNorm's layers exchanged for LocalNorm's, without fine-tuning, in batches.

    All groups then have BatchNorm's (gamma, beta), so the network is BN-batch in batches of B / K images.

    Args:
        batches: of the test batch study.
        num_groups, batch_size: K and B of the experiment.

    Returns:
        images (B / K); seeds; accuracy: clean and noisy; against: arm (BN fixed; BN-batch in the study's largest batch), size (None for
        the first), and the differences in points, clean and noisy, with their intervals over seeds. None where the study lacks the size
        or BN fixed.
    """
    images, most = batch_size // num_groups, int(batches.batch_size.max())
    own = batches[(batches.norm == "batch") & (batches.composition == "uniform")]
    if "fixed" not in set(own["mode"]) or images not in set(own.batch_size) or not (own.level > 0).any():
        return None
    scores = (
        clean_and_noisy(own, ["batch_size"]).set_index(["mode", "batch_size", "part", "seed"]).accuracy.sort_index()
    )
    exchanged = {part: scores["batch", images, part] for part in ("clean", "noisy")}
    against = [
        {"arm": arm, "size": size}
        | {
            part: _estimate(*stats.interval((found - scores[mode, most, part]).dropna()))
            for part, found in exchanged.items()
        }
        for arm, mode, size in (("BN fixed", "fixed", None), ("BN-batch", "batch", most))
    ]
    return {
        "images": images,
        "seeds": int(own.seed.nunique()),
        "accuracy": {part: percent(found.mean()) for part, found in exchanged.items()},
        "against": against,
    }


def _ablation_numbers(table: pd.DataFrame) -> list[dict]:
    """A row an ablation and value, in the order of the table: accuracy of its arms, clean and noisy, means over its seeds."""
    table = table.assign(value=table.value.astype(str))
    scores = stats.by_arm(clean_and_noisy(table, ["ablation", "value"]), ["part", "ablation", "value"], "accuracy")
    return [
        {
            "ablation": ablation,
            "value": value,
            "seeds": int(table[table.ablation == ablation].seed.nunique()),
            "arms": {
                arm: {row.part: percent(row.accuracy) for row in rows.itertuples()}
                for arm, rows in scores[(scores.ablation == ablation) & (scores.value == value)].groupby(
                    "arm", sort=False
                )
            },
        }
        for ablation, value in table[["ablation", "value"]].drop_duplicates().itertuples(index=False)
    ]


def _best_groups(table: pd.DataFrame, num_groups: int) -> dict | None:
    """The K that is most accurate under noise at the fixed batch, LN batch, against the experiment's own and against BN-batch.

    Args:
        table: an experiment's ablations.
        num_groups: K of the experiment.

    Returns:
        best, tried (the values of K) and seeds; against: a row an opponent with `arm` and the differences `clean` and `noisy` in points
        with their intervals. K = 1 is BatchNorm and not asked. None with fewer than two K.
    """
    batch = table[table["mode"] == "batch"]
    varied = batch[(batch.ablation == "groups at fixed batch") & (batch.value.astype(str) != "1")]
    if varied.value.nunique() < 2:
        return None
    scores = clean_and_noisy(varied, ["value"]).set_index(["value", "part", "seed"]).accuracy
    best = scores[:, "noisy"].groupby("value").mean().idxmax()
    own = scores[best]
    opponents = {}
    if (released := varied.value[varied.value.astype(int) == num_groups]).size and released.iloc[0] != best:
        opponents[f"K = {num_groups}"] = scores[released.iloc[0]]
    plain = batch[(batch.ablation == "norm") & (batch.norm == "batch")]
    if not plain.empty:
        opponents["BN-batch"] = clean_and_noisy(plain, []).set_index(["part", "seed"]).accuracy
    differences = {arm: (own - other).dropna() for arm, other in opponents.items()}
    return {
        "best": int(best),
        "tried": ", ".join(map(str, sorted(varied.value.astype(int).unique()))),
        "seeds": int(varied.seed.nunique()),
        "against": [
            {"arm": arm} | {part: _estimate(*stats.interval(found[part])) for part in ("clean", "noisy")}
            for arm, found in differences.items()
        ],
    }


def _shared_affine(table: pd.DataFrame, num_groups: int) -> dict | None:
    """Ghost BatchNorm, LocalNorm's groups under one (gamma, beta), in batches: what groups bring to BN-batch, and own affines to groups.

    Args:
        table: an experiment's ablations.
        num_groups: K of the experiment, at which both are.

    Returns:
        groups (GBN batch less BN-batch) and affines (LN batch less GBN batch), each with the differences `clean` and `noisy` in points with
        their intervals; seeds. None where one of the three was not trained.
    """
    batch = table[table["mode"] == "batch"].astype({"value": str})
    norms = batch[batch.ablation == "norm"]
    rows = {
        "LN batch": batch[(batch.ablation == "groups at fixed batch") & (batch.value == str(num_groups))],
        "GBN batch": norms[norms.norm == "ghost"],
        "BN-batch": norms[norms.norm == "batch"],
    }
    if any(of_arm.empty for of_arm in rows.values()):
        return None
    scores = {arm: clean_and_noisy(of_arm, []).set_index(["part", "seed"]).accuracy for arm, of_arm in rows.items()}
    differences = {
        "groups": (scores["GBN batch"] - scores["BN-batch"]).dropna(),
        "affines": (scores["LN batch"] - scores["GBN batch"]).dropna(),
    }
    return {"seeds": int(rows["GBN batch"].seed.nunique())} | {
        what: {part: _estimate(*stats.interval(found[part])) for part in ("clean", "noisy")}
        for what, found in differences.items()
    }


def _full_length(table: pd.DataFrame, sweep: pd.DataFrame, num_groups: int) -> list[dict]:
    """LocalNorm with another K, trained and scored like the experiment's own networks, against those of the same seeds.

    Args:
        table: an experiment's ablations.
        sweep: the sweep of its own networks.
        num_groups: K of these.

    Returns:
        A row a K and mode, those of LN that the ablation "groups at full length" has: groups (K), arm, seeds (those that the sweep has
        too, and no others count); accuracy: part -> percent; against: a row an opponent that was scored on the same images, LN in the same
        mode, BN in the same mode and BN fixed, with `arm` and the differences `clean` and `noisy` in points with their intervals.
    """
    rows = table[(table.ablation == FULL_LENGTH) & table.seed.isin(sweep.seed)]
    made = []
    for (value, mode), scored in rows.groupby(["value", "mode"], sort=False):
        scores = clean_and_noisy(scored, []).set_index(["part", "seed"]).accuracy
        differences = {}
        for norm, other in (("local", mode), ("batch", mode), ("batch", "fixed")):
            opponent = sweep[(sweep.norm == norm) & (sweep["mode"] == other)]
            if set(opponent.images) == set(scored.images):
                arm = ARMS[norm, other] + (f", K = {num_groups}" if norm == "local" else "")
                differences[arm] = (
                    scores - clean_and_noisy(opponent, []).set_index(["part", "seed"]).accuracy
                ).dropna()
        made.append(
            {
                "groups": int(value),
                "arm": ARMS["local", mode],
                "seeds": int(scored.seed.nunique()),
                "accuracy": {part: percent(scores[part].mean()) for part in ("clean", "noisy")},
                "against": [
                    {"arm": arm} | {part: _estimate(*stats.interval(found[part])) for part in ("clean", "noisy")}
                    for arm, found in differences.items()
                ],
            }
        )
    return made


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"  # -0.0 is below zero, by less than what is shown


def _estimate(value: float, low: float, high: float, form: Callable[[float], str] = _signed) -> str:
    return form(value) if np.isnan(low) else f"{form(value)} [{form(low)}, {form(high)}]"


def _claim_numbers(row) -> dict:
    form = "{:.2f}".format if row.part == "largest ratio" else _signed  # a multiple, or points of accuracy
    over_images = None if np.isnan(row.over_images) else f"{100 * row.over_images:.1f}"
    return {
        "claim": row.claim,
        "what": row.what,
        "first": row.first,
        "second": row.second,
        "part": row.part,
        "seeds": int(row.seeds),
        "text": _estimate(row.estimate, row.low, row.high, form),
        "over_images": over_images,
        "p": None if np.isnan(row.p) else f"{row.p:.3f}",
        "verdict": row.verdict,
    }


def estimate_text(row: dict) -> str:
    """The estimate of a row of the claims with its unit: a difference, which has a sign, is in points of accuracy."""
    return row["text"] + (" points" if row["text"][0] in "+-" else "")


def latex_numbers(numbers: dict) -> str:
    r"""A command a number and a caption: \LNdigitssmallLNbatchclean, \LNcaptiongroups (LaTeX names hold letters only)."""
    lines = ["% generated by the stage `numbers`; do not edit"]
    for name, experiment in numbers["experiments"].items():
        for arm, values in experiment["arms"].items():
            for part, text in values["text"].items():
                lines.append(f"\\newcommand{{\\LN{_letters(name)}{_letters(arm)}{part}}}{{{_latex(text)}}}")
        lines.append(f"\\newcommand{{\\LN{_letters(name)}source}}{{{_latex(experiment['source'])}}}")
    for name, caption in numbers["figures"].items():
        lines.append(f"\\newcommand{{\\LNcaption{_letters(name)}}}{{{_latex(caption)}}}")
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    """Plain text as LaTeX sets it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "%&$#_{}" else letter) for letter in text)


def _letters(text: str) -> str:
    digits = dict(
        zip("0123456789", ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), strict=True)
    )
    return "".join(digits.get(letter, letter) for letter in text if letter.isalnum())


def write_latex_tables(numbers: dict) -> None:
    """Write paper/tables/summary-<experiment>.tex and claims.tex, booktabs tables; claims go on over pages (longtable)."""
    for name, experiment in numbers["experiments"].items():
        rows = [[arm, values["text"]["clean"], values["text"]["noisy"]] for arm, values in experiment["arms"].items()]
        _write_latex_table(f"summary-{name}", "lrr", ["Arm", "Clean (%)", "Noisy (%)"], rows)
    rows = [
        [
            claim["claim"],
            row["on"],
            row["first"],
            row["second"],
            row["part"],
            row["text"],
            f"{row['over_images']}" if row["over_images"] else "--",
            row["p"] or "--",
            row["verdict"],
        ]
        for claim in numbers["claims"]
        for row in claim["results"]
    ]
    untested = [[claim["claim"], *[""] * 7, "not tested here"] for claim in numbers["claims"] if not claim["results"]]
    header = ["Claim", "On", "First", "Second", "Part", "Estimate", "Images (±)", "p", "Verdict"]
    _write_latex_table("claims", "lllllrrrl", header, rows + untested, long=True)


def _write_latex_table(name: str, columns: str, header: list[str], rows: list[list[str]], long: bool = False) -> None:
    environment = "longtable" if long else "tabular"
    header, *body = (" & ".join(map(_latex, row)) + r" \\" for row in (header, *rows))
    lines = [
        "% generated by the stage `numbers`; do not edit",
        f"\\begin{{{environment}}}{{{columns}}}",
        r"\toprule",
        header,
        r"\midrule",
        *([r"\endhead"] if long else []),  # the lines above stand on every page
        *body,
        r"\bottomrule",
        f"\\end{{{environment}}}",
    ]
    paths.write(paths.paper() / "tables" / f"{name}.tex", "\n".join(lines) + "\n")


README_MARKS = "<!-- results: written by `python -m localnorm.numbers --readme` -->", "<!-- /results -->"


def readme_table(numbers: dict) -> str:
    """The README's results: every arm on every data set side by side, what was measured, then the verdicts."""
    experiments = numbers["experiments"]
    lines = _arms_table(numbers)
    for name, experiment in experiments.items():
        training, (_, height, width) = experiment["training"], experiment["about"]["shape"]
        lines.append(
            f"- **{experiment['label']}**: `{training['model']}`, {training['epochs']} epochs, {seed_count(training['seeds'])}, "
            f"{experiment['test_images']} test images of {width} x {height} pixels, each noise at {experiment['levels']} levels above 0; "
            f"training accuracy in the last epoch {_training_accuracy(training)}; {training['device']}: "
            f"[figure](paper/figures/accuracy-{name}.pdf), "
            f"[notebook](notebooks/figure-accuracy.ipynb), stage `report@{name}`"
        )
    return "\n".join([*lines, "", *_verdict_table(numbers, ours=False), *_verdict_table(numbers, ours=True)])


def _training_accuracy(training: dict) -> str:
    """ "BN 97.0, LN 84.1 %": whether an arm was still behind on the images that it was trained on."""
    return ", ".join(f"{network} {accuracy['train']}" for network, accuracy in training["accuracy"].items()) + " %"


def _arms_table(numbers: dict) -> list[str]:
    """A row an arm, a column an experiment; the last row is what LocalNorm itself adds, which is the claim "control"."""
    experiments = numbers["experiments"].values()
    heads = [f"{experiment['label']}: clean<br>noisy" for experiment in experiments]
    lines = [f"| arm | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    fewer = False
    for arm in dict.fromkeys(arm for experiment in experiments for arm in experiment["arms"]):
        cells = []
        for experiment in experiments:
            arms = experiment["arms"]
            others = arm in arms and arms[arm]["images"] != next(iter(arms.values()))["images"]
            mark = " †" * others + " ‡" * (arm in experiment["constant"])
            fewer |= others
            text = arms[arm]["text"] if arm in arms else None
            cells.append(f"{text['clean']}{mark}<br>{text['noisy']}{mark}" if text else "not run")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    control = [row for claim in numbers["claims"] if claim["claim"] == "control" for row in claim["results"]]
    added = {row["on"]: f"{row['text']}: **{row['verdict']}**" for row in control}
    if added:
        cells = [added.get(experiment["label"], "not tested here") for experiment in experiments]
        lines.append(f"| *What LocalNorm itself adds: LN batch - BN-batch, noisy, points* | {' | '.join(cells)} |")
    notes = []
    if fewer:
        notes.append(
            "† Of fewer images than the other rows, which moves it by several points; verdicts compare on the images that both arms have."
        )
    if any(experiment["constant"] for experiment in experiments):
        notes.append(
            f"‡ One class for at least {ONE_CLASS:.0%} of all images, in every seed: the accuracy is little but that class's share of them."
        )
    return [*lines, "", *(line for note in notes for line in (note, ""))]


def _verdict_table(numbers: dict, ours: bool) -> list[str]:
    """A row a claim and what it is against, a column an experiment; the claims on costs, which have no experiment, in lines below.

    Args:
        ours: of the arms that are this package's, not of the original's; then a claim that has none is left out.
    """
    experiments = numbers["experiments"].values()
    titles = [experiment["label"] for experiment in experiments]
    heads = [
        f"{experiment['label']}, {seed_count(count)}{'' if count >= stats.ENOUGH_SEEDS else ' (provisional)'}"
        for experiment in experiments
        for count in [experiment["training"]["seeds"]]
    ]
    table = [f"| {'of what is ours' if ours else 'claim'} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    below = []
    for claim in numbers["claims"]:
        rows = [row for row in claim["verdicts"] if row["ours"] is ours]
        if not rows and (ours or claim["verdicts"]):
            continue
        for row in rows or [{"against": "", "found": {}}]:
            found = row["found"]
            said = f"**{claim['claim']}** {claim['statement']}{_own_seeds(claim, numbers)}"
            if row["against"]:
                against = f"*Against {row['against']}:*"
                said = f"{said} {against}" if row is rows[0] else against
            if not found or set(found) & set(titles):
                table.append(f"| {said} | {' | '.join(_verdicts_text(found.get(title, {})) for title in titles)} |")
            else:
                below.append(f"- {said} " + "; ".join(f"`{on}` {_verdicts_text(each)}" for on, each in found.items()))
    if ours and len(table) == 2:
        return []
    return [*table, "", *below, ""] if below else [*table, ""]


def _own_seeds(claim: dict, numbers: dict) -> str:
    """Where a claim is of other networks than the sweeps' (the ablations'), how many seeds these have."""
    training = {name: experiment["training"]["seeds"] for name, experiment in numbers["experiments"].items()}
    of_sweeps = {row["on"]: training.get(row["experiment"]) for row in claim["results"]}
    own = {row["on"]: row.get("seeds", of_sweeps[row["on"]]) for row in claim["results"]}
    if own == of_sweeps:
        return ""
    return f" (Networks of the ablations: {', '.join(f'{on} {seed_count(count)}' for on, count in own.items())}.)"


def _verdicts_text(verdicts: dict[str, list[str]]) -> str:
    """{"holds": ["noisy"], "undecided": ["clean"]} -> "**holds**: noisy; **undecided**: clean"."""
    return "; ".join(f"**{verdict}**: {', '.join(of)}" for verdict, of in verdicts.items()) or "not tested here"


def write_readme() -> None:
    """Put the current table between the marks of README.md."""
    readme = paths.project() / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(README_MARKS[0])
    after = rest.partition(README_MARKS[1])[2]
    numbers = json.loads((paths.paper() / "numbers.json").read_text(encoding="utf-8"))
    paths.write(readme, f"{before}{README_MARKS[0]}\n{readme_table(numbers)}{README_MARKS[1]}{after}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.numbers", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--readme", action="store_true", required=True, help="write the tables of paper/numbers.json into README.md"
    )
    parser.parse_args(arguments)
    write_readme()


if __name__ == "__main__":
    main()
