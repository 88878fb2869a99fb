"""What every test stands on: no network, no home directory of a person, and the shared data where it is present."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `pytest` typed from anywhere finds this checkout's packages, `agents` above all
    sys.path.insert(0, str(ROOT))

# Before any test module is imported, because huggingface_hub and matplotlib read these once, at import.
_real_home = Path.home()
# The starter generator is converted once per cache folder (seconds, hundreds of megabytes): the one cache is shared by
# all tests and all workers, whatever HOME a test sees.
os.environ.setdefault("RAGTUNE_CACHE", str(Path(os.environ.get("XDG_CACHE_HOME") or _real_home / ".cache") / "ragtune"))
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(_real_home / ".cache" / "ms-playwright"))
os.environ.setdefault("MPLCONFIGDIR", str(Path(os.environ["RAGTUNE_CACHE"]) / "matplotlib"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
_OURS = ("RAGTUNE_ENCODER", "RAGTUNE_GENERATOR", "RAGTUNE_SEED", "RAGTUNE_CONFIG", "RAGTUNE_DEBUG", "RAGTUNE_DEVICE")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Settings and secrets of the person who runs the tests do not reach them, nor do the tests reach their home."""
    for name in list(os.environ):
        if name in _OURS or name.endswith(("_API_KEY", "_TOKEN")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))


def find_shared() -> Path | None:
    """The folder of shared data sets: RAGTUNE_SHARED, or `shared` beside the checkout; None where there is none."""
    named = os.environ.get("RAGTUNE_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`shared/data`; the test is skipped, saying so, where it is absent."""
    folder = find_shared()
    if folder is None:
        pytest.skip("shared data not found: set RAGTUNE_SHARED or put `shared` beside the checkout")
    return folder / "data"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium for browser tests; the test is skipped, saying so, where there is none."""
    named = os.environ.get("RAGTUNE_CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip(
            "no chromium on this machine: install it (Debian: apt-get install chromium) or set RAGTUNE_CHROMIUM"
        )
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture()
def corpus(tmp_path: Path) -> Path:
    """Six small documents in a folder: enough for a search to be right or wrong."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in CORPUS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


CORPUS = {
    "ferry.md": "# Ferry\n\nThe ferry to Korr leaves at 07:40 from pier 4. A return ticket costs 18 crowns.\n",
    "boats/loan.md": "# Boat loan\n\nMembers may borrow the blue boat for 3 days. The deposit is 250 crowns.\n",
    "kitchen.txt": "The kitchen closes at 21:15. The last warm meal is served at 20:30 by the night cook.\n",
    "library.html": "<html><head><title>Library</title></head><body><h1>Library</h1><p>The library lends nine books for "
    "28 days. A late book costs 2 crowns per week.</p></body></html>\n",
    "staff.csv": "name,role,room\nIda Brandt,harbour master,12\nTomas Vey,night cook,3\n",
    "zh.md": "# 码头\n\n渡船每天七点四十分从四号码头出发。往返票价是十八克朗。\n",
}


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> Iterator[None]:
    """With several workers on a few cores, one thread each is quickest; set for children, too."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    yield
