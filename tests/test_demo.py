"""The demonstration: exported networks answer as `predict` does, in onnxruntime and in a browser; without npm the other pages are whole."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_pair import publish_pair

from localnorm import noise
from localnorm.data.augment import standardise
from localnorm.data.images import to_pixels
from localnorm.prediction import predict
from localnorm.published_networks import load_published
from localnorm.render import demo
from localnorm.training_statistics import estimate_statistics

pytest.importorskip("onnxscript")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def inside(project, pair, digits):
    """A project with a published pair of digits, and their images."""
    for model in pair.values():
        estimate_statistics(model, standardise(digits.images("train")[:256], digits.mean, digits.std).split(64))
    network = {"name": "small", "num_classes": 10, "in_channels": 1, "image_size": 8, "num_groups": 4}
    publish_pair(project, "digits-small", pair, network, digits)
    (project / "data" / "prepared").mkdir()
    (project / "data" / "prepared" / "digits-small").symlink_to(digits.folder)
    return project


def expected(folder: Path, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `predict` answers to pixels in 0 ... 255, (1, C, H, W): label of an arm -> probabilities (num_classes,)."""
    answers = {}
    for layer, fixed, label, _ in demo.ARMS:
        network = load_published(folder / "data" / "networks" / f"digits-small-{layer}-prior.safetensors")
        mode = {"mode": "fixed"} if fixed else network.about["statistics"]
        answers[label] = predict(network.model, network.standardise(pixels), **mode)[0].softmax(0)
    return answers


def test_an_exported_network_answers_as_predict_does(inside, digits):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = load_published("digits-small-ln-prior")
    session = onnxruntime.InferenceSession(demo.to_onnx(network), providers=["CPUExecutionProvider"])
    for image in digits.images("test")[:5].float():
        (got,) = session.run(["probabilities"], {"pixels": image[None].numpy()})
        answer = expected(inside, image[None])["LN prior"]
        assert np.abs(got[0] - answer.numpy()).max() < 1e-4
        assert (answer - expected(inside, image[None])["BN fixed"]).abs().max() > 1e-3, (
            "another network answers otherwise"
        )


def test_the_reason_is_told_where_a_partner_is_missing_or_npm_is_not_there(inside, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(demo.NoDemonstration, match="npm"):
        demo.write_demo(tmp_path / "site")
    (inside / "data" / "networks" / "digits-small-ln-prior.safetensors").unlink()
    with pytest.raises(demo.NoDemonstration, match="<experiment>-ln-prior"):
        demo.write_demo(tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho other > some.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(demo.NoDemonstration, match="SHA-512"):
        demo._runtime()
    npm.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(demo.NoDemonstration, match="npm could not get"):
        demo._runtime()


def test_examples_are_test_images_of_different_classes_or_photographs(inside, digits):
    network = load_published("digits-small-bn-prior")
    examples = demo._examples(network)
    assert len({example["truth"] for example in examples}) == demo.EXAMPLES
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(examples[0]["image"].partition(",")[2]))))
    assert np.array_equal(first, digits.images("test")[0, 0].numpy())
    (inside / "data" / "prepared" / "digits-small").unlink()
    assert [example["truth"] for example in demo._examples(network)] == [None, None]


# ---------------------------------------------------------------------------------------------------------------- in a browser

