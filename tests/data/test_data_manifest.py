import dataclasses
import json

import numpy as np
import pytest

from fgvc_jax.data import manifest as m
from fgvc_jax.errors import UserError


def make(train=("a", "b"), labels=(0, 1), classes=("x", "y"), **more):
    splits = {"train": m.Split(tuple(train), np.array(labels, np.int32))}
    splits |= {k: m.Split(tuple(f), np.array(n, np.int32)) for k, (f, n) in more.items()}
    return m.Manifest("toy", tuple(classes), splits, read=lambda f: None)


def message(manifest):
    with pytest.raises(UserError) as error:
        m.check(manifest)
    return str(error.value)


def test_a_sound_manifest_passes_even_where_a_split_lacks_classes():
    m.check(make(val=(["c"], [1]), test=(["d"], [0])))


@pytest.mark.parametrize("label", [2, -1, 4780])
def test_label_outside_the_table_is_named(label):
    text = message(make(val=(["fine", "bad.jpg"], [0, label])))
    for part in ("'val'", "bad.jpg", str(label), "0..1", "1 of 2"):
        assert part in text


def test_other_inconsistencies_are_named():
    assert "'x' stands twice" in message(make(classes=("x", "x")))
    assert "labels of shape (1,)" in message(make(labels=(0,)))
    assert "'val' is empty" in message(make(val=([], [])))
    assert "'b' stands in 'train' and 'test'" in message(make(test=(["b"], [1])))
    assert "'a' stands twice in 'train'" in message(make(train=("a", "b", "a"), labels=(0, 1, 0)))
    floats = m.Split(("a", "b"), np.array([0.0, 1.0]))
    assert "not integers" in message(m.Manifest("toy", ("x", "y"), {"train": floats}, None))
    ids = dataclasses.replace(make(), ids=("7", "7"))
    assert "2 class ids, 1 of them different, for 2 classes" in message(ids)
    no_train = make()
    no_train.splits["val"] = no_train.splits.pop("train")
    assert "no 'train' split; there are: val" in message(no_train)
    faults = (m.Fault("a", "One", "Mend it."), m.Fault("b", "Two", "Go."))
    assert message(dataclasses.replace(make(), faults=faults)) == "One. Mend it.\nTwo. Go."


def test_what_a_classifier_needs_is_a_check_of_its_own():
    one, lacking = make(("a",), (0,), ("x",)), make(labels=(0, 0), test=(["c"], [1]))
    for manifest, text in ((one, "at least two"), (lacking, "1 class has no training image: y")):
        m.check(manifest)
        with pytest.raises(UserError, match=text) as error:
            m.check_classification(manifest)
    assert "data.splits=official" in str(error.value)  # no class in common: to learn a metric
    m.check_classification(make())


def test_save_writes_one_readable_line_a_file(tmp_path):
    odd = "caf\udce9.jpg"  # a file name that is not UTF-8, as the system gives it
    manifest = make(train=("né/ö.jpg", odd), classes=("né", "y"), val=(["v.jpg"], [1]))
    path = tmp_path / "manifest.json"
    m.save(manifest, path)
    m.save(manifest, path)  # again over itself
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
    text = path.read_text("utf-8", errors="surrogateescape")
    assert '   "né/ö.jpg": 0,\n' in text
    assert json.loads(text) == {
        "name": "toy",
        "root": None,
        "classes": ["né", "y"],
        "splits": {"train": {"né/ö.jpg": 0, odd: 1}, "val": {"v.jpg": 1}},
    }


def test_ids_are_saved_and_count_and_without_them_the_digest_is_as_ever(tmp_path):
    manifest = make(val=(["c"], [1]))
    # Recorded before there were ids: runs of then go on.
    assert m.digest(manifest) == "2226637d93279dbd"
    path = tmp_path / "manifest.json"
    with_ids = dataclasses.replace(manifest, ids=("04780", "007"))
    for each in (manifest, with_ids, dataclasses.replace(manifest, unlabelled=("u.jpg",))):
        m.save(each, path)
        assert m.digest_saved(path) == m.digest(each)
        assert json.loads(path.read_text()).get("ids") == (list(each.ids) or None)
    assert m.digest(with_ids) != m.digest(manifest)
    assert m.digest(dataclasses.replace(with_ids, ids=("007", "04780"))) != m.digest(with_ids)
