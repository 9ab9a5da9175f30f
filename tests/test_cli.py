import argparse
import inspect
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from nnunetv2_crossmatch import cli
from nnunetv2_crossmatch.commands.shared import as_fold, as_trainer
from nnunetv2_crossmatch.trainers import METHODS
from nnunetv2_crossmatch.trainers.catalog import Measured
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import run

NAMES = [module.__name__.rpartition(".")[2].replace("_", "-") for module in cli.COMMANDS]


@pytest.fixture
def fails_with(monkeypatch):
    """fails_with(error): the only command is ``fail``, which raises it."""

    def make(error: BaseException) -> None:
        def fail(arguments):
            raise error

        add = SimpleNamespace(add=lambda commands: commands.add_parser("fail").set_defaults(run=fail))
        monkeypatch.setattr(cli, "COMMANDS", (add,))

    return make


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DatasetError(["scan1 is bad. Replace it."]), "scan1 is bad. Replace it."),
        (KeyError("modality"), "KeyError: there is no 'modality'. Run again with --debug for the traceback."),
        (TypeError("two\n  lines"), "TypeError: two lines. Run again with --debug for the traceback."),
        (AssertionError(), "AssertionError: it says no more. Run again with --debug for the traceback."),
    ],
)
def test_an_error_is_one_line_and_its_traceback_is_shown_on_request(fails_with, capsys, error, line):
    fails_with(error)
    with pytest.raises(SystemExit) as end:
        cli.main(["fail"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"nnUNetv2_crossmatch: {line}\n"
    for argv in (["--debug", "fail"], ["fail", "--debug"]):
        with pytest.raises(type(error)) as raised:
            cli.main(argv)
        assert raised.value is error


def test_a_report_of_several_scans_keeps_its_lines(fails_with, capsys):
    fails_with(DatasetError(["a is bad.", "b is bad."]))
    with pytest.raises(SystemExit):
        cli.main(["fail"])
    assert capsys.readouterr().err.splitlines() == ["nnUNetv2_crossmatch:", "a is bad.", "b is bad."]


def test_a_terminal_is_told_what_it_waits_for_and_nobody_of_libraries_futures(monkeypatch, capsys, recwarn):
    def command(arguments):
        warnings.warn("torch.jit.interface will go", FutureWarning, stacklevel=1)

    add = SimpleNamespace(add=lambda commands: commands.add_parser("work").set_defaults(run=command))
    monkeypatch.setattr(cli, "COMMANDS", (add,))
    cli.main(["work"])
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.main(["work"])
    assert capsys.readouterr() == ("", "loading nnU-Net ...\n")
    assert not list(recwarn)


def test_ctrl_c_ends_quietly(fails_with, capsys):
    fails_with(KeyboardInterrupt())
    with pytest.raises(SystemExit) as end:
        cli.main(["fail"])
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_every_command_shows_an_example_that_it_understands(capsys):
    parser = cli.build_parser()
    for name in NAMES:
        with pytest.raises(SystemExit):
            parser.parse_args([name, "-h"])
        *_, example = capsys.readouterr().out.strip().splitlines()
        prefix = "example: nnUNetv2_crossmatch "
        words = example.removeprefix(prefix).split()
        assert words[0] == name
        assert callable(parser.parse_args(words).run)


@pytest.mark.parametrize("module", cli.COMMANDS, ids=NAMES)
def test_every_command_says_what_to_type_next(module):
    assert "    say_next" in inspect.getsource(module)


@pytest.mark.parametrize("line", ["suggest -d 4 -c 2d -n 20", "sweep -d 4 -c 2d -tr nnUNetTrainer --seed 3"])
def test_the_beginning_of_an_option_is_not_the_option(line, capsys):
    """-n would be the number of processes, and a seed how many there are."""
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(line.split())
    assert f"unrecognized arguments: {' '.join(line.split()[-2:])}" in capsys.readouterr().err


def test_a_fold_is_a_number_or_all():
    assert (as_fold("3"), as_fold("all")) == (3, "all")
    with pytest.raises(argparse.ArgumentTypeError, match="'-1' is neither"):
        as_fold("-1")


@pytest.mark.parametrize(
    ("words", "question"),
    [
        ("chek -d 4", "Did you mean check?"),
        ("hide_labels -d 4", "Did you mean hide-labels?"),
        ("convert acdcs FOLDER -d 4 --labeled 3", "Did you mean acdc?"),
        ("compare -d 4 -c 2d -tr nnUNetTrainer nnUNetTrainerCrosMatch", "Did you mean nnUNetTrainerCrossMatch?"),
        ("review -d 4 -c 2d -tr nnUNetTrainerMeanTeecher_50epochs", "Did you mean nnUNetTrainerMeanTeacher_50epochs?"),
    ],
)
def test_a_misspelt_command_or_trainer_gets_a_question(words, question, capsys):
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert capsys.readouterr().err.endswith(f". {question}\n")


def test_a_trainer_that_has_models_here_is_no_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError):
        as_trainer("nnUNetTrainerCrosMatch")
    (tmp_path / "Dataset004_A" / "nnUNetTrainerCrosMatch__nnUNetPlans__2d").mkdir(parents=True)
    assert as_trainer("nnUNetTrainerCrosMatch") == "nnUNetTrainerCrosMatch"


def test_trainers_are_listed_with_what_was_measured(capsys):
    cli.main(["trainers", "--json"])
    listed = {entry.pop("name"): entry for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(METHODS)
    assert [name for name, entry in listed.items() if entry["begin_with"]] == ["nnUNetTrainerCrossMatch"]
    without_regions = [name for name, entry in listed.items() if not entry["regions"]]
    assert without_regions == ["nnUNetTrainerACTION", "nnUNetTrainerACTIONPlusPlus"]
    assert listed["nnUNetTrainerCPS"] == {
        "idea": "CPS (arXiv 2106.01226): two networks label for each other.",
        "step_cost": 4.33,
        "epochs": 190,
        "regions": True,
        "measured": [],
        "begin_with": False,
    }
    cli.main(["trainers"])
    text = capsys.readouterr().out
    assert all(f"{name}\n  {entry['idea']}\n" in text for name, entry in listed.items())
    assert text.count("Dice: not measured") == sum(not entry["measured"] for entry in listed.values())


def test_the_gap_that_is_closed():
    assert Measured("", dice=0.75, stock=0.7, all_labels=0.9).gap_closed == pytest.approx(0.25)
    assert Measured("", dice=0.75, stock=0.7).gap_closed is None


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from nnunetv2_crossmatch import cli\ntry: cli.main(['trainers', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reader_that_has_had_enough_is_no_error():
    code = "import sys; from nnunetv2_crossmatch.cli import main; main(['trainers', '--json'])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_bash_completes_commands_options_files_and_what_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "predicted").mkdir()
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name / "Dataset004_Liver").mkdir(parents=True)
    (tmp_path / "raw" / "Dataset104_Other").mkdir()
    preprocessed = tmp_path / "preprocessed" / "Dataset004_Liver"
    (preprocessed / "nnUNetPlansSmall.json").write_text('{"configurations": {"2d": {}, "3d_fullres": {}}}')
    (preprocessed / "splits_final.json").write_text("[{}, {}]")
    (tmp_path / "results" / "Dataset004_Liver" / "nnUNetTrainerMine__nnUNetPlansSmall__2d").mkdir()
    completion = run("nnUNetv2_crossmatch", "--print-completion", "bash").stdout
    (tmp_path / "completion.sh").write_text(completion)

    def complete(*words: str) -> list[str]:
        script = (
            'source ./completion.sh; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; '
            'function=$(complete -p nnUNetv2_crossmatch | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
            '"$function" "$1" "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        command = ["bash", "-c", script, "bash", "nnUNetv2_crossmatch", *words]
        result = subprocess.run(command, cwd=tmp_path, env=os.environ, text=True, capture_output=True)
        assert not result.stderr
        return [line for line in result.stdout.splitlines() if line]

    assert set(NAMES) <= set(complete(""))
    assert complete("hide") == ["hide-labels"]
    assert "--accept" in complete("check", "-")
    assert "predicted" in complete("evaluate", "pre")
    assert complete("check", "-d", "") == ["Dataset004_Liver", "Dataset104_Other"]
    assert complete("sweep", "-d", "4", "-p", "") == ["nnUNetPlansSmall"]
    assert complete("sweep", "-d", "Dataset004_Liver", "-p", "nnUNetPlansSmall", "-c", "3") == ["3d_fullres"]
    assert complete("sweep", "-d", "4", "-f", "0", "") == ["0", "1", "all"]
    assert complete("sweep", "-d", "4", "-tr", "nnUNetTrainerM") == ["nnUNetTrainerMeanTeacher", "nnUNetTrainerMine"]
    assert "nnUNetTrainer_250epochs" in complete("compare", "-tr", "nnUNetTrainer_")
    assert complete("convert", "acdc", "folder", "-d", "") == [], "the id of a new dataset"
    (tmp_path / "raw" / "Dataset105_$(touch ran)").mkdir()
    assert complete("check", "-d", "Dataset105") == [r"Dataset105_\$\(touch\ ran\)"]
    assert not (tmp_path / "ran").exists(), "a name is no command"
    (preprocessed / "nnUNetPlansSmall.json").write_text("{")
    for wrong in (["-d", "4", "-p", "nnUNetPlansSmall"], ["-d", "4", "-p", "splits_final"], ["-d", "/"]):
        assert complete("sweep", *wrong, "-c", "") == [], "what is wrong is for the command to say"


def test_what_an_extra_brings_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        cli.main(["--print-completion", "bash"])
    assert "needs shtab: pip install shtab" in capsys.readouterr().err
    monkeypatch.setattr("nnunetv2_crossmatch.commands.sweep.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", "-d", "4", "-c", "2d", "-tr", "nnUNetTrainer", "-f", "0", "--cluster", "local"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "nnUNetv2_crossmatch: sweep needs submitit: pip install submitit\n"
