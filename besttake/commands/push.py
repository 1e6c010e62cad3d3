"""`besttake push`: upload a run's adapter to the Hugging Face hub, with a model card."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tyro.conf import Positional

from besttake.report.card import model_card
from besttake.report.folder import read_run, shared_settings


@dataclass(frozen=True)
class PushConfig:
    """Upload a run's adapter to the Hugging Face hub, with a model card. Log in first: `hf auth login`."""

    run: Positional[Path]
    """Folder of a finished run."""
    repo: Positional[str]
    """Repository USER/NAME; created if it does not exist."""
    private: bool = False
    """Create a private repository."""
    dry_run: Path | None = None
    """Write the files to this folder instead of uploading them."""

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise ValueError(f"repo is {self.repo!r}; expected USER/NAME, as the hub names models")


def push(config: PushConfig) -> str:
    """Upload; the address of the model, or the folder of a dry run.

    Raises:
        ValueError: the run has no adapter, or the folder of a dry run is not empty.
        OSError: the hub refuses, or cannot be reached.
    """
    if config.dry_run:
        if config.dry_run.is_file() or (config.dry_run.exists() and any(config.dry_run.iterdir())):
            raise ValueError(f"dry_run is {config.dry_run}, a file or not empty; give a new or empty folder")
        collect(config.run, config.repo, config.dry_run)
        return str(config.dry_run)
    with TemporaryDirectory() as folder:
        collect(config.run, config.repo, Path(folder))
        api = HfApi()
        try:
            address = api.create_repo(config.repo, private=config.private, exist_ok=True)
            api.upload_folder(repo_id=config.repo, folder_path=folder, commit_message="Upload by besttake")
        except HfHubHTTPError as error:
            raise OSError(
                f"the upload to {config.repo} was refused: {error}; log in with a write token: `hf auth login`"
            ) from error
        return str(address)


def collect(folder: Path, repo: str, target: Path) -> None:
    """Write the files to upload: weights, model card, settings and results."""
    run = read_run(folder)
    if not any((run.path / "adapter").rglob("*.safetensors")):
        raise ValueError(f"{run.path} has no adapter; has the run finished?")
    shutil.copytree(run.path / "adapter", target, dirs_exist_ok=True)
    (target / "README.md").write_text(model_card(run, repo), encoding="utf-8")
    (target / "config.yaml").write_text(shared_settings(run), encoding="utf-8")
    if (run.path / "summary.json").exists():
        shutil.copy(run.path / "summary.json", target)