ASK = """
<script>
"use strict";
(async () => {
  const until = async (holds) => { while (!holds()) await new Promise((resolve) => setTimeout(resolve, 50)); };
  const answersOf = (card) => [...card.querySelectorAll("li")].map((row) => [row.dataset.name, Number(row.dataset.probability)]);
  const told = async (what) => {
    await until(() => at("answers").dataset.state !== "asking");
    const answers = Object.fromEntries([...at("answers").children].map((card) => [card.querySelector("h3").textContent, answersOf(card)]));
    const { truth, pixels } = chosen;
    console.log("TOLD " + JSON.stringify({ what, answers, truth, pixels: [...pixels], said: at("message").textContent }));
  };
  await told("example");
  for (const noise of Object.keys(SETTINGS.noises)) {
    at("noise").value = noise;
    at("noise").dispatchEvent(new Event("change"));
    await told(noise);
  }
  at("noise").value = "none";
  at("noise").dispatchEvent(new Event("change"));
  const given = new DataTransfer();
  given.items.add(new File([bytesOf("PHOTOGRAPH")], "mine.png", { type: "image/png" }));
  at("file").files = given.files;
  at("file").dispatchEvent(new Event("change"));
  await until(() => chosen.blob.name === "mine.png");
  await told("own");
  const nonsense = new DataTransfer();
  nonsense.items.add(new File(["no image"], "mine.txt"));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: nonsense, cancelable: true }));
  await until(() => at("message").textContent);
  await told("nonsense");
  console.log("TOLD end");
})().catch((error) => { console.log("TOLD failed " + error); console.log("TOLD end"); });
</script>
"""


def ask_in_browser(page: Path, profile: Path) -> dict[str, dict]:
    """Open a page from its folder in headless Chromium, with no network, and read what its script tells the console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={profile}", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr"]
    log = profile.with_suffix(".log")
    with open(log, "wb") as stream:
        browser = subprocess.Popen([CHROMIUM, *flags, page.as_uri()], stdout=stream, stderr=stream)
        try:
            until = time.monotonic() + 300
            while "TOLD end" not in (text := log.read_text(errors="replace")) and time.monotonic() < until:
                time.sleep(0.2)
        finally:
            browser.terminate()
            browser.wait()
    told = [json.loads(line) for line in re.findall(r'CONSOLE.*?"TOLD (\{.*\})", source', text)]
    assert "TOLD end" in text, text[-2000:]
    assert "TOLD failed" not in text, text[-2000:]
    return {each["what"]: each for each in told}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here")
def test_in_a_browser_the_page_answers_as_predict_does(inside, digits, tmp_path):
    site = tmp_path / "a site"
    try:
        body = demo.write_demo(site)
    except demo.NoDemonstration as reason:
        if "could not get" not in str(reason):
            raise
        pytest.skip(str(reason))
    photograph = np.random.default_rng(0).integers(0, 256, (50, 62, 3)).astype(np.uint8)
    (site / "demo.html").write_text(body + ASK.replace("PHOTOGRAPH", demo._png(photograph)))
    told = ask_in_browser(site / "demo.html", tmp_path / "profile")

    for each in told.values():
        pixels = torch.tensor(each["pixels"]).reshape(1, 1, 8, 8)
        for label, probabilities in expected(inside, pixels).items():
            order = probabilities.argsort(descending=True)[:5]
            shown = each["answers"][label]
            assert len(shown) == 5, each["what"]
            assert [share for _, share in shown] == pytest.approx(probabilities[order].tolist(), abs=1e-3), each["what"]
            assert shown[0][0] == digits.classes[order[0]], each["what"]

    clean = digits.images("test")[:1].float() / 255
    assert told["example"]["truth"] == digits.classes[digits.labels("test")[0]]
    for name in demo.NOISES:
        pixels = torch.tensor(told[name]["pixels"]).reshape(1, 1, 8, 8) / 255
        levels = noise.levels(name, "named")
        level = levels[-(-len(levels) // 2)]  # the page starts in the middle
        if name == "gaussian":
            inner = (pixels > 0) & (pixels < 1)
            assert 0.3 * level < (pixels - clean)[inner].std() < 1.7 * level
        else:
            assert torch.allclose(pixels, noise.apply(clean, name, level, suite="named"), atol=1e-6), name

    middle = np.ascontiguousarray(
        photograph[:, 6:56]
    )  # a canvas cuts first; Pillow blurs a little of the outside into the edges
    wanted = to_pixels(middle, "mine", 8, 1)
    off = np.abs(np.array(told["own"]["pixels"]).reshape(1, 8, 8) - wanted)
    assert off.max() <= 1, "the page cuts and resizes as the training images were"
    assert told["own"]["truth"] is None
    assert "no image" in told["nonsense"]["said"]
    assert told["nonsense"]["pixels"] == told["own"]["pixels"]
