"""Where weights come from: the hub and torchvision's server (both played by a local one), folders, the
cache; and what is then known of their preprocessing, licence and architecture."""

import hashlib
import http.server
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import save, save_file

from fgvc_jax import backbones
from fgvc_jax.backbones import Preprocessing
from fgvc_jax.context.models import Models
from fgvc_jax.errors import UserError
from fgvc_jax.weights import (
    load_pretrained,
    preprocessing_of,
    torch_axes,
    torchvision,
    wanted_arguments,
)
from fgvc_jax.weights.published import find, locate
from fgvc_jax.weights.resnet import TABLE


def make(seed=0):
    return backbones.create("resnet18", rngs=nnx.Rngs(seed), width=4, depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def state():
    """A tiny ResNet's weights in torch's layout, with a head."""
    found = {"fc.weight": np.zeros((10, 32), np.float32), "fc.bias": np.zeros(10, np.float32)}
    for path, variable in nnx.to_flat_state(nnx.state(make(1))):
        path = "/".join(map(str, path))
        array = torch_axes(path, np.asarray(variable[...]))
        found[TABLE.layouts[0].key(path)] = np.ascontiguousarray(array)
    return found


# Unlike any default, so that its arrival shows.
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 10,
    "pretrained_cfg": {
        "input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.96,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "license": "apache-2.0",
    },
}
WANTS = Preprocessing(288, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.96, "bicubic")


def with_config(**changes) -> dict:
    return CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | changes}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) as the hub does."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.seen = {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        data = self.server.files.get(self.path)
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        headers = {
            "X-Repo-Commit": hashlib.sha1(self.path.split("/resolve")[0].encode()).hexdigest()
        }
        if data is None:
            known = any(
                p.startswith(self.path.split("/resolve")[0] + "/") for p in self.server.files
            )
            status, data = 404, b""
            headers["X-Error-Code"] = "EntryNotFound" if known else "RepoNotFound"
        else:
            status = 200
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


# --- the hub. huggingface_hub reads its environment when it is imported: other processes

CLIENT = """
import json, sys
from flax import nnx
from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.weights import load_pretrained
from fgvc_jax.weights.published import find

if sys.argv[1] == "find":
    found = {}
    for source in sys.argv[2:]:
        try:
            found[source] = find(source)
        except UserError as error:
            found[source] = str(error)
    print(json.dumps(found))
    sys.exit()
results = {}
for source in sys.argv[1:]:
    module = backbones.create("resnet18", rngs=nnx.Rngs(0), width=4, depths=(1, 1, 1, 1))
    try:
        _, report = load_pretrained(module, source)
        total = float(module.conv1.kernel[...].sum())
        results[source] = [report.text, total, module.info.preprocessing]
    except UserError as error:
        results[source] = [f"UserError: {error}"]
print(json.dumps(results))
"""


