"""From a name to a model and its processor: one code path for a hub id, a directory and the shipped models.

Knows transformers' Auto classes; nothing of pruning. How a processor is asked: `atp.asking`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from atp.asking import build_inputs as build_inputs
from atp.asking import prompt_of as prompt_of
from atp.asking import visible_box as visible_box
from atp.errors import AtpError, BadInput, UnsupportedModel
from atp.registry import did_you_mean

SHIPPED = ("atp-mini-llava", "atp-mini-blip2", "atp-mini-flamingo")
"""Names of the models that lie inside the package."""
DEFAULT = SHIPPED[0]
PACKAGED = Path(__file__).parent / "models"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def load(name: str | Path = DEFAULT, dtype: str | torch.dtype | None = None, device: str | None = None) -> tuple[Any, Any]:
    """Load a vision-language model and its processor, ready to generate.

    Args:
        name: one of `SHIPPED`, such as `"atp-mini-llava"`, a directory written by `save_pretrained`, or a hub id such as
            `"llava-hf/llava-1.5-7b-hf"`.
        dtype: of the weights; None = float32 on a CPU and the checkpoint's own elsewhere.
        device: e.g. `"cpu"`, `"cuda:0"`; None = a GPU if there is one.

    Returns:
        `(model, processor)`, transformers' own classes, the model in evaluation mode.

    Raises:
        BadInput: no such directory, parts of it missing, hub not reachable, unknown dtype or device.
        UnsupportedModel: a model type that atp cannot prune.

    Example:
        >>> model, processor = load("atp-mini-llava")
    """
    kind, target = check_kind(dtype, device)
    source = resolve(name)
    check_model_type(source)
    model, processor, found = _from_pretrained(source, kind)
    absent = sorted(found.get("missing_keys") or ())
    if absent:
        raise BadInput(
            f"the checkpoint {source!r} has no weights for {len(absent)} tensors, e.g. {absent[0]!r}, which would stay random; "
            "copy or download it again in full"
        )
    if not hasattr(processor, "image_processor"):
        raise BadInput(f"{source!r} has a tokenizer but no image processor; {_save_hint(source)}")
    return model.to(target).eval(), processor


def _from_pretrained(source: str, dtype: str) -> tuple[Any, Any, dict[str, Any]]:
    """Model, processor, and what transformers says about keys of the checkpoint."""
    import transformers

    auto: Any = transformers
    with _quiet():
        try:
            processor = auto.AutoProcessor.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _hub_error(source, error, "processor") from None
        try:
            model, found = auto.AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _hub_error(source, error, "weights") from None
    return model, processor, found


def resolve(name: str | Path) -> str:
    """Return the directory of a shipped or local model as it is, or a well-formed hub id unchanged.

    Raises:
        BadInput: neither; or a directory that lacks its configuration, weights or processor.
    """
    text = str(name)
    if text in SHIPPED and (PACKAGED / text / "config.json").is_file():
        return str(PACKAGED / text)
    path = Path(text).expanduser()
    if text and path.is_dir():
        _check_directory(path)
        return str(path)
    if path.is_file():
        raise BadInput(f"{text!r} is a file; give the directory that holds config.json, e.g. {str(path.parent)!r}")
    if text in SHIPPED:
        there = ", ".join(name for name in SHIPPED if (PACKAGED / name / "config.json").is_file()) or "none"
        raise BadInput(
            f"the shipped model {text!r} is not in this installation ({str(PACKAGED)!r} has: {there}); "
            "install it again: pip install --force-reinstall atp-vlm"
        )
    expected = f"{', '.join(map(repr, SHIPPED))}, a directory, or a hub id such as 'owner/name'"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text):
        raise BadInput(f"no such model directory: {text!r}; expected {expected}")
    if "/" not in text:
        raise BadInput(f"unknown model {text!r}.{did_you_mean(text, SHIPPED)} Expected {expected}")
    return text


def _check_directory(path: Path) -> None:
    if not (path / "config.json").is_file():
        inside = sorted(p.parent.name for p in path.glob("*/config.json"))
        hint = f"did you mean {str(path / inside[0])!r}?" if inside else "a directory written by model.save_pretrained has one"
        raise BadInput(f"no config.json in {str(path)!r}; {hint}")
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        raise BadInput(f"no weights (*.safetensors) in {str(path)!r}; write them: model.save_pretrained({str(path)!r})")
    for files, what in ((_PROCESSOR_FILES, "processor"), (_TOKENIZER_FILES, "tokenizer")):
        if not any((path / file).is_file() for file in files):
            raise BadInput(f"no {what} in {str(path)!r} (none of {', '.join(files)}); {_save_hint(str(path))}")


def _save_hint(source: str) -> str:
    return f"write it beside the model: AutoProcessor.from_pretrained('<the original model>').save_pretrained({source!r})"


def check_model_type(source: str) -> str:
    """Return the model type of a directory or hub id, reading nothing but its configuration.

    Raises:
        UnsupportedModel: atp has no adapter for it.
        BadInput: the configuration cannot be had or read.
    """
    from atp.adapters import check_version, list_models

    check_version()
    from transformers import PreTrainedConfig

    with _quiet():
        try:
            config, _ = PreTrainedConfig.get_config_dict(source)
        except (OSError, ValueError) as error:
            raise _hub_error(source, error, "configuration") from None
    kind = config.get("model_type")
    known = list_models()
    if kind not in known:
        given = f"model type {kind!r}" if kind else "no model_type in config.json"
        raise UnsupportedModel(
            f"{source!r} has {given}, which atp cannot prune.{did_you_mean(str(kind), known)} Supported: {', '.join(known)}"
        )
    return str(kind)


def check_dtype(dtype: str | torch.dtype) -> str:
    """Return its name if it is one that models are loaded in.

    Raises:
        BadInput: it is not.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise BadInput(f"unknown dtype {name!r}.{did_you_mean(name, DTYPES)} Expected one of: {', '.join(DTYPES)}")
    return name


def check_kind(dtype: str | torch.dtype | None, device: str | None) -> tuple[str, torch.device]:
    """Return the name of the dtype and the device that `load` takes; nothing is loaded.

    Raises:
        BadInput: an unknown dtype, a device that is not there.
    """
    target = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return check_dtype(dtype) if dtype is not None else ("float32" if target.type == "cpu" else "auto"), target


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"cannot use the device {name!r} ({reason}); expected e.g. 'cpu' or 'cuda:0'") from None
    return device


def _hub_error(source: str, error: BaseException, what: str) -> AtpError:
    """Turn what transformers raised into one sentence with the fix."""
    causes, current = set(), error
    while current is not None and type(current).__name__ not in causes:
        causes.add(type(current).__name__)
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    reason = " ".join(str(error).split())[:300]
    if Path(source).is_dir():
        return BadInput(f"cannot read the {what} in {source!r}: {reason}")
    if causes & {"GatedRepoError"}:
        return BadInput(f"the model {source!r} is gated; accept its terms on its page, then log in: hf auth login")
    if causes & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError"}:
        return BadInput(
            f"there is no directory {source!r}, and the hub cannot be reached to download it; go online (unset HF_HUB_OFFLINE), "
            f"download it elsewhere (hf download {source} --local-dir ./model) and pass './model', or use {DEFAULT!r}"
        )
    if causes & {"RepositoryNotFoundError", "HFValidationError"}:
        return BadInput(f"no directory and no public hub model is called {source!r}; check the name at https://huggingface.co")
    return BadInput(f"cannot load the {what} of {source!r}: {reason}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own bars and notices while loading; errors still raise."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
