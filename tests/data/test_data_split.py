"""Which examples are held out: shares, groups, file names that look like groups."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.data.split import carve, groups, propose_groups, retrieval, stratified
from fgvc_jax.errors import UserError


def test_every_class_gives_its_share_and_keeps_one():
    labels = np.repeat([0, 1, 2, 3, 4, 7], [1, 2, 4, 5, 25, 100])
    labels = np.random.default_rng(0).permutation(labels)
    kept, held_out = stratified(labels, 0.1, seed=3)
    # fraction * n, halves up: 0.1, 0.2, 0.4, 0.5, 2.5, 10
    expected = {0: 0, 1: 0, 2: 0, 3: 1, 4: 3, 7: 10}
    assert {c: int((labels[held_out] == c).sum()) for c in expected} == expected
    np.testing.assert_array_equal(np.sort(np.r_[kept, held_out]), np.arange(len(labels)))
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()

    _, most = stratified(labels, 0.99, seed=3)
    assert all((labels[most] == c).sum() < (labels == c).sum() for c in expected)
    assert len(stratified(labels, 0.0, seed=3)[1]) == 0


def test_the_draw_is_frozen_for_all_numpy_versions():
    # Recorded once. A change here would silently change everybody's validation set.
    _, held_out = stratified(np.repeat([0, 1], 10), 0.3, seed=0)
    assert held_out.tolist() == RECORDED


RECORDED = [0, 8, 9, 14, 18, 19]


def test_seeds_differ_and_a_class_does_not_depend_on_the_others_labels():
    labels = np.repeat(np.arange(4), 50)
    first = stratified(labels, 0.2, seed=0)[1]
    assert (first == stratified(labels, 0.2, seed=0)[1]).all()
    assert (first != stratified(labels, 0.2, seed=1)[1]).any()
    renamed = np.where(labels == 3, 9, labels)
    np.testing.assert_array_equal(first, stratified(renamed, 0.2, seed=0)[1])


def test_every_example_is_as_likely():
    labels = np.repeat([0, 1], 20)
    times = np.zeros(40)
    for seed in range(400):
        times[stratified(labels, 0.25, seed)[1]] += 1
    # Binomial(400, 1/4): mean 100, sd 8.7; 4.5 sd over 40 examples at fixed seeds.
    assert np.abs(times - 100).max() < 39


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(ValueError, match="fraction"):
        stratified(np.zeros(3, int), fraction, 0)


# Groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_on_one_side_and_classes_keep_near_their_shares(seed):
    """Bursts of 1 to 4 photos, some of which show two classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 200)
    group = np.repeat(rng.permutation(1000)[:200], sizes)
    labels = np.repeat(rng.integers(0, 4, 200), sizes)
    labels = np.where(rng.random(len(labels)) < 0.05, 3, labels)
    order = rng.permutation(len(labels))
    group, labels = group[order], labels[order]
    kept, held_out = stratified(labels, 0.2, seed, group)
    np.testing.assert_array_equal(np.sort(np.r_[kept, held_out]), np.arange(len(labels)))
    assert not set(group[kept]) & set(group[held_out])
    total, held = np.bincount(labels), np.bincount(labels[held_out], minlength=4)
    # A group is taken only where that brings its classes nearer to their shares: the last one taken has at
    # most 4 photos, so a class ends within 2 of its share, or 4 where a photo of it came with another class.
    assert np.abs(held - 0.2 * total).max() <= 4
    again = stratified(labels, 0.2, seed, group * 7 + 1)[1]  # names of groups do not matter
    np.testing.assert_array_equal(held_out, again)
    assert set(stratified(labels, 0.2, seed + 1, group)[1]) != set(held_out)


