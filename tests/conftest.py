"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before NumPy is loaded: tests run in a process for each core, and threads of BLAS on top of that fight for them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from enclave import keys

ROOT = Path(__file__).resolve().parent.parent

# The default is reproducible: the same examples on every machine, nothing stored. To look for new ones:
# HYPOTHESIS_PROFILE=explore pytest tests
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("fixed", derandomize=True, database=None, **_common)
settings.register_profile("explore", max_examples=2000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def device_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh device key, which ``$SHADOWNET_KEY`` names as well."""
    path = tmp_path / "keys" / "device.key"
    keys.create(path)
    monkeypatch.setenv("SHADOWNET_KEY", str(path))
    return path


@pytest.fixture
def shared() -> Path:
    """The folder of public models and data beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no folder ../shared with public models beside this checkout")
    return path


@pytest.fixture
def models() -> Path:
    """The small models that the project trained itself."""
    return ROOT / "models" / "digits"


def pytest_configure() -> None:
    # Whoever starts the tests in the background has SIGINT ignored, which processes under test would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
