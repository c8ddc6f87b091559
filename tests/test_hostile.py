"""Input that is broken or meant to harm: each ends in the package's own error, which names what was wrong, or in a right result.

Archives have tests of their own (test_archives), and so has what a web server may do (test_fetch).
"""

import io
import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import ROOT
from data_fixtures import enter_project, image_files, picture, write_container
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from localnorm.checks import check_params
from localnorm.data import load, prepare, readers
from localnorm.data.images import to_pixels
from localnorm.models import load_model, make_model, save_model
from localnorm.params import grid

FUZZ = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------------------------ images


def encoded(format: str, mode: str, frames: int = 1) -> bytes:
    pixels = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 11, 3), np.uint8)).convert(mode)
        for i in range(frames)
    ]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pixels[1:]} if frames > 1 else {}
    pixels[0].save(buffer, format, **more)
    return buffer.getvalue()


IMAGES = {
    f"{format} {mode} {frames}": encoded(format, mode, frames)
    for format, mode, frames in (
        *(("PNG", mode, 1) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(("JPEG", mode, 1) for mode in ("L", "RGB", "CMYK")),
        *(("TIFF", mode, 1) for mode in ("1", "L", "RGB", "CMYK", "YCbCr")),
        *((format, "RGB", 1) for format in ("BMP", "PPM", "WEBP")),
        *((format, "RGB", 3) for format in ("GIF", "PNG", "WEBP", "TIFF")),
    )
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_becomes_pixels_of_its_first_frame(name, channels):
    pixels = to_pixels(IMAGES[name], "cat.img", None, channels)
    assert pixels.shape == (channels, 9, 11)
    assert pixels.dtype == np.uint8
    if name in ("PNG RGB 1", "PNG RGB 3", "BMP RGB 1", "PPM RGB 1", "TIFF RGB 3") and channels == 3:
        expected = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
        np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@FUZZ
@given(
    name=st.sampled_from(sorted(IMAGES)),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
@example(name="PNG RGB 1", keep=0, flips=[])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_refused_by_name_or_has_its_size(name, keep, flips):
    data = bytearray(IMAGES[name][: round(keep * len(IMAGES[name]))])
    for place, value in flips:
        if data:
            data[int(place * len(data))] = value
    try:
        pixels = to_pixels(bytes(data), "cat.img", 8, 3)
    except ValueError as error:
        assert "cat.img" in str(error)  # noqa: PT017 (a refusal is one of two right ends)
    else:
        assert pixels.shape == (3, 8, 8)
        assert pixels.dtype == np.uint8


def test_a_header_of_a_few_bytes_that_claims_millions_of_rows_is_refused_undecoded():
    data = bytearray(IMAGES["WEBP RGB 3"])
    assert data[12:16] == b"VP8X"
    data[27:30] = (7_000_000).to_bytes(3, "little")  # the canvas' height less one
    with pytest.raises(ValueError, match=r"cat\.img is refused: 11 x 7000001 pixels, at most .* 65,535 a side"):
        to_pixels(bytes(data), "cat.img", 8, 3)


# --------------------------------------------------------------------------------------------------- names, parquet, archives

NAMES = [
    "with space.png",
    'it\'s "quoted".png',
    "new\nline.png",
    "ünïcødé 猫.png",
    "$(touch gone).png",
    "-rf.png",
    "%s{0}.png",
]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_odd_file_and_class_names_arrive_as_they_are(raw, tmp_path, kind):
    files = {f"train/a class, 'b' ü/{name}": picture(i) for i, name in enumerate(NAMES)} | image_files(classes=2)
    write_container(raw / "odd", kind, files)
    dataset = load(prepare("odd", tmp_path / "an out 'put' ü"))
    assert "a class, 'b' ü" in dataset.classes
    rows = pd.read_csv(dataset.folder / "split.csv")
    assert {f"train/a class, 'b' ü/{name}" for name in NAMES} <= set(rows.name)
    assert not (tmp_path / "gone").exists()


COLUMNS = {
    "label": [
        [0, 1, 0],
        [0, 1, None],
        ["cat", "dog", "cat"],
        [0.5, 1.0, 2.0],
        [-1, 0, 1],
        [[0], [1], [0]],
        [2**40, 0, 1],
    ],
    "image": [
        [{"bytes": picture(i), "path": None} for i in range(3)],
        [{"bytes": b"", "path": ""}] * 3,
        [{"bytes": None, "path": "1.png"}] * 3,
        [{"path": "1.png"}] * 3,
        [b"1", b"2", b"3"],
        [1, 2, 3],
        [None, None, None],
    ],
}


@FUZZ
@given(
    label=st.sampled_from(COLUMNS["label"]),
    image=st.sampled_from(COLUMNS["image"]),
    rename=st.sampled_from([{}, {"label": "labels"}, {"image": "picture"}, {"image": "img"}]),
    metadata=st.sampled_from(
        [None, b"", b"{}", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"names": 7}}}}']
    ),
    name=st.sampled_from(["train-0.parquet", "other-0.parquet", "train.parquet"]),
)
def test_parquet_with_other_columns_is_read_or_refused_by_name(tmp_path_factory, label, image, rename, metadata, name):
    path = tmp_path_factory.mktemp("parquet") / name
    columns = {rename.get(key, key): value for key, value in (("image", image), ("label", label))}
    table = pyarrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, path)
    try:
        listing = readers.read_parquet([path])
        pixels = [to_pixels(data, "row", 8, 3) for _, data in listing.stream(range(3))]
    except ValueError as error:
        assert name in str(error) or "row" in str(error)  # noqa: PT017 (a refusal is one of two right ends)
    else:
        assert len(pixels) == 3
        assert all(type(each) is int and each >= 0 for each in listing.labels)  # prepare compares them with the classes