def test_groups_of_one_are_the_plain_draw():
    labels = np.random.default_rng(0).integers(0, 9, 300)
    for fraction in (0.0, 0.13, 0.5, 0.99):
        plain = stratified(labels, fraction, 5)[1]
        np.testing.assert_array_equal(stratified(labels, fraction, 5, np.arange(300) + 7)[1], plain)
        words, held = np.random.Philox(5).random_raw(300), []
        for c in range(9):  # the smallest words of a class, as many as its share
            members = np.flatnonzero(labels == c)
            count = min(int(fraction * len(members) + 0.5), len(members) - 1)
            held += members[np.argsort(words[members])][:count].tolist()
        assert sorted(held) == plain.tolist()


def test_groups_never_empty_a_class():
    # Class 0 is one group; 1 has a photo of it beside its own.
    labels, group = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([5, 5, 5, 5, 6, 7, 8])
    for seed in range(20):
        kept = stratified(labels, 0.9, seed, group)[0]
        assert set(labels[kept]) == {0, 1}


def test_keys_are_the_first_group_or_the_whole_match(said):
    files = [
        "a/part1_x.jpg",
        "a/part1_y.jpg",
        "b/part1_z.jpg",
        "a/part2_x.jpg",
        "other.jpg",
        "o.jpg",
    ]
    assert groups(files, r"(part\d+)_").tolist() == [0, 0, 0, 1, 2, 3]
    assert groups(files, r"part\d+_").tolist() == [0, 0, 0, 1, 2, 3]
    assert groups(files, r"^(\w+)/part|(?:other)").tolist() == [0, 0, 1, 0, 2, 3]
    assert said == []
    carve(toy(train=(files, [0, 1] * 3)), val_fraction=0.4, group=r"(part\d+)_")
    assert said[0] == (
        "6 images are 4 groups by '(part\\\\d+)_', each kept in one split; "
        "2 that do not match it are groups of their own"
    )


def test_patterns_that_are_wrong():
    with pytest.raises(UserError, match=r"data.group = '\(a' is not a regular expression"):
        groups(["a"], "(a")
    with pytest.raises(UserError, match=r"matches none of 2 files, such as 'a.jpg'"):
        groups(["a.jpg", "b.jpg"], r"\d")


def toy(**splits):
    made = {k: Split(tuple(f), np.array(n, np.int32)) for k, (f, n) in splits.items()}
    return Manifest("toy", ("x", "y"), made, read=None)