def client(home, sources, **environment) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *sources],
        env=os.environ | {"HF_HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_hub_the_cache_and_no_connection(server, state, tmp_path):
    torch = pytest.importorskip("torch", reason="writing a pytorch_model.bin needs torch")
    torch.save({k: torch.tensor(v) for k, v in state.items()}, tmp_path / "model.bin")
    safe, pickled = save(state), (tmp_path / "model.bin").read_bytes()
    wrong = {key: value for key, value in state.items() if not key.startswith("layer4")}
    config = json.dumps(CONFIG | {"auto_map": {"AutoModel": "modeling.Net"}}).encode()
    other = json.dumps(with_config(license="cc-by-nc-4.0") | {"architecture": "resnet26t"}).encode()
    server.files = {
        "/timm/safe/resolve/main/config.json": config,
        "/timm/safe/resolve/main/model.safetensors": safe,
        "/timm/safe/resolve/main/pytorch_model.bin": b"to be left alone",
        "/timm/safe/resolve/main/modeling.py": b"raise SystemExit",
        "/timm/pickled/resolve/main/config.json": config,
        "/timm/pickled/resolve/main/pytorch_model.bin": pickled,
        "/some/tagged/resolve/v2/config.json": other,
        "/some/tagged/resolve/v2/model.safetensors": safe,
        "/some/plain/resolve/main/model.safetensors": safe,
        "/some/wrong/resolve/main/config.json": other,
        "/some/wrong/resolve/main/model.safetensors": save(wrong),
        "/some/empty/resolve/main/config.json": config,
    }
    total = float(state["conv1.weight"].sum())
    home = tmp_path / "home"
    # Before anything is downloaded: what there is, and what there is not.
    asked = ["timm/safe", "timm/pickled", "hf-hub:some/tagged@v2", "some/empty", "timm/none"]
    known = client(home, ["find", *asked], HF_ENDPOINT=server.address)
    assert [known[source] for source in asked[:3]] == [True] * 3
    assert "neither model.safetensors nor pytorch_model.bin" in known["some/empty"]
    assert re.search(r"'timm/none' is neither a file.*HF_TOKEN", known["timm/none"])
    commands = [command for command, path, _ in server.seen if "/resolve/" in path]
    assert commands and set(commands) == {"HEAD"}
    assert not list(home.rglob("*.safetensors")) and not list(home.rglob("*.bin"))
    server.seen.clear()
    cached = ["timm/safe", "timm/pickled"]
    sources = [
        *cached,
        "hf-hub:some/tagged@v2",
        "some/plain",
        "some/wrong",
        "some/empty",
        "timm/none",
    ]
    found = client(home, sources, HF_ENDPOINT=server.address, HF_TOKEN="hf_secret")
    for source in cached:
        text, there, preprocessing = found[source]
        assert there == pytest.approx(total, rel=1e-5)  # float32 sums in another order
        assert Preprocessing(*map(tuple_of, preprocessing)) == WANTS
        assert text.startswith(f"{source} (") and "licence: apache-2.0\n" in f"{text}\n"
    text = found["hf-hub:some/tagged@v2"][0]
    assert "cc-by-nc-4.0: not for commercial use" in text
    assert "published as 'resnet26t', loaded into resnet18" in text
    text, _, preprocessing = found["some/plain"]
    assert "licence: unknown" in text and preprocessing[0] == 224
    (text,) = found["some/wrong"]
    assert re.search(r"some/wrong .* does not fit resnet18", text)
    assert "no 'layer4.0.bn1.weight' [32]" in text
    assert "config.json says that it is 'resnet26t'" in text
    assert "neither model.safetensors nor pytorch_model.bin" in found["some/empty"][0]
    assert re.search(r"'timm/none' is neither a file.*HF_TOKEN", found["timm/none"][0])
    hub = [(path, headers) for _, path, headers in server.seen if "/resolve/" in path]
    assert {path.rpartition("/")[2] for path, _ in hub} == {
        *("config.json", "model.safetensors", "pytorch_model.bin")
    }
    assert "/timm/safe/resolve/main/pytorch_model.bin" not in [path for path, _ in hub]
    assert all(headers["authorization"] == "Bearer hf_secret" for _, headers in hub)

    # Offline: from the cache, without a word to the server.
    server.seen.clear()
    sources = [*cached, "timm/new"]
    offline = client(home, sources, HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert not server.seen
    assert [offline[source] for source in cached] == [found[source] for source in cached]
    known = client(home, ["find", *sources], HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert not server.seen and [known[source] for source in cached] == [False, False]
    assert "--config.model.pretrained=FOLDER" in known["timm/new"]
    (text,) = offline["timm/new"]
    for file in ("config.json", "model.safetensors"):
        assert f"  {server.address}/timm/new/resolve/main/{file}\n" in text
    assert "HF_HUB_OFFLINE" in text and "--config.model.pretrained=FOLDER" in text

    # What it asks for: the two files in a folder.
    folder = tmp_path / "brought"
    folder.mkdir()
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(safe)
    # No server: from the cache too.
    gone = client(home, [cached[0], str(folder)], HF_ENDPOINT="http://127.0.0.1:9")
    assert gone[cached[0]] == found[cached[0]]
    assert gone[str(folder)][1:] == found[cached[0]][1:]


def tuple_of(value):
    return tuple(value) if isinstance(value, list) else value


# --- folders


def folder_of(path, state, config=None, name="model.safetensors") -> str:
    path.mkdir(exist_ok=True)
    save_file(state, path / name)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_folders(state, tmp_path):
    with pytest.raises(UserError, match=r"folder without weights"):
        load_pretrained(make(), str(tmp_path))
    path = folder_of(tmp_path, state, name="mine.safetensors")
    module, report = load_pretrained(make(), path)
    assert report.source == f"{path}/mine.safetensors" and report.licence == "unknown"
    assert module.info.preprocessing == make().info.preprocessing
    folder_of(tmp_path, state, name="yours.safetensors")
    with pytest.raises(UserError, match=r"several.*mine\.safetensors, yours\.safetensors"):
        load_pretrained(make(), path)
    folder_of(tmp_path, state, CONFIG)
    for source in (path, f"{path}/model.safetensors"):
        module, report = load_pretrained(make(), source)
        assert module.info.preprocessing == report.preprocessing == WANTS
        assert "licence: apache-2.0" in report.text and "288 px" in report.text
    # The file of another name that lies there is not what the config.json speaks of.
    module, _ = load_pretrained(make(), f"{path}/mine.safetensors")
    assert module.info.preprocessing.size == 224


def test_a_config_of_one_level_and_one_that_is_not_timms(state, tmp_path):
    flat = {"architecture": "resnet18"} | CONFIG["pretrained_cfg"]
    module, _ = load_pretrained(make(), folder_of(tmp_path, state, flat))
    assert module.info.preprocessing == WANTS
    for content in ({"architectures": ["ResNet"]}, [1], {"architecture": 3}, {}):
        module, report = load_pretrained(make(), folder_of(tmp_path, state, content))
        assert module.info.preprocessing.size == 224 and report.licence == "unknown"


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.5, 0.5]},
        {"mean": [float("nan")] * 3},
        {"mean": 0.5},
        {"std": [0, 1, 1]},
        {"std": ["a", 1, 1]},
        {"crop_pct": 0},
        {"crop_pct": None},
        {"input_size": [1, 224, 224]},
        {"input_size": [3, 224, 192]},
        {"input_size": [3, 1e9, 1e9]},
        {"interpolation": "lanczos"},
        {"interpolation": [[[]]]},
    ],
)
def test_a_config_that_makes_no_sense(changes, state, tmp_path):
    source = folder_of(tmp_path, state, with_config(**changes))
    with pytest.raises(UserError, match=r"config\.json: pretrained_cfg needs"):
        load_pretrained(make(), source)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_json(text, state, tmp_path):
    source = folder_of(tmp_path, state)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        load_pretrained(make(), source)


