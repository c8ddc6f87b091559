"""The demonstration among the web pages: published networks that answer in the browser, to an image of the reader's own.

Networks become ONNX files, which onnxruntime-web runs. A page that is opened from a folder may fetch no files, so networks and
runtime lie beside it as scripts that hold their bytes as text. The runtime comes from npm when the pages are made.
"""

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from localnorm import paths
from localnorm.arms import LAYERS, METRICS, NETWORKS
from localnorm.data.dataset import load
from localnorm.eval_mode import set_eval_mode
from localnorm.noise import noises
from localnorm.published_networks import PLACE, PublishedNetwork, load_published
from localnorm.trained import class_title, published_pairs
from localnorm.words import percent

__all__ = ["NoDemonstration", "to_onnx", "write_demo"]

# (network, whether with the training set's statistics alone, label, text)
ARMS = (
    ("bn", True, "BN fixed", "BatchNorm as usual: statistics of the training images."),
    ("bn", False, "BN prior", "The control, the same network: statistics of this image, shrunk towards those of the training images."),
    ("ln", False, "LN prior", "Ours: LocalNorm, with statistics as in the control."),
)  # fmt: skip
NOISES = ("gaussian", "brightness", "contrast", "gamma", "haze")  # of the named suite; their formulas stand in demo.js
EXAMPLES = 6  # images on the page
RUNTIME = "onnxruntime-web@1.30.0"
CHECKSUM = (  # SHA-512 of its archive
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
RUNTIME_FILES = {  # name beside the page -> in the archive
    "runtime": "package/dist/ort.wasm.min.js",
    "runtime-module": "package/dist/ort-wasm-simd-threaded.mjs",
    "runtime-wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}
NPM_SECONDS = 300  # at most, for 33 MB


class NoDemonstration(Exception):
    """Why the pages have no demonstration, in one line."""


def write_demo(folder: Path) -> str:
    """Write what the demonstration needs to folder/demo: every data set with a published BN prior and LN prior.

    Returns:
        The body of its page.

    Raises:
        NoDemonstration: no such pair is published, npm is not here or cannot get the runtime, or a package for the export is missing.
    """
    # of this project alone: elsewhere `published` offers the networks of the checkout that the package runs from
    pairs = published_pairs() if any((paths.project() / PLACE).glob("*.safetensors")) else []
    if not pairs:
        raise NoDemonstration(
            f"{PLACE} has no two files <experiment>-bn-prior.safetensors and <experiment>-ln-prior.safetensors"
        )
    files = _runtime()
    target = folder / "demo"
    paths.write(target / "runtime.js", files.pop("runtime"))
    for name, content in files.items():
        paths.write(target / f"{name}.js", _as_script(name, content))
    data = [_write_pair(name, target) for name in pairs]
    settings = {"data": data, "noises": _noises()}
    paths.write(target / "settings.js", f"const SETTINGS = {json.dumps(settings)};\n")
    pages = resources.files("localnorm.render") / "pages"
    paths.write(target / "demo.js", (pages / "demo.js").read_text(encoding="utf-8"))
    return (pages / "demo.html").read_text(encoding="utf-8")


def to_onnx(network: PublishedNetwork) -> bytes:
    """A published network as an ONNX file that takes one image as it is.

    Its input "pixels" is (1, C, H, W) float32 in 0 ... 255, its output "probabilities" (1, num_classes). The statistics are those
    that the network is set to.

    Raises:
        NoDemonstration: onnx or onnxscript is not installed.
    """
    images = torch.full((1, *network.shape), 128.0)
    try:
        program = torch.onnx.export(
            _FromPixels(network).eval(),
            (images,),
            dynamo=True,
            input_names=["pixels"],
            output_names=["probabilities"],
            verbose=False,
        )
    except ModuleNotFoundError as error:
        raise NoDemonstration(f"the export needs {error.name}; pip install {error.name}") from error
    return program.model_proto.SerializeToString()


class _FromPixels(nn.Module):
    """A network with what stands before it and after it: standardising, and the softmax."""

    def __init__(self, network: PublishedNetwork):
        super().__init__()
        self.model = network.model
        self.register_buffer("mean", torch.tensor(network.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(network.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std).softmax(1)


def _write_pair(name: str, target: Path) -> dict:
    """Write the networks of one data set; what the page has to know of them."""
    arms = []
    for layer, fixed, label, text in ARMS:
        network = load_published(f"{name}-{layer}-prior")
        if fixed:
            set_eval_mode(network.model, "fixed")
        file = f"{name}-{label.lower().replace(' ', '-')}"
        paths.write(target / f"{file}.js", _as_script(file, to_onnx(network)))
        arms.append({"file": file, "label": label, "text": text, "ours": layer == "ln"})
    return {
        "title": network.data,
        "classes": [class_title(each) for each in network.classes],
        "shape": [network.shape[0], network.shape[-1]],
        "arms": arms,
        "examples": _examples(network),
        "about": _about([load_published(f"{name}-bn-prior"), network]),
    }


def _as_script(name: str, content: bytes) -> str:
    """Bytes as a script that hands them to the page; unpacked, a megabyte of rounded weights is two."""
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    return f'received("{name}", "{packed}");\n'


def _noises() -> dict[str, dict]:
    """What the menu offers: name -> label, levels and their unit."""
    known = noises("named")
    offered = {"none": {"label": "none", "levels": [0], "unit": ""}}
    for name in NOISES:
        offered[name] = {"label": known[name].label, "levels": known[name].levels, "unit": known[name].unit}
    return offered


def _about(networks: list[PublishedNetwork]) -> str:
    """A paragraph on the networks of a data set, with the accuracies that their files state."""
    network = networks[0]
    data, side = network.about["data"], network.shape[-1]
    scored = [
        f"{each.arm} {' and '.join(f'{percent(share)} % ({METRICS[metric].label})' for metric, share in each.accuracy.items())}"
        for each in networks
    ]
    built = " and ".join(LAYERS[NETWORKS[each.about["network"]["network"]].layer] for each in networks)
    name, images = (
        escape(network.about["network"]["name"]),
        f"{data['counts']['train']:,} images of {escape(network.data)}",
    )
    return (
        f"<h2>The networks</h2><p>{name} with {built}, trained on {images}, {side} x {side} pixels, in {len(network.classes)} classes: "
        f"whatever you show them, they name one of these. Accuracy on its test images: {escape('; '.join(scored))}.</p>"
        "<p>Your image is cut to the square in its middle and resized as the training images were. Noise acts on pixels from 0 to 1, "
        f"and its draw is the same at every level.</p><p class='note'>{escape(network.licence)}. The page runs {RUNTIME.replace('@', ' ')} "
        "(MIT), on one thread.</p>"
    )


def _examples(network: PublishedNetwork) -> list[dict]:
    """The first test images of different classes where the network's images are prepared here, else scikit-learn's two photographs."""
    dataset = _prepared(network)
    if dataset is None:
        return [{"image": _png(photograph), "truth": None} for photograph in load_sample_images().images]
    labels = dataset.labels("test").numpy()
    _, first = np.unique(labels, return_index=True)
    images = dataset.images("test")
    return [
        {
            "image": _png(images[i].numpy().transpose(1, 2, 0).squeeze()),
            "truth": class_title(network.classes[labels[i]]),
        }
        for i in sorted(first)[:EXAMPLES]
    ]


def _prepared(network: PublishedNetwork):
    """The data set that a network was trained on, of whichever experiment here; None where it is not prepared."""
    wanted = network.about["data"]
    for folder in sorted((paths.project() / "data" / "prepared").glob("*/")):
        try:
            dataset = load(folder)
        except (FileNotFoundError, ValueError):
            continue  # half prepared, or of another version
        same = all(dataset.provenance[key] == wanted["provenance"][key] for key in ("checksum", "split"))
        if same and dataset.shape == network.shape:
            return dataset
    return None


def _png(pixels: np.ndarray) -> str:
    """Pixels (H, W) or (H, W, 3) as the address of an image that stands in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _runtime() -> dict[str, bytes]:
    """The files of onnxruntime-web, by npm from its cache or the registry that it is set to."""
    npm = shutil.which("npm")
    if npm is None:
        raise NoDemonstration(f"npm, which gets {RUNTIME}, is not here; install Node.js")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", RUNTIME, "--silent", "--prefer-offline", "--ignore-scripts", "--fetch-retries=1"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=NPM_SECONDS)
        except (OSError, subprocess.SubprocessError):
            raise NoDemonstration(f"npm could not get {RUNTIME}; try: npm pack {RUNTIME}") from None
        (archive,) = Path(folder).glob("*.tgz")
        content = archive.read_bytes()
    if (got := hashlib.sha512(content).hexdigest()) != CHECKSUM:
        raise NoDemonstration(
            f"npm gave another {RUNTIME} than is expected: SHA-512 {got[:12]}... instead of {CHECKSUM[:12]}..."
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        return {name: opened.extractfile(member).read() for name, member in RUNTIME_FILES.items()}
