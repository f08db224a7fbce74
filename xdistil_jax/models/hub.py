"""Checkpoints by name: folders on this machine and Hugging Face's hub. Imports no jax."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CheckpointError(ValueError):
    """A checkpoint that can't be read as it is; the message says what to do."""


def find_folder(
    name_or_folder: str | Path,
    revision: str | None = None,
    patterns: Sequence[str] = ("*.json", "*.safetensors", "*.txt"),
) -> Path:
    """The folder of a checkpoint; from the hub come only files of these ``patterns``.

    Raises:
        CheckpointError: for a folder that isn't there, a name that the hub doesn't have, or one
            without safetensors, where they are wanted.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if isinstance(name_or_folder, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"there is no folder {name}: give a folder with config.json and model.safetensors, "
            "or a name on the Hugging Face hub"
        )
    shown = f"{name!r}" if revision is None else f"{name!r}, revision {revision!r},"
    with _naming(f"{shown} is no folder here, and the Hugging Face hub didn't give it"):
        import huggingface_hub

        wanted = list(patterns)
        found = Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
        )
    if "*.safetensors" in patterns and not any(found.glob("*.safetensors")):
        raise CheckpointError(
            f"{shown} on the Hugging Face hub has no safetensors; pickled weights, which may run "
            "code when they are read, aren't fetched. Its Community tab may list a pull request "
            "'Adding safetensors variant of this model': name it, as in --student.revision "
            "refs/pr/1 (or teacher.revision). Or convert it once, where you trust it, with "
            f"transformers and torch: AutoModel.from_pretrained({name!r}).save_pretrained(FOLDER)"
        )
    return found


def is_name(place: str | Path) -> bool:
    """Is this ``owner/name``, and no folder here?"""
    return isinstance(place, str) and bool(_NAME.fullmatch(place)) and not Path(place).exists()


def push(
    folder: Path, name: str, patterns: Sequence[str], *, private: bool, revision: str | None = None
) -> str:
    """Upload those files of a folder that fit ``patterns``, in one commit; gives its URL.

    The repository and the branch ``revision`` are made if they aren't there.

    Raises:
        CheckpointError: if the hub refuses, or can't be reached.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} is no name of a repository: expected OWNER/NAME")
    with _naming(f"the Hugging Face hub didn't take {name!r}"):
        import huggingface_hub

        hub = huggingface_hub.HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(name, branch=revision, exist_ok=True)
        done = hub.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, allow_patterns=list(patterns),
            commit_message="Upload a student of xdistil_jax",
        )  # fmt: skip
    return done.commit_url


@contextmanager
def _naming(problem: str) -> Iterator[None]:
    """Tell of what the hub's client raises: its own errors, the HTTP library's and OS errors."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{problem}: it is reached through {error.name}, which is not installed: "
            "pip install huggingface_hub"
        ) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{problem} ({reason}): check name and network, the token (hf auth login), or give a "
            "local folder"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        CheckpointError: if it is missing, or no JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: a checkpoint folder needs one")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def own_student(name_or_folder: str | Path) -> Path | None:
    """The folder of a student of ours: given itself, or the run folder around it."""
    if not name_or_folder:
        return None
    folder = Path(name_or_folder).expanduser()
    for each in (folder / "student", folder):
        if (each / "labels.json").is_file() and (each / "config.json").is_file():
            return each
    return None


def depth(name_or_folder: str | Path, revision: str | None = None) -> int:
    """How many layers a checkpoint has by its config.json; 0 for a student without layers.

    Raises:
        CheckpointError: naming the file that says nothing of layers.
    """
    own = own_student(name_or_folder)
    folder = own or find_folder(name_or_folder, revision, ("config.json",))
    config = read_config(folder / "config.json")
    if own is not None:
        return config.get("sizes", {}).get("encoder", {}).get("layers", 0)
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    if not isinstance(layers, int):
        raise CheckpointError(f"{folder / 'config.json'}: field 'num_hidden_layers' is missing")
    return layers
