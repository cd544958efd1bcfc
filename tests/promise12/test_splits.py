"""Splits against the zoo's published one, the arithmetic of folds, and files in every bad state."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from src.commands import run_script
from src.promise12.splits import (
    draw_splits,
    list_cases,
    read_split,
    split_cases,
    split_file,
    write_splits,
)
from src.utils.errors import DataError, UsageError
from tests.helpers import ROOT

ZOO_EVALUATION = [11, 15, 19, 30, 42, 43, 44, 46, 48, 49]


def make_cases(folder, images, masks=None):
    """Empty files under the given names: a split looks at names only."""
    if masks is None:
        masks = [f"{name.split('.')[0]}_segmentation.mhd" for name in images]
    for subfolder, names in (("img", images), ("gt", masks)):
        (folder / subfolder).mkdir()
        for name in names:
            (folder / subfolder / name).touch()
    return folder


def numbered(numbers):
    return [f"Case{number:02d}.mhd" for number in numbers]


# Drawing ----------------------------------------------------------------------------------------


def test_zoo_split_is_the_zoos():
    splits = draw_splits(None)
    assert splits["val.csv"] == numbered(ZOO_EVALUATION)
    assert splits["train.csv"] == numbered(n for n in range(50) if n not in ZOO_EVALUATION)


@pytest.mark.parametrize("count, evaluated", [(2, 1), (3, 1), (7, 1), (8, 2), (50, 10), (53, 11)])
def test_random_split_takes_a_fifth(count, evaluated):
    cases = numbered(range(count))
    splits = draw_splits(cases, shuffled=True, seed=2)
    assert len(splits["val.csv"]) == evaluated
    assert sorted(splits["train.csv"] + splits["val.csv"]) == cases
    assert splits["val.csv"] == sorted(splits["val.csv"])


@pytest.mark.parametrize("arguments", [{"shuffled": True}, {"folds": 4}])
def test_seed_decides_the_draw(arguments):
    draws = [draw_splits(None, seed=seed, **arguments) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] == draw_splits(None, **arguments)
    assert draws[0] != draws[2] != draws[3]


def test_draw_does_not_depend_on_the_order_of_the_cases():
    cases = numbered(range(20))
    assert draw_splits(cases, folds=3) == draw_splits(cases[::-1], folds=3)


@pytest.mark.parametrize("count, folds", [(2, 2), (10, 3), (11, 5), (50, 5), (50, 7), (5, 5)])
def test_each_case_is_validated_once(count, folds):
    cases = numbered(range(count))
    splits = draw_splits(cases, folds=folds)
    assert sorted(splits) == sorted(
        f"{kind}_fold{fold}.csv" for kind in ("train", "val") for fold in range(folds)
    )
    held_out = [splits[f"val_fold{fold}.csv"] for fold in range(folds)]
    assert sorted(sum(held_out, [])) == cases
    assert {len(fold) for fold in held_out} <= {count // folds, count // folds + 1}
    for fold in range(folds):
        assert set(splits[f"train_fold{fold}.csv"]) == set(cases) - set(held_out[fold])


def digest(splits):
    text = "\n".join(f"{name} {' '.join(cases)}" for name, cases in splits.items())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_challenges_draws_stay_as_they_were():
    """The digests are those of draws by case: cases of a patient each are drawn the same."""
    assert digest(draw_splits(None, shuffled=True, seed=7)) == "1602ef818165"
    assert digest(draw_splits(None, folds=5)) == "dfa690a4fefb"
    one_study_each = [f"{10000 + n}_{1000000 + n}.mha" for n in range(53)]
    assert digest(draw_splits(one_study_each, folds=4, seed=3)) == "f9c3cdaf76f1"


STUDIES = {
    "PI-CAI": [f"{10000 + n // 2}_{1000000 + n}.mha" for n in range(50)],
    "PI-CAI, its file names": [f"{10000 + n // 2}_{1000000 + n}_t2w.mha" for n in range(50)],
    "BIDS": [f"sub-{n // 2:02}_ses-{n % 2}_T2w.nii.gz" for n in range(50)],
    "two kinds": [*(f"{10000 + n // 2}_{1000000 + n}.nii" for n in range(40)), *numbered(range(5))],
}


@pytest.mark.parametrize("arguments", [{"shuffled": True}, {"folds": 5}])
@pytest.mark.parametrize("kind", STUDIES)
def test_a_patient_is_on_one_side(kind, arguments, capsys):
    cases = STUDIES[kind]
    splits = draw_splits(cases, **arguments)
    for name, held_out in splits.items():
        if name.startswith("val"):
            trained = splits[name.replace("val", "train")]
            assert sorted(trained + held_out) == sorted(cases)
            sides = [{case.split("_")[0] for case in side} for side in (trained, held_out)]
            assert not sides[0] & sides[1]
            assert len(held_out) == pytest.approx(len(cases) / 5, abs=1)
    assert "25 patients of " + f"{len(cases)} cases by their names" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cases", [numbered(range(9)), ["a_1.nii", "a_2.nii", "1-2.nii", "1-3.nii"]]
)
def test_other_names_are_a_patient_each(cases, capsys):
    splits = draw_splits(cases, folds=len(cases))
    assert all(len(names) in (1, len(cases) - 1) for names in splits.values())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "cases, arguments, message",
    [
        (
            ["sub-1_ses-1.mha", "sub-1_ses-2.mha", "sub-2_ses-1.mha"],
            {"folds": 3},
            "expected 2 to 2, the number of patients",
        ),
        (
            ["10001_1000001.mha", "10001_1000002.mha"],
            {"shuffled": True},
            "of one patient.*rename.*or write the split",
        ),
        (["sub-1_ses-1.nii", "sub-1_ses-2.nii"], {"folds": 2}, "of one patient by their names"),
        (numbered(range(10)), {"folds": 1}, "expected 2 to 10"),
        (numbered(range(10)), {"folds": 0}, "expected 2 to 10"),
        (numbered(range(10)), {"folds": -3}, "expected 2 to 10"),
        (numbered(range(10)), {"folds": 11}, "expected 2 to 10"),
        (numbered([7]), {"shuffled": True}, "1 case cannot be split"),
        (["a.nrrd", "b.nrrd"], {}, "none of the 2 cases.*--random 1 or --folds"),
        (numbered([11, 15]), {}, "all of the 2 cases.*--random 1 or --folds"),
    ],
)
def test_requests_that_do_not_fit_the_cases(cases, arguments, message):
    with pytest.raises(UsageError, match=message):
        draw_splits(cases, **arguments)


# The cases that are there -----------------------------------------------------------------------


def test_cases_in_takes_any_name_and_suffix(tmp_path):
    names = ["Case30.mhd", "a b.nii.gz", "k.nii", "p.mha", "z-1.nrrd"]
    data = make_cases(tmp_path, [*names, "Case30.raw", "notes.txt", "._Case30.mhd"])
    assert list_cases(data) == names


def test_images_that_are_not_read_are_told(tmp_path, capsys):
    data = make_cases(tmp_path, ["a.mhd", "b.mhd", "c.nhdr"], ["a_segmentation.mhd"] * 2)
    (data / "gt" / "b_segmentation.mhd").touch()
    assert list_cases(data) == ["a.mhd", "b.mhd"]
    told = capsys.readouterr().out
    assert "c.nhdr in img/ or gt/ cannot be read there and are left out; prepare_data.py" in told
    (data / "img" / "c.nhdr").unlink()
    list_cases(data)
    assert capsys.readouterr().out == ""


def test_zoo_split_of_the_cases_that_are_there(tmp_path):
    data = make_cases(tmp_path, ["Case00.nii.gz", "Case11.nii.gz", "Case49.mhd", "Case70.mhd"])
    splits = draw_splits(list_cases(data))
    assert splits == {
        "train.csv": ["Case00.nii.gz", "Case70.mhd"],
        "val.csv": ["Case11.nii.gz", "Case49.mhd"],
    }


@pytest.mark.parametrize(
    "images, masks, message",
    [
        ([], [], "no images"),
        (["Case00.raw", "notes.txt"], [], "no images"),
        (["a.mhd", "b.mhd", "c.mhd"], ["b_segmentation.nrrd"], "no mask for a, c"),
        (["a.mhd"], ["a.mhd"], r"gt: no mask for a; expected e.g. a_segmentation.mhd"),
        (["a.mhd", "a.nii.gz"], None, "a.mhd and a.nii.gz have the same case name"),
        (["a,1.mhd", "b.mhd"], None, "cannot hold this name"),
        (numbered(range(9)), [], "Case04 and 4 more"),
    ],
)
def test_cases_that_cannot_be_used(tmp_path, images, masks, message):
    with pytest.raises(DataError, match=message):
        list_cases(make_cases(tmp_path, images, masks))


def test_no_such_data_path(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        list_cases(tmp_path / "nowhere")


# Files ------------------------------------------------------------------------------------------


def test_what_is_written_is_one_name_a_line(tmp_path):
    write_splits(tmp_path / "new" / "folder", {"val.csv": ["b.mhd", "a.nii.gz"]})
    assert (tmp_path / "new/folder/val.csv").read_bytes() == b"b.mhd\na.nii.gz\n"
    assert read_split(tmp_path / "new/folder/val.csv") == ["b.mhd", "a.nii.gz"]


def test_own_files_are_replaced_with_a_notice(tmp_path, capsys):
    for cases, notice in [
        (["a.mhd"], "1 cases"),
        (["a.mhd"], "1 cases, as before"),
        (["a.nii"], "1 cases, replaces a split of 1"),
        (["b.mhd", "c.mhd"], "2 cases, replaces a split of 1"),
    ]:
        write_splits(tmp_path, {"val.csv": cases})
        assert capsys.readouterr().out == f"{tmp_path / 'val.csv'}: {notice}\n"
    assert read_split(tmp_path / "val.csv") == ["b.mhd", "c.mhd"]


@pytest.mark.parametrize("content", ["", "case,dice\nCase00.mhd,0.9\n", "my notes\n", "\x00\x01"])
def test_foreign_files_are_refused_and_nothing_is_written(tmp_path, content):
    (tmp_path / "val.csv").write_text(content)
    with pytest.raises(DataError, match="val.csv.*not replaced"):
        write_splits(tmp_path, {"train.csv": ["a.mhd"], "val.csv": ["b.mhd"]})
    assert [path.name for path in tmp_path.iterdir()] == ["val.csv"]
    assert (tmp_path / "val.csv").read_text() == content


def test_folds_of_an_earlier_draw_are_named(tmp_path, capsys):
    write_splits(tmp_path, draw_splits(None, folds=3))
    write_splits(tmp_path, draw_splits(None, folds=2))
    assert "train_fold2.csv, val_fold2.csv of an earlier" in capsys.readouterr().out


def test_unwritable_output(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written .*which of these names are folders"):
        write_splits(tmp_path / "file" / "deeper", {"val.csv": ["a.mhd"]})


def test_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    old, new = (
        {"train.csv": ["a.mhd"], "val.csv": ["b.mhd"]},
        {"train.csv": ["c.mhd"], "val.csv": ["d.mhd"]},
    )
    write_splits(tmp_path, old)
    write_bytes = Path.write_bytes

    def full_at_the_second_file(path, content):
        write_bytes(path, content[:2])
        if "val" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_at_the_second_file)
    with pytest.raises(DataError, match="No space left"):
        write_splits(tmp_path, new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.csv", "val.csv"]
    assert [read_split(tmp_path / name) for name in old] == [["a.mhd"], ["b.mhd"]]


@pytest.mark.parametrize(
    "content",
    [
        b"Case03.MHD\nx 1.nii.gz\n",
        b"Case03.MHD\r\n\r\nx 1.nii.gz",
        b"\xef\xbb\xbf  Case03.MHD \n\n\nx 1.nii.gz\n\n",
    ],
)
def test_read_split_takes_what_editors_make_of_it(tmp_path, content):
    (tmp_path / "val.csv").write_bytes(content)
    assert read_split(tmp_path / "val.csv") == ["Case03.MHD", "x 1.nii.gz"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no case"),
        (b"\n  \n", "holds no case"),
        (b"name\nCase00.mhd\n", "line 1 is 'name'.*no header"),
        (b"Case00.mhd\nCase01\n", "line 2 is 'Case01'"),
        (b"0,Case00.mhd\n", "line 1"),
        (b"img/Case00.mhd\n", "line 1"),
        (b".mhd\n", "line 1"),
        (b"Case00.mhd\nCase01.mhd\n\nCase00.nii.gz\n", "line 4 repeats Case00 of line 1"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_read_split_says_what_is_wrong(tmp_path, content, message):
    (tmp_path / "val.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"val.csv: .*{message}"):
        read_split(tmp_path / "val.csv")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["train.csv", "val.csv"], "val.csv"), (["val.csv", "val_fold0.csv"], "val_fold0.csv")],
)
def test_the_file_of_a_folder_is_that_of_the_fold_if_there_are_any(tmp_path, names, chosen):
    write_splits(tmp_path, {name: ["a.mhd"] for name in names})
    assert split_file(tmp_path, "val", 0) == tmp_path / chosen
    assert split_file(tmp_path / "train.csv", "val", 0) == tmp_path / "train.csv"


@pytest.mark.parametrize(
    ("line", "image", "mask"),
    [
        ("Case03.mhd", "Case03.mhd", "Case03_segmentation.mhd"),
        ("Case03.nii.gz", "Case03.nii.gz", "Case03_segmentation.nii.gz"),
        ("Case03.MHD", "Case03.mhd", "Case03_segmentation.mhd"),
        ("Case04.mhd", "Case04.nii.gz", "Case04_segmentation.nrrd"),  # the only ones there
    ],
)
def test_a_split_line_means_the_file_with_its_suffix(tmp_path, line, image, mask):
    images = ["Case03.mhd", "Case03.nii.gz", "Case04.nii.gz"]
    masks = ["Case03_segmentation.mhd", "Case03_segmentation.nii.gz", "Case04_segmentation.nrrd"]
    make_cases(tmp_path, images, masks)
    (tmp_path / "val.csv").write_text(f"{line}\n")
    (case,) = split_cases(tmp_path, tmp_path / "val.csv", "val", 0)
    assert (case.case_id, case.image_path.name, case.mask_path.name) == (line[:6], image, mask)


@pytest.mark.parametrize(
    "name, message", [("none.csv", "no such split file"), ("", "cannot be read")]
)
def test_read_split_of_no_file(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / name)


# Command line -----------------------------------------------------------------------------------


def test_command_line(tmp_path):
    make_cases(tmp_path, [f"p{number}.nrrd" for number in range(6)])
    script = ROOT / "create_csv.py"
    done = subprocess.run(
        [sys.executable, script, "--data_path", ".", "--folds", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read_split(tmp_path / "val_fold2.csv")) == 2


@pytest.mark.parametrize("arguments", ["--out_path new", "--out_path new --random 0"])
def test_command_line_defaults_to_the_zoos_split(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["create_csv.py", *arguments.split()])
    run_script("split")
    assert read_split(tmp_path / "new/val.csv") == numbered(ZOO_EVALUATION)
    assert len(read_split(tmp_path / "new/train.csv")) == 40


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("--data_path . --random 0", 2, "use --random 1 or --folds K"),
        ("--folds 51", 2, "expected 2 to 50"),
        ("--random 3", 2, "invalid choice"),
        ("--data_path none", 1, "none/img: no such folder"),
    ],
)
def test_command_line_errors(tmp_path, monkeypatch, capsys, arguments, code, message):
    make_cases(tmp_path, ["p0.nrrd", "p1.nrrd"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["create_csv.py", "--out_path", "new", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        run_script("split")
    assert stopped.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
