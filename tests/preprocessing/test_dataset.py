import json
import re

import pytest

from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned, dataset_name
from tests.conftest import use_folders


@pytest.fixture
def liver(tmp_path, monkeypatch) -> Dataset:
    """Preprocessed, with plans; Dataset007_Heart is a raw one."""
    use_folders(tmp_path, monkeypatch.setenv)
    (tmp_path / "raw" / "Dataset007_Heart").mkdir()
    folder = tmp_path / "preprocessed" / "Dataset042_Liver"
    folder.mkdir()
    plans = {"plans_name": "nnUNetPlans", "configurations": {"2d": {}, "3d_fullres": {}}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "nnUNetPlanz1.json").write_text("{}")
    return Dataset(None, folder, {})


@pytest.mark.parametrize("given", ["42", "042", "Dataset042_Liver"])
def test_a_dataset_has_an_id_and_a_name(liver, given):
    assert dataset_name(given) == "Dataset042_Liver"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Dataset042_Livr", "There is no dataset Dataset042_Livr. Did you mean Dataset042_Liver?"),
        ("Dataset024_Liver", "There is no dataset Dataset024_Liver. Did you mean Dataset042_Liver?"),
        ("heart", "There is no dataset heart. Did you mean Dataset007_Heart?"),
        ("43", "There is no dataset 43. There are: Dataset007_Heart, Dataset042_Liver."),
        ("Spleen", "There is no dataset Spleen. There are: Dataset007_Heart, Dataset042_Liver."),
    ],
)
def test_a_misspelt_dataset_gets_a_question(liver, given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dataset_name(given)


def test_without_any_dataset_nnunet_says_where_it_looked(tmp_path, monkeypatch):
    use_folders(tmp_path, monkeypatch.setenv)
    with pytest.raises(RuntimeError, match=f"nnUNet_raw={tmp_path / 'raw'}"):
        dataset_name("42")


def test_misspelt_plans_and_configurations_get_a_question(liver):
    plans = liver.plans("nnUNetPlans")
    with pytest.raises(ValueError, match=r"see -p\. Did you mean nnUNetPlans\?$"):
        liver.plans("nnUNetPlanz")  # nnUNetPlanz1.json has no plans
    with pytest.raises(ValueError, match=r"^-c 3d_fulres: nnUNetPlans has 2d, 3d_fullres\. Did you mean 3d_fullres\?$"):
        _ = Planned(liver, plans, "3d_fulres").configuration