def test_carving_keeps_groups_together_through_train_val_and_test(said):
    files = [f"{'xy'[i // 60]}/burst{i // 3:03d}-{i % 3}.jpg" for i in range(120)]
    labels = [i // 60 for i in range(120)]
    found = carve(toy(all=(files, labels)), group=r"burst(\d+)", seed=1)
    assert {k: np.bincount(s.labels).tolist() for k, s in found.splits.items()} == {
        "train": [48, 48],  # 6 of 60 are two bursts of three
        "val": [6, 6],
        "test": [6, 6],
    }
    sides = [{f[:-6] for f in s.files} for s in found.splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40
    assert "120 images are 40 groups by" in said[0]


def test_given_splits_are_left_alone_and_a_group_that_has_no_use_is_told(said):
    given = toy(train=(["a1", "b1"], [0, 1]), val=(["a2"], [0]))
    assert carve(given, group="a").splits == given.splits
    assert said[0] == "toy: data.group = 'a' is not used: train and val are given"


def test_groups_too_large_for_validation():
    files = [f"{i // 10}_{i}" for i in range(20)]
    with pytest.raises(UserError, match=r"the largest has 10 images, kept together by data.group"):
        manifests.check(carve(toy(all=(files, [0] * 10 + [1] * 10)), group=r"(\d+)_"))


# Retrieval


def test_retrieval_splits_of_a_plain_folder_share_no_class(said):
    """First half of the classes in train, second in test, validation: training classes held out whole."""
    classes = tuple("abcdefgh")
    files = [f"{c}/{i}.jpg" for c in classes for i in range(3)]
    whole = Split(tuple(files), np.repeat(np.arange(8), 3).astype(np.int32))
    manifest = Manifest("toy", classes, {"all": whole}, read=None)
    found = retrieval(manifest, val_fraction=0.25, seed=1)
    own = {k: {f[0] for f in s.files} for k, s in found.splits.items()}
    assert own["test"] == set("efgh") and own["train"] | own["val"] == set("abcd")
    assert len(own["val"]) == 1 and not own["train"] & own["val"]
    for s in found.splits.values():  # each file keeps its label
        assert [classes[label] for label in s.labels] == [f[0] for f in s.files]
    assert sorted(f for s in found.splits.values() for f in s.files) == sorted(files)
    manifests.check(found)
    with pytest.raises(UserError, match="no training image"):
        manifests.check_classification(found)
    # The same where a classification split came with them.
    cut = {
        k: Split(whole.files[i::3], whole.labels[i::3])
        for i, k in enumerate(("train", "val", "test"))
    }
    again = retrieval(dataclasses.replace(manifest, splits=cut), 0.25, 1)
    assert {k: sorted(s.files) for k, s in again.splits.items()} == {
        k: sorted(s.files) for k, s in found.splits.items()
    }
    # Train and test without a class in common stay; only validation is made.
    given = {
        "train": Split(whole.files[12:], whole.labels[12:]),
        "test": Split(whole.files[:12], whole.labels[:12]),
    }
    fault = manifests.Fault("unknown_class", "a test class that train lacks", "", classes=("a",))
    kept = retrieval(dataclasses.replace(manifest, splits=given, faults=(fault,)), 0.25, 1)
    assert kept.splits["test"] is given["test"] and kept.faults == ()
    assert len({f[0] for f in kept.splits["val"].files}) == 1
    with pytest.raises(UserError, match="needs four at least"):
        retrieval(toy(all=(["a", "b"], [0, 1])), 0.1, 0)


# Proposals


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("part{}_view{}.jpg", "123"),
        ("part{}{}.jpg", "abc"),
        ("IMG_10{}_{}.JPG", "12"),
        ("serial-004{}-{}.png", "ab"),
        ("clip{} frame{}.jpg", ("00001", "00002")),
    ],
)
def test_file_names_that_look_like_views_of_one_thing(name, views):
    # Classes number their things alike; a thing may have got into train and test.
    things = [(c, i, v) for c in "abcd" for i in range(3) for v in views]
    files = [f"{'train' if v in '1ab' else 'test'}/{c}/{name.format(i, v)}" for c, i, v in things]
    truth = [(c, i) for c, i, _ in things]
    pattern, why = propose_groups([*files, "train/0/odd one out.jpg"])
    index = groups(files, pattern)
    assert len(set(zip(index, truth, strict=True))) == len(set(index)) == 12
    assert f"{len(files)} of {len(files) + 1} file names" in why and "12 things" in why


def test_no_proposal_where_names_only_count():
    for names in (
        [f"Anjou_{i:03d}.jpg" for i in range(50)],
        [f"n02085620_{i}.jpg" for i in range(50)],  # the number of the class
        [f"Black_Footed_Albatross_{i:04d}_{796 + i}.jpg" for i in range(50)],
        [f"{i:05d}.jpg" for i in range(50)],
        [f"{i:032x}.jpg" for i in range(50)],
        [f"IMG_20240101_{120000 + i}.jpg" for i in range(50)],
        [f"IMG_{i:04d}.jpg" for i in range(50)],
    ):
        assert propose_groups([f"train/a/{name}" for name in names]) is None, names[0]


def test_no_proposal_for_produce31():
    root = Path(
        os.environ.get("FGVC_PRODUCE31", Path(__file__).parents[2] / "../shared/data/produce31")
    )
    if not root.is_dir():
        pytest.skip("needs the folder produce31")
    files = [str(p.relative_to(root)) for p in root.rglob("*.jpg")]
    assert len(files) == 2506 and propose_groups(files) is None