# --- without the values


def test_preprocessing_without_reading_an_array(state, tmp_path):
    # The values are those of a damaged file, which only whoever reads them can tell.
    damaged = {key: np.full_like(value, np.nan) for key, value in state.items()}
    source = folder_of(tmp_path, damaged, CONFIG)
    with pytest.raises(UserError, match="not finite"):
        load_pretrained(make(), source)
    module = nnx.eval_shape(make)
    preprocessing, report = preprocessing_of(module, source)
    assert preprocessing == report.preprocessing == WANTS
    assert "apache-2.0" in report.text and not report.different
    assert module.info.preprocessing.size == 224  # not changed
    assert wanted_arguments("resnet18", source) == {}


def test_a_mismatch_is_told_without_reading_an_array(state, tmp_path):
    partial = {key: value for key, value in state.items() if not key.startswith("layer4.")}
    source = folder_of(tmp_path, partial)
    with pytest.raises(UserError, match="does not fit resnet18") as loading:
        load_pretrained(make(), source)
    with pytest.raises(UserError, match="does not fit resnet18") as asking:
        preprocessing_of(make(), source)
    assert str(asking.value) == str(loading.value)
    _, report = preprocessing_of(make(), source, allow=("layer4/.*",))
    assert len(report.missing) == 15
    with pytest.raises(UserError, match="not weights of vit_tiny"):
        wanted_arguments("vit_tiny_patch16_224", source)


# --- torchvision


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """(server, path of the one file there, content), under its true hash as 'resnet18.IMAGENET1K_V1'."""
    content = np.random.default_rng(0).bytes(3_000_000)
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(torchvision, "SERVER", f"{server.address}/models/")
    monkeypatch.setitem(
        torchvision.WEIGHTS, "resnet18.IMAGENET1K_V1", torchvision.Weights(file, 1, 2)
    )
    monkeypatch.setenv("FGVC_CACHE", str(tmp_path))
    server.files[f"/models/{file}"] = content
    return server, tmp_path / "weights" / file, content


NAME = "torchvision/resnet18.IMAGENET1K_V1"


def test_a_download_and_then_the_cache(published):
    server, path, content = published
    assert find(NAME) is True
    assert not server.seen and not path.exists()
    assert locate(NAME).path == path and path.read_bytes() == content
    assert find(NAME) is False
    assert locate(NAME).path == path
    assert len(server.seen) == 1
    with pytest.raises(UserError, match=r"did you mean 'resnet18\.IMAGENET1K_V1'"):
        find(NAME.replace("18", "_18"))
    with pytest.raises(UserError, match="not a file on this machine"):
        find("resnet18.pth")
    assert find(str(path)) is False and find(str(path.parent)) is False