def test_parquet_without_rows_is_refused(tmp_path):
    path = tmp_path / "train-0.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"image": pyarrow.array([], pyarrow.binary()), "label": pyarrow.array([], "int64")}), path
    )
    with pytest.raises(ValueError, match=r"train-0\.parquet"):
        readers.read_parquet([path])


# ---------------------------------------------------------------------------------------- params.yaml, as people mistype it


def write_params(folder: Path, text: str) -> None:
    (folder / "dvc.yaml").touch()
    (folder / "params.yaml").write_text(text)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["", "1e-3", "bn", "small", "../up", "a b", "ü"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["bn", "named", "flip", 3, ""]), inner, max_size=2)
    ),
    max_leaves=4,
)
EVERYTHING = yaml.safe_load((ROOT / "params.yaml").read_text())
DIGITS = {key: block for key, block in EVERYTHING["digits-small"].items() if key != "networks"}
PARAMS = {
    "experiments": ["digits-small"],
    "networks": EVERYTHING["digits-small"]["networks"],
    "seeds": EVERYTHING["seeds"],
    "digits-small": DIGITS,
}
PLACES = [
    *([key] for key in ("experiments", "networks", "seeds", "digits-small")),
    *(["digits-small", stage] for stage in PARAMS["digits-small"]),
    *(["digits-small", stage, key] for stage, block in PARAMS["digits-small"].items() for key in block),
]


