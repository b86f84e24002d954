"""examples/papers/likeness.py: FID and KID of sets of pictures, and distances of pairs, with networks that need no weights."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from repository import ROOT
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

LIKENESS: dict[str, Any] = runpy.run_path(str(ROOT / "examples/papers/likeness.py"))
pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
COUNT = 12


class Means(nn.Module):
    """The mean of each channel."""

    num_features = 3

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.double().mean((2, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    generator, home = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for name, level in (("painted", 90), ("real", 120)):
        (home / name).mkdir()
        for i in range(COUNT):
            pixels = generator.integers(0, level, 3) + generator.integers(0, 40, (8, 6, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(home / name / f"{i}.png")
    return home / "painted", home / "real"


def means(folder: Path) -> np.ndarray:
    return np.array([np.asarray(Image.open(path), np.float64).mean((0, 1)) for path in sorted(folder.glob("*.png"))])


def test_sets_are_compared_by_their_means_and_covariances(folders: tuple[Path, Path]) -> None:
    painted, real = (sorted(folder.glob("*.png")) for folder in folders)
    found = LIKENESS["measure_sets"](painted, real, Means())
    a, b = map(means, folders)
    covariances = [np.cov(each, rowvar=False) for each in (a, b)]
    shared = np.trace(sqrtm(covariances[0] @ covariances[1])).real
    truth = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * shared
    assert found["FID"] == pytest.approx(truth, rel=1e-4) and truth > 1
    assert LIKENESS["measure_sets"](real, real, Means())["FID"] == pytest.approx(0, abs=1e-3 * truth)
    assert found["KID"] > abs(LIKENESS["measure_sets"](real, real, Means())["KID"])


def test_pairs_are_those_of_one_name(folders: tuple[Path, Path]) -> None:
    painted, real = folders
    found = LIKENESS["measure_pairs"](sorted(painted.glob("*.png")), real, MeanSquaredError())
    pixels = [[np.asarray(Image.open(folder / f"{i}.png"), np.float64) / 255 for folder in folders] for i in range(COUNT)]
    assert found == pytest.approx(np.mean([(mine - other) ** 2 for mine, other in pixels]), rel=1e-5)


def test_folders_that_do_not_fit_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    painted, real = folders
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(real.glob("*.png"))[1:]:
        (some / path.name).write_bytes(path.read_bytes())
    for other, said in ((tmp_path, "has 0;"), (some, "has no 0.png")):
        found = CliRunner().invoke(LIKENESS["main"], [str(painted), str(other)])
        assert found.exit_code == 2 and said in found.output


def test_a_picture_is_read_as_its_pixels(folders: tuple[Path, Path]) -> None:
    read = LIKENESS["read_picture"](folders[0] / "0.png")
    assert read.shape == (1, 3, 8, 6) and read.dtype == torch.uint8
    np.testing.assert_array_equal(read[0].permute(1, 2, 0), np.asarray(Image.open(folders[0] / "0.png")))