def test_another_hash(published):
    server, path, content = published
    server.files[f"/models/{path.name}"] = content[:-1] + b"x"
    with pytest.raises(
        UserError, match=r"does not have the published checksum sha256:[0-9a-f]{8};"
    ):
        locate(NAME)
    assert not path.exists() and not list(path.parent.glob("*.partial"))


def test_no_such_file_and_no_server(published, monkeypatch):
    server, path, _ = published
    server.files.clear()
    with pytest.raises(UserError, match=rf"{path.name} cannot be downloaded.*404"):
        locate(NAME)
    monkeypatch.setattr(torchvision, "SERVER", "http://127.0.0.1:9/models/")
    bring = rf"127\.0\.0\.1:9/models/{path.name} cannot.*refused.*bring it into {path.parent}"
    with pytest.raises(UserError, match=bring):
        locate(NAME)
    # Brought there by hand:
    path.write_bytes(b"x")
    assert locate(NAME).path == path


@pytest.fixture(scope="module")
def theirs():
    """torchvision, where it can be imported."""
    # A CPU torch beside a torchvision built for CUDA: the parity tests know how to import it.
    keep = runpy.run_path(str(Path(__file__).parents[1] / "parity" / "conftest.py"))
    yield pytest.importorskip("torchvision", reason="the reference of the table")
    del keep


def test_the_table_is_torchvisions(theirs):
    for name, ours in torchvision.WEIGHTS.items():
        model, _, weights = name.partition(".")
        entry = getattr(theirs.models.get_model_weights(model), weights)
        transform = entry.transforms()
        assert entry.url == torchvision.SERVER + ours.file
        assert [ours.size, ours.resize] == [*transform.crop_size, *transform.resize_size]
        assert ours.interpolation == transform.interpolation.value
        assert (transform.mean, transform.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert ("SWAG" in entry.meta.get("license", "")) == (ours.licence == torchvision.SWAG)


def test_the_name_of_a_file_is_enough(state, tmp_path):
    """A file that was brought by hand, under the name that torchvision gave it."""
    torch = pytest.importorskip("torch", reason="writing torch's file needs torch")
    path = tmp_path / "resnet50-11ad3fa6.pth"
    torch.save({key: torch.tensor(value) for key, value in state.items()}, path)
    module, report = load_pretrained(make(), str(path))
    assert round(224 / module.info.preprocessing.crop_fraction) == 232
    assert "ImageNet" in report.licence


# --- a run


def models_of(tmp_path, pretrained, **image) -> Models:
    config = tiny.pipeline()
    config.model.pretrained = pretrained
    config.image.resize = 0
    config.image.update(image)
    return tiny.parts(config, tmp_path)[2]


def test_preprocessing_of_a_run(state, tmp_path, caplog):
    source = folder_of(tmp_path / "w", state, CONFIG)
    view = models_of(tmp_path, source).view
    assert (view.mean, view.std, view.interpolation) == (WANTS.mean, WANTS.std, "bicubic")
    assert (view.size, view.resize) == (16, 17)  # 16 / 0.96
    assert "trained with" not in caplog.text
    view = models_of(tmp_path, source, mean=(0.5, 0.5, 0.5), std=WANTS.std).view
    assert (view.mean, view.std) == ((0.5, 0.5, 0.5), WANTS.std)
    differing = [line for line in caplog.messages if "trained with" in line]
    assert differing == [
        "image.mean is (0.5, 0.5, 0.5), but these weights were trained with (0.1, 0.2, 0.3)"
    ]


def test_what_is_allowed_to_be_missing_stays_random(state, tmp_path):
    partial = {key: value for key, value in state.items() if not key.startswith("layer4.")}
    source = folder_of(tmp_path / "w", partial)
    config = tiny.pipeline()
    config.model.pretrained = source
    with pytest.raises(UserError, match=r"missing[\s\S]*layer4[\s\S]*config\.model\.allow"):
        tiny.parts(config, tmp_path)
    config.model.allow = ("layer4/.*",)
    _, _, models = tiny.parts(config, tmp_path)
    model = models.starting_model(models.specify(config.finetune)).backbone
    first = model.layer1[0].conv1.kernel[...]
    np.testing.assert_array_equal(torch_axes("kernel", first), state["layer1.0.conv1.weight"])
    last = model.layer4[0].conv1.kernel[...]
    assert np.std(last) > 0 and np.isfinite(last).all()