@FUZZ
@given(place=st.sampled_from(PLACES), value=VALUES)
@example(place=["seeds"], value=[True])
@example(place=["experiments"], value=["digits-small; touch gone"])
@example(place=["digits-small", "answers", "statistics"], value=3)
@example(place=["digits-small", "answers", "statistics"], value={"ln": [""]})
@example(place=["digits-small", "answers", "noises"], value={"named": [""]})
@example(place=["digits-small", "answers", "noises"], value={"batch": [""]})
@example(place=["digits-small", "answers", "prior_noises"], value={"named": {"gaussian_multiplicative": -1}})
@example(place=["digits-small", "ablations", "noises"], value={"named": [""]})
@example(place=["digits-small", "ablations", "networks"], value=[""])
@example(place=["digits-small", "train", "augment"], value=[1])
@example(place=["digits-small", "answers", "streams"], value=[])
@example(place=["digits-small", "answers", "streams"], value={"sizes": [1], "conditions": 3, "images": 8})
@example(place=["digits-small", "answers", "prior"], value="1e-3")
@example(place=["digits-small", "train", "learning_rate"], value=10**400)
@example(place=["digits-small", "train", "batch_size"], value=10**400)
def test_a_mistyped_value_in_params_is_accepted_or_refused_by_name(tmp_path, monkeypatch, place, value):
    params = deepcopy(PARAMS)
    *way, last = place
    inner = params
    for key in way:
        inner = inner[key]
    inner[last] = value
    write_params(tmp_path, yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    try:
        check_params()
    except ValueError as error:
        assert "params.yaml" in str(error)  # noqa: PT017 (a refusal is one of two right ends)
        assert str(last) in str(error) or len(place) < 3  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments: [", "params.yaml is not YAML"),
        ("", "params.yaml must map names to values, it is NoneType"),
        ("- a", "params.yaml must map names to values, it is list"),
        ("!!python/object/apply:os.system [touch gone]", "params.yaml is not YAML"),
        (
            "experiments: [a]\nnetworks: [bn]\nseeds: [0]\nablated: [b]",
            r"ablated must be a list of experiments, empty for none, got \['b'\]",
        ),
        (
            "experiments: [a]\nnetworks: [bn]\nseeds: [0]\nablated: [a]",
            "a is in the list ablated and has no block ablations",
        ),
        ("experiments: digits-small", "experiments must be a list, each text, none of them twice, got 'digits-small'"),
        ("experiments: [a]\nnetworks: [layer]\nseeds: [0]", "layer.*bn, ln"),
        (
            "experiments: [a]\nnetworks: [bn]\nseeds: [0, 0]",
            "seeds must be a list, each a whole number, none of them twice",
        ),
        ("experiments: ['a; b']\nnetworks: [bn]\nseeds: [0]", "an experiment's name is letters, digits"),
    ],
)
def test_a_params_file_of_the_wrong_form_says_which_is_right(tmp_path, monkeypatch, text, message):
    write_params(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_params()
    assert not (tmp_path / "gone").exists()


def test_a_network_that_no_statistics_are_named_for_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, yaml.safe_dump(PARAMS | {"networks": ["bn", "ln", "gn"]}))
    with pytest.raises(ValueError, match=r"digits-small.*networks lists gn.*`gn: \[own\]`"):
        check_params()
    params = deepcopy(PARAMS) | {"networks": ["bn", "ln", "gn"]}
    params["digits-small"]["answers"]["statistics"]["gn"] = ["own"]
    write_params(tmp_path, yaml.safe_dump(params))
    check_params()


def test_an_experiment_may_name_some_of_the_networks_and_seeds_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = deepcopy(PARAMS)
    params["digits-small"] |= {"networks": ["bn", "ln"], "seeds": [0, 1]}
    write_params(tmp_path, yaml.safe_dump(params))
    check_params()
    assert grid("digits-small") == (["bn", "ln"], [0, 1])
    params["digits-small"]["seeds"] = [0, 99]
    write_params(tmp_path, yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"digits-small.*seeds.*99"):
        check_params()


def test_what_is_published_is_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, yaml.safe_dump(PARAMS | {"published": ["digits-large"]}))
    with pytest.raises(ValueError, match=r"published.*digits-large"):
        check_params()


# --------------------------------------------------------------------------------------------------- checkpoints of strangers


class Trap:
    def __reduce__(self):
        return (Path("gone").touch, ())


@pytest.mark.parametrize(
    "write", [lambda path: torch.save({"weight": Trap()}, path), lambda path: path.write_bytes(pickle.dumps(Trap()))]
)
def test_a_pickle_under_a_checkpoints_name_is_never_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_model(tmp_path / "model.safetensors")
    assert not (tmp_path / "gone").exists()


def test_no_module_of_the_package_loads_a_pickle_but_the_one_that_refuses_code():
    for file in (ROOT / "localnorm").rglob("*.py"):
        text = file.read_text()
        if file.name != "archives.py":
            assert "pickle.load" not in text, file
            assert "import pickle" not in text, file
        assert text.count("torch.load(") == text.count("weights_only=True)") - text.count(
            "check_hash=True, weights_only=True)"
        ), file
        assert "yaml.load(" not in text, file
        assert "allow_pickle=True" not in text, file
        assert "shell=True" not in text, file


@FUZZ
@given(data=st.data())
def test_a_damaged_network_loads_whole_or_is_refused_by_name(tmp_path, data):
    path = tmp_path / "model.safetensors"
    description = {"num_classes": 3, "in_channels": 1, "num_groups": 2}
    save_model(make_model("small", "ln", **description), path, "small", "ln", **description)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content), 900) - 1), max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([0, 7, 100, len(content) - 1, len(content)]))])
    try:
        load_model(path)
    except ValueError as error:
        assert "model.safetensors" in str(error) or "unknown" in str(error)  # noqa: PT017
