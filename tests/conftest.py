"""Fixtures shared by the tests: tiny workspaces that every test may copy and break."""

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# a micro week takes seconds with these
QUICK = ("user_based:\n  n_factors: 8\n  n_iterations: 3\nhybrid:\n  n: 10\nembeddings:\n  encoder: random\n"
         "two_tower:\n  epochs: 1\n  judges: 50\ninterests:\n  n_interests: 8\n  restarts: 1\n  rounds: 4\n  points: 30\n"
         "din:\n  epochs: 1\n")


@pytest.fixture(scope="session")
def micro_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro sample workspace, made once; copy it before changing anything."""
    from sunorecsys.data.sample import MICRO, make_sample

    root = tmp_path_factory.mktemp("template") / "micro"
    make_sample(root, progress=False, **MICRO)
    (root / "config.yaml").write_text(QUICK)
    return root


@pytest.fixture
def micro(micro_template: Path, tmp_path: Path) -> Path:
    """A micro workspace of the test's own."""
    return Path(shutil.copytree(micro_template, tmp_path / "micro", symlinks=True))


@pytest.fixture(scope="session")
def published_template(micro_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro workspace whose last week but one is published; made once."""
    from sunorecsys.weekly import run_week

    root = Path(shutil.copytree(micro_template, tmp_path_factory.mktemp("published") / "micro", symlinks=True))
    run_week(root, week="2026-W11", level="ERROR")
    return root


@pytest.fixture
def published(published_template: Path, tmp_path: Path) -> Path:
    """A workspace of the test's own in which 2026-W11 is published and 2026-W12 is not."""
    return Path(shutil.copytree(published_template, tmp_path / "published", symlinks=True))
