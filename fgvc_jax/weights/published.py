"""Names of published weights: the file of each, fetched where need be, and what its publisher says of it."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fgvc_jax.backbones.features import IMAGENET_MEAN, IMAGENET_STD
from fgvc_jax.errors import UserError, choose
from fgvc_jax.weights import torchvision

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository: the first that it has
REPOSITORY = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class Published(NamedTuple):
    """A file of weights and what is known of it.

    Attributes:
      path: of the file.
      title: for a report, the name that it was asked for by and the path.
      licence: 'unknown' where nobody says.
      preprocessing: fields of `Preprocessing` that these very weights were trained with.
      architecture: timm's name of the net; '' where no config.json says it.
      remark: what else is to be said to who uses it.
    """

    path: Path
    title: str
    licence: str = "unknown"
    preprocessing: dict[str, Any] = {}  # noqa: RUF012
    architecture: str = ""
    remark: str = ""


def locate(source: str) -> Published:
    """The weights that `source` names, downloaded into a cache where they are not there yet.

    Args:
      source: path of a file, or of a folder with one file of weights or with a model.safetensors and
        its config.json, as timm writes it; 'torchvision/resnet50.IMAGENET1K_V2'; a repository of the
        Hugging Face hub, 'timm/resnet50.a1_in1k' or 'hf-hub:OWNER/NAME@REVISION' (huggingface_hub's
        environment variables HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT hold).

    Raises:
      UserError: nothing of this name; or no connection, which names the files to bring.
    """
    return _locate(source, download=True)


def find(source: str) -> bool:
    """Whether `locate` would have to download something. Nothing is downloaded here.

    Of a repository that is not in the cache the hub is asked whether it has weights, so that a wrong
    name is known before anything else is downloaded.

    Raises:
      UserError: as `locate`.
    """
    return _locate(source, download=False) is None


def _locate(source: str, *, download: bool) -> Published | None:
    """As `locate`; None where it is not here and not to be downloaded."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return _beside(path) if path.name in HUB_FILES else _alone(path)
    library, _, name = source.partition("/")
    if library == "torchvision":
        choose(name, torchvision.WEIGHTS, "pretrained=torchvision/NAME: NAME")
        file = torchvision.cached(torchvision.WEIGHTS[name].file)
        if not file.exists():
            if not download:
                return None
            torchvision.fetch(file.name)
        return _alone(file)._replace(title=f"{source} ({file})")
    hub = REPOSITORY.fullmatch(source)
    if hub and (source.startswith("hf-hub:") or not source.endswith(SUFFIXES)):
        if not download and not _in_cache(source, *hub.groups()):
            return None
        return _from_hub(source, *hub.groups())
    raise UserError(
        f"pretrained={source!r} is not a file on this machine. Pass --config.model.pretrained=PATH of a "
        f"file ({', '.join(SUFFIXES)}) or folder, or a name such as torchvision/resnet50.IMAGENET1K_V2 "
        "or timm/resnet50.a1_in1k\n(Without weights, from scratch: --config.model.pretrained=)"
    )


def _in_folder(folder: Path) -> Published:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    best = [name for name in HUB_FILES if name in names] or names
    if not best:
        raise UserError(f"pretrained={folder} is a folder without weights ({', '.join(SUFFIXES)}).")
    if len(best) > 1 and best[0] not in HUB_FILES:
        raise UserError(
            f"pretrained={folder} is a folder with several files of weights; name one: {', '.join(names)}."
        )
    return _beside(folder / best[0])


def _alone(path: Path) -> Published:
    """A file that only its name tells something of."""
    weights = torchvision.BY_FILE.get(path.name)
    if weights is None:
        return Published(path, str(path))
    preprocessing = {
        "size": weights.size,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "crop_fraction": weights.size / weights.resize,
        "interpolation": weights.interpolation,
    }
    return Published(path, str(path), weights.licence, preprocessing)


