"""An exported folder on the Hugging Face hub."""

import os
import re
from pathlib import Path

from fgvc_jax.errors import UserError


def check_name(repository: str) -> None:
    """UserError for what is not USER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--push={repository} is not of the form USER/NAME.")


def push(folder: str | os.PathLike, repository: str) -> str:
    """Uploads the files of an exported folder in one commit.

    The repository is made, private, where it is new. Token and server are huggingface_hub's:
    `hf auth login`, or HF_TOKEN and HF_ENDPOINT.

    Args:
      repository: USER/NAME.

    Returns:
      The commit's address.

    Raises:
      UserError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    check_name(repository)
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=Path(folder),
            commit_message="Exported by fgvc_jax",
        )
    except Exception as error:  # also of the client's HTTP library, which changes with its version
        raise UserError(
            f"--push={repository}: the hub did not take it: {type(error).__name__}: {error}. The files "
            f"are in {folder}. Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
        ) from error
    return str(done.commit_url)
