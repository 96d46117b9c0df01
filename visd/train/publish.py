"""The trained model, from its folder to a repository of the Hugging Face hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from visd.config import ConfigError
from visd.config_train import CheckpointSection
from visd.types import VisdError

log = logging.getLogger(__name__)

TOKEN = "HF_TOKEN"
"""The environment's variable: a token in a configuration would be written into the run's folder."""


def check_publishing(section: CheckpointSection) -> None:
    """Refuse at the start what would fail at the end.

    Raises:
        ConfigError: no valid name, no exported model, or no token in the environment.
    """
    if not section.push_to_hub:
        return
    try:
        validate_repo_id(section.push_to_hub)
    except HFValidationError as error:
        raise ConfigError(f"checkpoint.push_to_hub: {error}") from None
    if section.export == "never":
        raise ConfigError("checkpoint.push_to_hub: pushes the exported model, but checkpoint.export is never.")
    if not os.environ.get(TOKEN):
        raise ConfigError(f"checkpoint.push_to_hub: needs a token that may write in the environment, as {TOKEN}.")


def publish(section: CheckpointSection, folder: Path) -> None:
    """Push a folder to `checkpoint.push_to_hub`; the repository is made where there is none. The main rank calls it.

    Raises:
        VisdError: it could not be pushed.
    """
    name = section.push_to_hub
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ[TOKEN])  # the library's own is of its import
    try:
        api.create_repo(name, private=section.hub_private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the trained model")
    except Exception as error:  # of the hub, the network, the library: what matters is what to do now
        why = " ".join(str(error).split()) or type(error).__name__
        private = " --private" if section.hub_private else ""
        raise VisdError(
            f"checkpoint.push_to_hub: {name} could not be pushed ({why}); the run is finished and {folder} is whole: "
            f"start again to push it, or by hand: hf upload {name} {folder} .{private}"
        ) from error
    log.info("pushed %s: %s", folder, commit.commit_url)