def _from_hub(source: str, repository: str, revision: str | None) -> Published:
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    def fetch(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except hub.LocalEntryNotFoundError:  # no connection, and not in the cache
            raise
        except hub.EntryNotFoundError:
            return None

    with _hub_explained(source, repository, revision):
        config = fetch("config.json")
        try:
            weights = fetch(HUB_FILES[0])
        except hub.LocalEntryNotFoundError:
            weights = None
        weights = weights or fetch(HUB_FILES[1])
    if weights is None:
        raise _without_weights(source)
    return _with_config(weights, config)._replace(title=f"{source} ({weights})")


def _in_cache(source: str, repository: str, revision: str | None) -> bool:
    """Whether a repository's weights are in the cache; where not, UserError unless the hub has them."""
    from huggingface_hub import errors as hub
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    with _hub_explained(source, repository, revision):
        for name in HUB_FILES:
            if isinstance(try_to_load_from_cache(repository, name, revision=revision), str):
                return True
        for name in HUB_FILES:
            with contextlib.suppress(hub.EntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(repository, name, revision=revision))
                return False
    raise _without_weights(source)


def _without_weights(source: str) -> UserError:
    return UserError(
        f"pretrained={source!r}: the repository has neither {' nor '.join(HUB_FILES)}."
    )


@contextlib.contextmanager
def _hub_explained(source: str, repository: str, revision: str | None) -> Iterator[None]:
    """The hub's refusals, and whatever its client says where there is no connection, as a UserError."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_url

    try:
        yield
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError) as error:
        raise UserError(
            f"pretrained={source!r} is neither a file nor a folder on this machine, and on the Hugging "
            "Face hub it is not there or not open to you (for a private or gated one set HF_TOKEN): "
            f"{type(error).__name__}."
        ) from None
    except Exception as error:  # of whichever HTTP library it uses
        reason = _first_line(error.__cause__ or error)
        files = "\n".join(
            f"  {hf_hub_url(repository, name, revision=revision)}"
            for name in ("config.json", HUB_FILES[0])
        )
        raise UserError(
            f"pretrained={source!r} is neither a file nor a folder on this machine nor in the cache, and "
            f"could not be downloaded ({reason}). On a machine with internet download\n{files}\ninto one "
            "folder, bring it here and pass --config.model.pretrained=FOLDER"
        ) from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)


def _beside(path: Path) -> Published:
    config = path.with_name("config.json")
    return _with_config(path, config if config.is_file() else None)


def _with_config(path: Path, config: Path | None) -> Published:
    """The file, and what timm's config.json says of it; the file alone where it is not timm's."""
    if config is None:
        return _alone(path)
    try:
        if config.stat().st_size > 2**24:
            raise ValueError("over 16 MiB long")
        content = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{config}: not JSON: {_first_line(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        return _alone(path)
    wants = content.get("pretrained_cfg", content)  # older files have one level
    try:
        depth, size, width = wants["input_size"]
        preprocessing = {
            "size": size,
            "mean": tuple(map(float, wants["mean"])),
            "std": tuple(map(float, wants["std"])),
            "crop_fraction": float(wants["crop_pct"]),
            "interpolation": wants["interpolation"],
        }
        sensible = (
            (depth, width) == (3, size)
            and type(size) is int
            and size > 0
            and len(preprocessing["mean"]) == len(preprocessing["std"]) == 3
            and all(0 <= value <= 1 for value in preprocessing["mean"])
            and all(0 < value <= 1 for value in preprocessing["std"])
            and 0 < preprocessing["crop_fraction"] <= 1
            and preprocessing["interpolation"] in ("bilinear", "bicubic")
        )
    except (KeyError, TypeError, ValueError):
        sensible = False
    if not sensible:
        raise UserError(
            f"{config}: pretrained_cfg needs input_size [3, N, N], mean and std of three numbers in 0..1, "
            "crop_pct in 0..1, interpolation 'bilinear' or 'bicubic'. Mend it, or pass the file of "
            "weights alone under another name."
        )
    licence, mode = wants.get("license") or "unknown", wants.get("crop_mode", "center")
    remark = f"its publisher crops in mode {mode!r}, here the crop is central"
    return Published(
        path,
        str(path),
        licence if isinstance(licence, str) and licence.isprintable() else repr(licence),
        preprocessing,
        content["architecture"],
        "" if mode == "center" else remark,
    )
