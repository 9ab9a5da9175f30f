"""What the READMEs say is held to the code: examples, commands, links, sizes."""

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from urllib.parse import unquote

import pytest

from nnunetv2_crossmatch import cli, trainers
from nnunetv2_crossmatch.methods import fixmatch
from nnunetv2_crossmatch.trainers import METHODS, nnUNetTrainerFixMatch
from nnunetv2_crossmatch.trainers.catalog import MEASURED, STEP_COSTS
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "nnunetv2_crossmatch"
METHODS_README = (PACKAGE / "methods" / "README.md").read_text()
FOLDERS = (".github", "nnunetv2_crossmatch", "dataset_conversion", "scripts", "tests")
PAGES = sorted(
    {REPOSITORY / "README.md", *(page for folder in FOLDERS for page in (REPOSITORY / folder).rglob("*.md"))}
)
COMMAND = "nnUNetv2_crossmatch"


def names(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def code(text: str) -> Iterator[str]:
    """Every line of a code block and every piece of code within a line."""
    for number, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        yield from part.splitlines() if number % 2 else re.findall(r"`([^`]+)`", part)


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every nnUNetv2_crossmatch command; a mere name with an ellipsis or COMMAND is none."""
    for line in code(text):
        if found := re.search(rf"(?:^|[$(]){COMMAND}\s+([^)]*)", line.strip()):
            words = shlex.split(found[1].replace('"', "") if found[0].startswith("(") else found[1], comments=True)
            if words and "..." not in words and "COMMAND" not in words:
                yield words


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_example_of_a_method_is_the_method():
    assert inspect.getsource(fixmatch).strip() in METHODS_README
    assert inspect.getsource(nnUNetTrainerFixMatch).strip() in METHODS_README


@pytest.mark.parametrize("trainer", METHODS)
def test_every_trainer_has_its_row(trainer):
    rows = [line for line in METHODS_README.splitlines() if line.startswith(f"| `{trainer}` |")]
    _, _, _, _, cost, _, epochs, _ = (cell.strip() for cell in rows[0].split("|"))
    assert epochs == str(getattr(trainers, trainer).epochs)
    assert float(cost.partition(",")[0]) == STEP_COSTS[trainer]


@pytest.mark.parametrize("one", [one for figures in MEASURED.values() for one in figures], ids=lambda one: one.bench)
def test_every_figure_of_a_trainer_is_one_that_was_measured(one):
    _, _, table = (REPOSITORY / "scripts" / "README.md").read_text().partition("### The default at the same bill")
    rows, bench = {}, ""  # (bench, seed): cells
    for line in re.findall(r"^\|.*\|$", table.partition("\n### ")[0], re.M):
        first, seed, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        bench = first or bench
        rows[bench, seed] = cells
    what, _, scans = one.bench.partition(": ")
    scans, _, seed = scans.partition(", seed ")
    after_80, _, test, all_labels = rows[what, seed or "0"]
    assert f"{one.stock:.3f}, {one.dice:.3f}" == {"hidden labels after 80 %": after_80, "test scans": test}[scans]
    assert one.all_labels is None or (scans, all_labels) == ("test scans", f"{one.all_labels:.3f}")


@pytest.mark.parametrize("trainer", [name for name in METHODS if hasattr(getattr(trainers, name), "constants")])
def test_every_constant_has_its_value(trainer):
    cls = getattr(trainers, trainer)
    inherited = getattr(cls.__base__, "constants", None)  # of a variant only what differs is listed

    def shown(name: str) -> str:
        value = getattr(cls.constants, name)
        return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"

    own = [field.name for field in fields(cls.constants) if field.name != "strong_view"]
    if inherited is not None:
        own = [name for name in own if getattr(inherited, name, ...) != getattr(cls.constants, name)]
    listed = ", ".join(map(shown, own))
    if inherited is not None:
        listed = f"as `{cls.__base__.__name__}`" + (f", but {listed}" if own else "")
    assert f"| `{trainer}` | {listed} |" in METHODS_README.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_command_is_understood(page):
    parser = cli.build_parser()
    for words in commands(page.read_text()):
        if "--print-completion" not in words:  # prints and exits; tested with the commands
            assert callable(parser.parse_args(words).run)


def test_commands_are_found_wherever_they_stand():
    text = (
        "`nnUNetv2_crossmatch doctor` and\n```bash\nnnUNetv2_crossmatch check -d 4   # all\n"
        'eval "$(nnUNetv2_crossmatch --print-completion bash)"\n```\n'
        "`nnUNetv2_crossmatch`, `nnUNetv2_crossmatch COMMAND -h`"
    )
    assert list(commands(text)) == [["doctor"], ["check", "-d", "4"], ["--print-completion", "bash"]]
    pages = [words[0] for page in PAGES for words in commands(page.read_text())]
    assert {module.__name__.rpartition(".")[2].replace("_", "-") for module in cli.COMMANDS} <= set(pages)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_link_leads_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_script_exists(page):
    for name in re.findall(r"\bscripts/(\w+\.(?:py|sh))", page.read_text()):
        assert (REPOSITORY / "scripts" / name).exists(), name


def test_every_script_and_every_room_is_listed():
    table = (REPOSITORY / "scripts" / "README.md").read_text()
    for script in (REPOSITORY / "scripts").iterdir():
        assert script.suffix not in (".py", ".sh") or f"`{script.name}`" in table, script.name
    rooms = (PACKAGE / "README.md").read_text()
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("__"):
            assert f"`{folder.name}/`" in rooms, folder.name


def test_the_front_page_is_short_and_its_pictures_are_small():
    page = (REPOSITORY / "README.md").read_text()
    assert 5000 <= len(page.encode()) <= 7000
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert len(pictures) == 2
    assert all((REPOSITORY / picture).stat().st_size < 150_000 for picture in pictures)
