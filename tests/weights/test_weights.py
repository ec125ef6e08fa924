"""Files of weights: what is loaded, what is said, and what is refused."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.weights import load_pretrained, readers


def make(family="resnet", seed=0, **kw):
    if family == "resnet":
        kw = {"width": 8, "depths": (1, 1, 1, 1)} | kw
        return backbones.create("resnet18", rngs=nnx.Rngs(seed), **kw)
    kw = {"depth": 1, "width": 16, "heads": 2, "image_size": 48} | kw
    return backbones.create("vit_tiny_patch16_224", rngs=nnx.Rngs(seed), **kw)


def torch_state(module) -> dict[str, np.ndarray]:
    """A ResNet's arrays in torch's names and axes."""
    last = {"mean": "running_mean", "var": "running_var", "kernel": "weight", "scale": "weight"}
    state = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        *parents, name = map(str, path)
        key = ".".join([*parents, last.get(name, name)])
        key = key.replace("downsample.conv", "downsample.0").replace(
            "downsample.bn", "downsample.1"
        )
        array = np.asarray(variable[...])
        state[key] = np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)
    return state


@pytest.fixture(scope="module")
def resnet():
    return make()


@pytest.fixture(scope="module")
def state():
    """Another ResNet's weights, with a head."""
    head = {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    return torch_state(make(seed=1)) | head


def write(state, path):
    if path.suffix == ".npz":
        np.savez(path, **state)
    else:
        save_file(state, path)
    return str(path)


def same(module, state) -> bool:
    ours = torch_state(module)
    return all(np.array_equal(ours[key], state[key]) for key in ours)


# --- what is loaded


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_formats_and_prefixes(suffix, prefix, state, tmp_path):
    module = make()
    assert not same(module, state)
    named = {
        key if key.startswith("fc") and "backbone" in prefix else prefix + key: value
        for key, value in state.items()
    }
    loaded, report = load_pretrained(module, write(named, tmp_path / f"weights{suffix}"))
    assert loaded is module and same(module, state)
    assert sorted(report.used.values()) == sorted(set(state) - {"fc.weight", "fc.bias"})
    assert "fc.bias" in report.text and "head is new" in report.text
    assert "mean 0.485 0.456 0.406" in report.text


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_precisions_become_the_parameters(dtype, state, tmp_path):
    module = make()
    narrow = {key: value.astype(dtype) for key, value in state.items()}
    load_pretrained(module, write(narrow, tmp_path / "weights.safetensors"))
    assert same(module, {key: value.astype(np.float32) for key, value in narrow.items()})


def test_loading_needs_no_initial_weights(state, tmp_path):
    module = nnx.eval_shape(make)
    load_pretrained(module, write(state, tmp_path / "weights.safetensors"))
    assert same(module, state)


def test_counters_are_ignored_and_said_so(state, tmp_path):
    state = state | {"bn1.num_batches_tracked": np.array(7)}
    _, report = load_pretrained(make(), write(state, tmp_path / "weights.safetensors"))
    assert report.ignored == ["bn1.num_batches_tracked"]
    assert "bn1.num_batches_tracked" in report.text


# --- what does not fit


def test_differences_are_named_in_both_directions(resnet, state, tmp_path):
    bad = dict(state)
    bad["layer4.0.bn1.wieght"] = bad.pop("layer4.0.bn1.weight")
    bad["neck.weight"] = np.zeros((2, 3), np.float32)
    bad["conv1.weight"] = np.zeros((8, 3, 3, 3), np.float32)
    path = write(bad, tmp_path / "weights.safetensors")
    before = torch_state(resnet)
    with pytest.raises(UserError) as error:
        load_pretrained(resnet, path)
    text = str(error.value)
    assert (
        "layer4/0/bn1/scale: no 'layer4.0.bn1.weight' [64] (nearest: 'layer4.0.bn1.wieght')" in text
    )
    assert "'layer4.0.bn1.wieght' [64] (nearest: 'layer4.0.bn1.weight')" in text
    assert "'neck.weight' [2, 3]" in text
    assert "'conv1.weight' is [8, 3, 3, 3] in the file, [8, 3, 7, 7] in the backbone" in text
    assert same(resnet, before)  # unchanged

    # Each of the four must be allowed.
    allow = [r"layer4/0/bn1/scale", r"layer4\.0\.bn1\.wieght", r"neck\..*", r"conv1/.*"]
    for i in range(4):
        with pytest.raises(UserError):
            load_pretrained(resnet, path, allow=allow[:i] + allow[i + 1 :])
    module = make()
    kept = np.array(module.conv1.kernel[...])
    _, report = load_pretrained(module, path, allow=allow)
    assert list(report.missing) == ["layer4/0/bn1/scale"]
    assert list(report.misshaped) == ["conv1/kernel"]
    assert sorted(report.unexpected) == ["layer4.0.bn1.wieght", "neck.weight"]
    assert "neck.weight" in report.text
    np.testing.assert_array_equal(module.conv1.kernel[...], kept)
    np.testing.assert_array_equal(
        module.layer1[0].conv1.kernel[...], state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    )


def test_a_wholly_wrong_file_gives_a_short_message(state, tmp_path):
    path = write(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"and .* more") as error:
        load_pretrained(make(width=16, depths=(3, 3, 3, 3)), path)
    assert len(str(error.value).splitlines()) < 40
    with pytest.raises(UserError, match=r"not weights of vit_tiny.*patch_embed\.proj\.weight"):
        load_pretrained(make("vit"), path)


def test_position_embeddings_are_resized_only_from_squares(tmp_path):
    timm = {
        "patch_embed/kernel": "patch_embed.proj.weight",
        "patch_embed/bias": "patch_embed.proj.bias",
    }
    state = {}
    for path, variable in nnx.to_flat_state(nnx.state(make("vit", seed=1))):
        path, array = "/".join(map(str, path)), np.asarray(variable[...])
        key = timm.get(path, re.sub("/(kernel|scale)$", ".weight", path).replace("/", "."))
        if path.endswith("kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[key] = np.ascontiguousarray(array)
    path = write(state, tmp_path / "weights.safetensors")
    module = make("vit", image_size=64)
    _, report = load_pretrained(module, path)
    assert report.resized == ["pos_embed"] and "pos_embed" in report.text
    np.testing.assert_array_equal(module.pos_embed[0, 0], state["pos_embed"][0, 0])
    _, report = load_pretrained(make("vit"), path)
    assert not report.resized
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(UserError, match=r"pos_embed: 'pos_embed' is .1, 9, 16. in the file"):
        load_pretrained(module, write(state, tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision/resnet50", r"resnet50\.IMAGENET1K_V2"),
        ("torchvision/resnet50.IMAGENET1K_V3", r"did you mean 'resnet50\.IMAGENET1K_V[12]'"),
        ("nowhere.pth", "not a file on this machine"),
        ("some/folder/nowhere.pth", "not a file on this machine"),
        ("runs/nowhere.safetensors", "not a file on this machine"),
        ("a/b/c", "not a file on this machine"),
        ("", "not a file on this machine|folder"),
    ],
)
def test_names_that_are_no_files(source, message, resnet):
    with pytest.raises(UserError, match=message):
        load_pretrained(resnet, source)


def test_an_unknown_suffix(resnet, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"unknown kind.*'\.ckpt'"):
        load_pretrained(resnet, str(tmp_path / "model.ckpt"))


# --- files of torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="writing torch's files needs torch")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_read_as_torch_reads_them(torch, legacy, tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "same storage": base,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        **{str(d): torch.ones(3).to(d) for d in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(d): torch.ones(3).to(d) for d in (torch.int32, torch.int16, torch.int8, torch.bool)},
        **{"uint8": torch.arange(3, dtype=torch.uint8)},
    }
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}})
    run = {"model": state, "epoch": 3, "lr": 0.1, "size": torch.Size([2]), "list": [1, (2, None)]}
    run |= {"dtype": torch.float32, "big": 2**40, "flag": True}
    path = tmp_path / "run.pt"
    for protocol in (2, 4):
        torch.save(run, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        contents = readers.read(path)
        assert contents.format == ("torch legacy" if legacy else "torch zip")
        assert {k: contents.tree[k] for k in ("epoch", "lr", "size", "list", "big", "flag")} == {
            **{
                "epoch": 3,
                "lr": 0.1,
                "size": (2,),
                "list": [1, (2, None)],
                "big": 2**40,
                "flag": True,
            }
        }
        for name, tensor in tensors.items():
            entry = contents.tree["model"][name]
            there = tensor.detach()
            assert entry.shape == tuple(there.shape)
            assert str(entry.dtype) == str(there.dtype).removeprefix("torch.")
            array = entry.load()
            assert array.shape == entry.shape and array.dtype == entry.dtype
            np.testing.assert_array_equal(array.astype(np.float64), there.double().numpy())


@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict"])
def test_nested_state_dicts(torch, container, state, tmp_path):
    module, path = make(), tmp_path / "run.pth"
    tensors = {f"module.{key}": torch.tensor(value) for key, value in state.items()}
    torch.save({container: tensors, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 4}, path)
    _, report = load_pretrained(module, str(path))
    assert same(module, state)
    assert f"under '{container}'" in report.text


def test_a_file_without_weights(torch, resnet, tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "run.pth")
    with pytest.raises(UserError, match=r"no weights found.*'epoch', 'best'"):
        load_pretrained(resnet, str(tmp_path / "run.pth"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value, resnet, state, tmp_path):
    state = {key: value_.copy() for key, value_ in state.items()}
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    path = write(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight.*not finite"):
        load_pretrained(resnet, path)


def test_integers_are_no_weights(resnet, state, tmp_path):
    state = state | {"conv1.weight": np.zeros((8, 3, 7, 7), np.int8)}
    with pytest.raises(UserError, match=r"conv1\.weight.*int8"):
        load_pretrained(resnet, write(state, tmp_path / "weights.safetensors"))


# --- hostile and broken files


def zipped(pickled: bytes, storages=None, compression=zipfile.ZIP_STORED) -> bytes:
    """A torch zip around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy(pickled: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


class Caller:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def stack_global(module: str, name: str) -> bytes:
    """Protocol 4 looks names up by getattr at every dot."""
    text = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
    return b"\x80\x04" + text + b"\x93"


def tensor(size, stride, offset=0, count=4, kind="FloatStorage", key="0") -> bytes:
    """A pickle {'w': tensor}, with the numbers as given."""

    def number(n):
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def tuple_of(items):
        return b"(" + b"".join(items) + b"t"

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    storage = tuple_of(
        [text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(count)]
    )
    arguments = [storage + b"Q", number(offset), tuple_of(map(number, size))]
    arguments += [tuple_of(map(number, stride)), b"\x89", b"}"]
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return b"\x80\x02}" + text("w") + rebuild + tuple_of(arguments) + b"Rs."


FLOATS = {"0": np.arange(4, dtype="<f4").tobytes()}


def test_the_handmade_tensor_is_a_good_one(tmp_path):
    # So that each refusal below is for its own reason.
    (tmp_path / "good.pth").write_bytes(zipped(tensor([2, 2], [2, 1]), FLOATS))
    entry = readers.read(tmp_path / "good.pth").tree["w"]
    np.testing.assert_array_equal(entry.load(), [[0, 1], [2, 3]])


def hostile(marker) -> dict[str, tuple[bytes, str]]:
    """Pickles by name, with a part of the reason for which they are refused."""
    nested = b"}"
    for _ in range(60):  # 2^60 leaves for a reader that follows every reference
        nested = b"}(K\x00" + nested + b"q\x01K\x01h\x01u"
    laughs = b")" + b"q\x01h\x01\x86" * 60  # the same of tuples, for one that hashes or prints them
    lists = b"]" + b"q\x010]h\x01ah\x01a" * 60
    ordered = b"ccollections\nOrderedDict\n"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    return {
        "os.system": (pickle.dumps(Caller(os.system, f"touch {marker}"), 2), "'posix.system'"),
        "eval": (pickle.dumps(Caller(eval, f"open({str(marker)!r}, 'w')"), 2), "eval'"),
        "eval, protocol 4": (pickle.dumps(Caller(eval, f"open({str(marker)!r}, 'w')"), 4), "eval'"),
        "getattr": (pickle.dumps(Caller(getattr, "", "join"), 2), "getattr'"),
        "import": (b"\x80\x02cevil_module\nx\n.", "'evil_module.x'"),
        "import by protocol 4": (stack_global("evil_module", "x") + b".", "'evil_module.x'"),
        "walks attributes": (
            stack_global("collections", "OrderedDict.fromkeys.__globals__") + b".",
            "'collections.OrderedDict.fromkeys.__globals__'",
        ),
        "walks modules": (stack_global("torch._utils", "sys.modules") + b".", "sys.modules'"),
        "walks torch": (b"\x80\x02ctorch\nos.system\n.", "'torch.os.system'"),
        "class instance": (pickle.dumps(np.float64(1), 2), "numpy"),
        "sets attributes of a name": (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00codeK\x01sb.",
            "Symbol",
        ),
        "INST": (b"(S'touch x'\nios\nsystem\n.", "STRING"),
        "OBJ": (b"\x80\x02(ctorch\nFloatStorage\no.", "OBJ"),
        "NEWOBJ": (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "NEWOBJ"),
        "extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
        "calls a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "torch.FloatStorage"),
        "calls a number": (b"\x80\x02K\x01)R.", "a call of 1"),
        "odd arguments": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85R.", "unusual"),
        "unhashable key": (b"\x80\x02}]]s.", "a list as a key"),
        "appends to a tuple": (b"\x80\x02)K\x01a.", "filling a tuple"),
        "empty stack": (b"\x80\x02.", "broken"),
        "no end": (b"\x80\x02}", "broken"),
        "unknown memo": (b"\x80\x02h\x07.", "broken"),
        "many references": (b"\x80\x02" + nested + b".", "no weights found"),
        "contains itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "broken"),
        "a tuple of tuples as key": (b"\x80\x02}" + laughs + b"K\x01s.", "a tuple as a key"),
        "and in pairs": (
            b"\x80\x02" + ordered + b"](" + laughs + b"K\x01\x86e\x85R.",
            "a tuple as a key",
        ),
        "calls lists of lists": (b"\x80\x02" + lists + b")R.", "a call of"),
        "names lists of lists": (b"\x80\x04" + lists + b"\x8c\x01x\x93.", "the name"),
        "a name in lists of lists": (b"\x80\x04\x8c\x01x" + lists + b"\x93.", "the name"),
        "stores in lists of lists": (b"\x80\x02" + lists + b"Q.", "the storage"),
        "a shape of lists of lists": (
            b"\x80\x02" + rebuild + b"(" + storage + b"K\x00" + lists + b"\x85K\x01\x85\x89}tR.",
            "a tensor of shape",
        ),
        "a shape of a thousand axes": (
            b"\x80\x02"
            + rebuild
            + b"("
            + storage
            + b"K\x00"
            + (b"(" + b"K\x01" * 1000 + b"t") * 2
            + b"\x89}tR.",
            "a tensor of shape",
        ),
        "the same key twice": (
            b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.",
            "'a' twice",
        ),
        "calls what a call gave": (b"\x80\x02" + ordered + b")R)R.", "a call of {}"),
        "sets the state of a dictionary": (
            b"\x80\x02}}X\x0c\x00\x00\x00__setstate__X\x01\x00\x00\x00xsb.",
            "no weights found",
        ),
        "sets the state of a list": (b"\x80\x02]}b.", "filling a list"),
        "nested very deep": (b"\x80\x02)" + b"\x85" * 200_000 + b".", "no weights found"),
        "dictionaries nested": (
            b"\x80\x02" + b"}K\x00" * 100_000 + b"}" + b"s" * 100_000 + b".",
            "broken",
        ),
        "a name of ten megabytes": (
            b"\x80\x02c" + b"x" * 10_000_000 + b"\nx\n.",
            "refused",
        ),
        "long string": (b"\x80\x02X\xff\xff\xff\x7fab.", "broken"),
        "long number": (b"\x80\x02\x8b\xff\xff\xff\x7fab.", "broken"),
    }


HOSTILE = list(hostile("marker"))


@pytest.mark.parametrize("wrap", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name, wrap, resnet, tmp_path, monkeypatch):
    marker = tmp_path / "executed"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w'); x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    pickled, reason = hostile(marker)[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(wrap(pickled))
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        load_pretrained(resnet, str(path))
    assert str(path) in str(error.value)
    assert not marker.exists() and "evil_module" not in sys.modules


def test_the_hostile_pickles_would_have_run(tmp_path):
    # Otherwise their refusal proves nothing.
    marker = tmp_path / "executed"
    for name in ("os.system", "eval", "eval, protocol 4"):
        pickle.loads(hostile(marker)[name][0])
        assert marker.exists()
        marker.unlink()


AUDITED = """
import json, os, pickle, resource, sys, time
from flax import nnx
from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.weights import load_pretrained

module = nnx.eval_shape(
    lambda: backbones.create("resnet18", rngs=nnx.Rngs(0), width=8, depths=(1, 1, 1, 1))
)
good, control, *files = sys.argv[1:]
events = []
watched = ("os.", "subprocess.", "exec", "compile", "import", "pickle.", "ctypes.", "socket.", "shutil.")

def hook(event, arguments):
    if watching and event.startswith(watched):
        events.append(event)

def load(path):
    try:
        load_pretrained(module, path)
    except UserError as error:
        return str(error)

watching = False
sys.addaudithook(hook)
load(good), load(files[0]), load(files[-1])  # imports what is imported late
found = {}
for path in files:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    watching = True
    message = load(path)
    watching = False
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found[path] = [message, events[:], grown / 1024, time.perf_counter() - start]
    events.clear()
watching = True
pickle.load(open(control, "rb"))
print(json.dumps([found, events]))
"""


def test_an_audit_of_the_hostile_pickles(state, tmp_path):
    """Another process watches what Python itself reports: no import, no call of the system, no code made."""
    marker = tmp_path / "executed"
    good = write(state, tmp_path / "good.safetensors")
    files, reasons = [], {}
    for number, (name, (pickled, reason)) in enumerate(hostile(marker).items()):
        for wrap in (zipped, legacy):
            path = tmp_path / f"{number}_{wrap.__name__}.pth"
            path.write_bytes(wrap(pickled))
            files.append(str(path))
            reasons[str(path)] = (name, reason)
    control = tmp_path / "control.pkl"
    control.write_bytes(pickle.dumps(Caller(os.system, f"touch {marker}"), 2))
    command = [sys.executable, "-c", AUDITED, good, str(control), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, caught = json.loads(done.stdout)
    assert {"os.system", "pickle.find_class"} <= set(caught) and marker.exists()  # the watch works
    assert set(found) == set(files)
    for path, (message, events, megabytes, seconds) in found.items():
        name, reason = reasons[path]
        assert message and reason in message and len(message) < 2000, (name, message)
        assert events == [], (name, events)
        # The largest file has 10 MB; one that unfolds what it refers to would never end.
        assert megabytes < 200 and seconds < 30, (name, megabytes, seconds)


def test_a_pickle_of_any_length(resnet, tmp_path, monkeypatch):
    """A dictionary has 64 bytes in memory, and one in the file."""
    monkeypatch.setattr(readers.pickles, "MAX_BYTES", 1000)
    path = tmp_path / "weights.pth"
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(b"\x80\x02(" + b"}" * 900 + b"t."))
        with pytest.raises(UserError, match="no weights found"):
            load_pretrained(resnet, str(path))
        path.write_bytes(wrap(b"\x80\x02(" + b"}" * 1000 + b"t."))
        with pytest.raises(UserError, match="over 1,000 bytes of pickle"):
            load_pretrained(resnet, str(path))


BAD_TENSORS = {
    "beyond its storage": tensor([2, 3], [2, 1]),
    "offset beyond": tensor([2], [1], offset=3),
    "negative offset": tensor([2], [1], offset=-1),
    "negative stride": tensor([2], [-1], offset=3),
    "stride 0 over a huge shape": tensor([2**40], [0]),
    "huge shape, no elements elsewhere": tensor([2**62, 2**62], [0, 0]),
    "rank of strides": tensor([2, 2], [1]),
    "storage longer than its bytes": tensor([8], [1], count=8),
    "storage that is not there": tensor([2], [1], key="1"),
    "storage elsewhere in the archive": tensor([2], [1], key="../version"),
    "unknown storage": tensor([2], [1], kind="QInt8Storage"),
    "negative storage": tensor([0], [1], count=-1),
    "one number as a terabyte": tensor([2**38], [0], count=1),
    "one number, seen twice": tensor([2, 4], [0, 1], count=4),
    "offset beyond, of nothing": tensor([0], [1], offset=2**63),
    "strides that wrap around": tensor([2], [2**63 - 1]),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_outside_their_storage(name, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(BAD_TENSORS[name], FLOATS))
    with pytest.raises(UserError, match=r"refused|broken"):
        readers.read(path)


def test_broken_files(torch, resnet, state, tmp_path):
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    path = tmp_path / "weights.pth"
    for legacy_layout in (False, True):
        torch.save(tensors, path, _use_new_zipfile_serialization=not legacy_layout)
        whole = path.read_bytes()
        load_pretrained(resnet, str(path))
        for length in (0, 3, 10, 1000, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"broken or truncated|not a torch file"):
                load_pretrained(resnet, str(path))
    torch.save(tensors, path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF  # a checksum catches it
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="broken or truncated"):
        load_pretrained(resnet, str(path))


def test_broken_safetensors(resnet, state, tmp_path):
    path = tmp_path / "weights.safetensors"
    write(state, path)
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-4], struct.pack("<Q", 2**60) + whole[8:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="broken or truncated"):
            load_pretrained(resnet, str(path))


def test_compressed_and_foreign_archives(resnet, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(b"\x80\x02}.", {"0": bytes(10**7)}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 10**5  # a bomb
    with pytest.raises(UserError, match="compressed in an unusual way"):
        load_pretrained(resnet, str(path))
    for data, message in [
        (b"<!DOCTYPE html>", "not a torch file"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
        (zipped(b"").replace(b"data.pkl", b"data.txt"), "not one that torch.save wrote"),
    ]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            load_pretrained(resnet, str(path))
    buffer = io.BytesIO(zipped(b"\x80\x02}."))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="big-endian"):
        load_pretrained(resnet, str(path))


def test_hostile_npz(resnet, state, tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **state, hidden=np.array([Caller(os.system, "true")], object))
    with pytest.raises(UserError, match=r"hidden\.npy holds Python objects"):
        load_pretrained(resnet, str(path))
    np.savez_compressed(path, bomb=np.zeros(10**7))
    with pytest.raises(UserError, match="twenty times"):
        load_pretrained(resnet, str(path))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    claimed = buffer.getvalue().replace(b"(3,), }          ", b"(3000000000000,), }")[
        : len(buffer.getvalue())
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("long.npy", claimed)
    with pytest.raises(UserError, match=r"not as long as its header says|broken"):
        load_pretrained(resnet, str(path))


def test_members_that_are_there_twice_or_packed_otherwise(resnet, tmp_path):
    path = tmp_path / "weights.pth"
    for suffix, name in ((".pth", "archive/data.pkl"), (".npz", "a.npy")):
        path = path.with_suffix(suffix)
        path.write_bytes(zipped(tensor([2], [1]), FLOATS))
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, b"x")
            archive.writestr(name, b"y")
        with pytest.raises(UserError, match="two members of the same name"):
            load_pretrained(resnet, str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", bytes(100))
    with pytest.raises(UserError, match="compressed in an unusual way"):
        load_pretrained(resnet, str(path))


def test_a_member_that_lies_about_its_size(tmp_path):
    """A terabyte by the archive's own table, of which 16 bytes are there."""
    count = 2**29  # of float32: 2 GiB, what a table without extensions can say
    data = bytearray(zipped(tensor([count], [1], count=count), FLOATS))
    entry = data.index(b"archive/data/0", data.index(b"PK\x01\x02")) - 46
    data[entry + 24 : entry + 28] = struct.pack("<I", 4 * count)  # unpacked
    path = tmp_path / "weights.pth"
    for packed in (16, 4 * count):
        data[entry + 20 : entry + 24] = struct.pack("<I", packed)
        path.write_bytes(data)
        with pytest.raises(UserError, match="broken"), readers.explained(path):
            readers.read(path).tree["w"].load()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])}, "broken"),  # overlapping
        ({"a": ("F32", [2], [0, 800])}, "broken"),
        ({"a": ("F32", [2], [-8, 0])}, "broken"),
        ({"a": ("F32", [2**40], [0, 8])}, "broken"),
        ({"a": ("F32", [2**40, 2**40], [0, 8])}, "broken"),
        ({"a": ("F32", [-2], [0, 8])}, "broken"),
        ({"a": ("F8_E4M3", [8], [0, 8])}, "holds f8_e4m3, which is not supported"),
        ({"a": ("OBJECT", [1], [0, 8])}, "broken"),
        ({"a\x1b[2J": ("F32", [2], [0, 8])}, "no name of an array"),
        ({"x" * 10_000: ("F32", [2], [0, 8])}, "no name of an array"),
        ({}, "no weights found"),
    ],
)
def test_hostile_safetensors(header, reason, resnet, tmp_path):
    header = {
        key: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for key, (dtype, shape, offsets) in header.items()
    }
    text = json.dumps(header).encode()
    size = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(min(max(size, 0), 12)))
    with pytest.raises(UserError, match=reason) as error:
        load_pretrained(resnet, str(path))
    assert len(str(error.value)) < 1000 and "\x1b" not in str(error.value)


def test_names_that_become_the_same(resnet, state, tmp_path):
    old = "encoder.layers.encoder_layer_0.mlp.linear_1.bias"
    both = {old: np.zeros(1), old.replace("linear_1", "0"): np.zeros(1)}
    with pytest.raises(
        UserError, match=r"linear_1\.bias' and '.*mlp\.0\.bias' name the same array"
    ):
        load_pretrained(make("vit"), write(both, tmp_path / "weights.safetensors"))


def test_npz_in_fortran_order(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "a.npz", a=array)
    np.testing.assert_array_equal(readers.read(tmp_path / "a.npz").tree["a"].load(), array)


def test_half_precision_is_not_rounded_twice(tmp_path):
    # bfloat16 from a safetensors file keeps its type until it is a parameter.
    save_file({"a": np.array([1.0078125], jnp.bfloat16)}, tmp_path / "a.safetensors")
    entry = readers.read(tmp_path / "a.safetensors").tree["a"]
    assert entry.dtype == jnp.bfloat16 and jax.numpy.asarray(entry.load())[0] == 1.0078125
