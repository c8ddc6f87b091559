"""Types: a type checker reads the public signatures as a user's editor does, and finds the mistakes that users make."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

import localnorm

pytest.importorskip("mypy")

# A line that ends in "type: ignore" is a mistake; the checker fails where it does not find it.
SCRIPT = """
from typing import assert_type

import torch
from torch import Tensor, nn

from localnorm import (
    LocalNorm1d, LocalNorm2d, LocalNorm3d, LocalNormAct2d, Predictor, __version__, choose_prior,
    convert_state_dict, convert_to_batchnorm, convert_to_localnorm, estimate_statistics, learn_spread, load_published, majority_vote,
    param_groups, predict, published, set_eval_mode, use_mode,
)
from localnorm.published_networks import PublishedNetwork

images = torch.zeros(8, 3, 32, 32)
layer = LocalNorm2d(16, num_groups=4, assignment="contiguous", device="cpu", dtype=torch.float32)
net = nn.Sequential(nn.Conv2d(3, 16, 3), layer, LocalNormAct2d(16, 4, act=nn.ReLU()))
LocalNorm2d("16")  # type: ignore[arg-type]
LocalNorm1d(16, groups=4)  # type: ignore[call-arg]
LocalNorm3d(16, momentum=None)

assert_type(convert_to_localnorm(net, 4, exclude=["1"], inplace=True), nn.Module)
assert_type(convert_to_batchnorm(net, [images]), nn.Module)
assert_type(convert_state_dict(net.state_dict(), net), dict[str, Tensor])
assert_type(set_eval_mode(net, "prior", prior=512), nn.Module)
assert_type(predict(net, images, "companions", companions=images), Tensor)
assert_type(Predictor(net, "single")(images), Tensor)
assert_type(majority_vote(predict(net, images, "vote", return_members=True)), Tensor)
predict(net, images, prior="512")  # type: ignore[arg-type]
set_eval_mode(net, 512)  # type: ignore[arg-type]
estimate_statistics(net, images=images)  # type: ignore[call-arg]
learn_spread(net, [images])
learn_spread(net, 512)  # type: ignore[arg-type]
assert_type(choose_prior(net, images, torch.zeros(8), [images], candidates=[4, 16]), float)
choose_prior(net, images, torch.zeros(8))  # type: ignore[call-arg]
torch.optim.SGD(param_groups(net, weight_decay=1e-4), lr=0.1)
with use_mode("batch", group_size=2):
    net(images)
with use_mode(mode=1):  # type: ignore[arg-type]
    pass

network = load_published("cifar10-resnet32-bn-prior")
assert_type(network, PublishedNetwork)
assert_type(network.standardise(images), Tensor)
assert_type(network.classes, tuple[str, ...])
assert_type(published(), dict[str, str])
assert_type(__version__, str)
"""


def test_a_users_calls_have_the_types_that_the_signatures_say_and_mistakes_are_found(tmp_path):
    script = tmp_path / "theirs.py"
    script.write_text(SCRIPT)
    # found on the path, as an installed package is: so py.typed is needed, and errors inside the package are not theirs
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in SCRIPT for name in localnorm.__all__), "every public name is used"
