"""The command line as a stranger uses it: flags, exit statuses, what is printed and what is written."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from fgvc_jax import cli
from fgvc_jax.run import run

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = str(REPOSITORY / "launch.py")


def fill(root: Path, counts: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for name, n in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture
def call(monkeypatch, capsys):
    """call('train' or 'predict', *arguments) -> (exit status, standard output, standard error)."""

    def run(command: str, *arguments: str):
        monkeypatch.setattr(sys, "argv", ["fgvc", command, *map(str, arguments)])
        status = cli.main()
        return (status, *capsys.readouterr())

    return run


def test_usage(call, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fgvc"])
    assert cli.main() == 2
    assert "fgvc predict RUN PATHS" in capsys.readouterr().err
    status, out, _ = call("train", "--help")
    assert status == 0
    for flag in ("--config", "--workdir", "--dry_run", "--print_config", "--distributed"):
        assert flag.strip("-") in out
    status, _, err = call("tarin")
    assert status == 2 and "fgvc train" in err


def test_launch_py_from_another_folder(tmp_path):
    """In a process of its own, as typed; the config's path is relative to where one stands."""
    done = subprocess.run([sys.executable, LAUNCH, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: fgvc train --config=FILE.py" in done.stdout
    done = subprocess.run(
        [sys.executable, LAUNCH, "--config=configs/quickstart.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: no config file configs/quickstart.py")


def test_print_config_is_json_with_every_override_and_runs_nothing(call, tmp_path):
    status, out, _ = call(
        "train",
        f"--config={REPOSITORY}/configs/dtd_finer.py:vit_b16_384:released",
        "--config.finetune.batch=8",
        "--config.phases=finetune,evaluate",
        "--print_config",
    )
    config = json.loads(out)
    assert status == 0
    assert config["finetune"]["batch"] == 8 and config["finetune"]["length"] == "100 epochs"
    assert config["model"]["backbone"] == "vit_base_patch16_384"
    assert ",".join(config["phases"]) == "finetune,evaluate"


def test_dry_run_takes_two_steps_of_every_phase_and_leaves_the_run_alone(call, tmp_path):
    fill(tmp_path / "photos", {"ant": 70, "bee": 70})
    workdir = tmp_path / "run"
    command = (
        "train",
        f"--config={REPOSITORY}/configs/my_images.py",
        f"--config.data.root={tmp_path}/photos",
        "--config.model.pretrained=",
        "--config.model.backbone=resnet18",
        "--config.model.arguments.width=4",
        "--config.model.arguments.depths=(1, 1, 1, 1)",
        "--config.image.size=32",
        "--config.finetune.batch=8",
        "--config.log.tensorboard=false",
        "--config.log.report=false",
        f"--workdir={workdir}",
        "--dry_run",
    )
    status, out, err = call(*command)
    assert status == 0, err
    assert [p.name for p in workdir.iterdir()] == ["dry_run"]
    done = json.loads((workdir / "dry_run" / "finetune" / "DONE.json").read_text())
    assert done["steps"] == 2
    for split in json.loads((workdir / "dry_run" / "manifest.json").read_text())["splits"].values():
        assert 0 < len(split) <= 64
    for shown in ("device:", "2 steps", "test top-1", "majority class", f"files: {workdir}"):
        assert shown in out
    assert "Traceback" not in err


# fgvc predict


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a fine-tuned tiny ResNet on the digits."""
    config = tiny.pipeline()
    config.phases = ("finetune",)
    config.finetune.length = "2 steps"
    workdir = tmp_path_factory.mktemp("finished")
    run(config, workdir)
    return workdir


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_writes_a_row_for_each_image_of_files_and_folders(call, finished, tmp_path):
    fill(tmp_path / "new", {"deep/er, with comma": 2, "ä": 1})
    fill(tmp_path / "other", {"x": 1})
    (tmp_path / "new" / "notes.txt").write_text("no image")
    single = tmp_path / "other" / "x" / "0.png"
    out = tmp_path / "preds.csv"
    status, said, err = call("predict", finished, single, tmp_path / "new", f"--out={out}")
    assert status == 0, err
    assert "4 images" in said and str(out) in said
    found = rows(out)
    assert list(found[0])[:2] == ["file", "class"] and list(found[0])[-1] == "error"
    assert [Path(row["file"]) for row in found] == [
        single,
        tmp_path / "new" / "deep" / "er, with comma" / "0.png",
        tmp_path / "new" / "deep" / "er, with comma" / "1.png",
        tmp_path / "new" / "ä" / "0.png",
    ]
    for row in found:
        first, margin = float(row["probability"]), float(row["margin"])
        assert row["class"] in "0123456789" and row["second"] in "0123456789"
        assert row["class"] != row["second"]
        # The best of ten is at least a tenth, and both lie in what is left; 6 decimals are printed.
        assert 0.1 - 1e-6 <= first <= 1 and -1e-6 <= margin <= first + 1e-6
        assert first - margin <= 1 - first + 2e-6
        assert row["error"] == ""
    assert not list(tmp_path.glob("*.partial"))


def test_predict_writes_every_file_and_the_reason_where_there_is_no_answer(
    call, finished, tmp_path
):
    """A damaged image in the first, a middle and the last batch: the others keep their answers."""
    fill(tmp_path / "new", {"a": 7})
    out = tmp_path / "preds.csv"
    assert call("predict", finished, tmp_path / "new", f"--out={out}")[0] == 0
    expected = {row["file"]: row for row in rows(out)}
    for name, content in (("00.jpg", b""), ("3a.png", b"not an image"), ("9.jpg", b"\xff\xd8\xff")):
        (tmp_path / "new" / "a" / name).write_bytes(content)
    status, said, err = call("predict", finished, tmp_path / "new", f"--out={out}", "--batch=3")
    assert status == 3 and "Traceback" not in err
    assert "3 of 10 images could not be read" in err and "7 images, classified by" in said
    assert "predict  10/10  100%" in err
    found = rows(out)
    names = [
        "0.png",
        "00.jpg",
        "1.png",
        "2.png",
        "3.png",
        "3a.png",
        "4.png",
        "5.png",
        "6.png",
        "9.jpg",
    ]
    assert [Path(row["file"]).name for row in found] == names
    for row in found:
        if row["file"] in expected:
            assert row["class"] == expected[row["file"]]["class"] and row["error"] == ""
            # Other batches: the last bits of float32 sums, and 6 decimals are printed.
            want = float(expected[row["file"]]["probability"])
            assert float(row["probability"]) == pytest.approx(want, abs=3e-6)
        else:
            assert row["error"].startswith("cannot be read as an image: ")
            assert {row[key] for key in ("class", "probability", "second", "margin")} == {""}
    assert not list(tmp_path.glob("*.partial"))


def test_predict_without_any_readable_image(call, finished, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    status, _, err = call("predict", finished, tmp_path / "a.png", f"--out={tmp_path}/p.csv")
    assert status == 3 and "1 of 1 images could not be read" in err
    assert [row["error"] for row in rows(tmp_path / "p.csv")] == [
        "cannot be read as an image: the file is empty"
    ]


def test_a_command_may_return_its_exit_status(monkeypatch):
    from fgvc_jax.commands import predict

    for returned, status in ((None, 0), (0, 0), (3, 3)):
        monkeypatch.setattr(predict, "main", lambda returned=returned: returned)
        assert cli.run("predict") == status


def test_predict_refuses_what_is_not_there(call, finished, tmp_path):
    out = f"--out={tmp_path}/preds.csv"
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    status, _, err = call("predict", finished, tmp_path / "nowhere", out)
    assert status == 2 and f"{tmp_path}/nowhere does not exist" in err
    (tmp_path / "empty").mkdir()
    status, _, err = call("predict", finished, tmp_path / "empty", out)
    assert status == 2 and f"no images in {tmp_path}/empty" in err
    status, _, err = call("predict", tmp_path / "empty", image, out)
    assert status == 2 and "no finished classifier" in err and "--workdir" in err
    assert not (tmp_path / "preds.csv").exists()


def test_predict_says_early_that_it_cannot_write_there(call, finished, tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    status, _, err = call("predict", finished, image, f"--out={tmp_path}/nowhere/preds.csv")
    assert status == 2 and f"{tmp_path}/nowhere" in err and "Traceback" not in err


def test_installed_command(finished, tmp_path):
    """The console script, in a process of its own."""
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    script = Path(sys.executable).with_name("fgvc")
    if not script.exists():
        pytest.skip("the package is not installed with its console script")
    done = subprocess.run(
        [script, "predict", finished, image, f"--out={tmp_path}/preds.csv"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "preds.csv")) == 1
