"""The house itself: which way the packages look, what lies at the top, and that CI runs the README's own command."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "ledger": frozenset(),
    "projections": frozenset({"ledger"}),
    "api": frozenset({"ledger", "projections"}),
}
TOP_LEVEL = {"pyproject.toml", "ledger", "api", "projections", "tests", "README.md", "LICENSE"}
LEFT_BY_TOOLS = {"__pycache__", "build", "dist"}
# Trials of the whole, which mirror no single file. A new name here should be a property that no package can show alone.
WHOLE = {
    "bad_input", "benchmarks", "benchmarks_nodes", "bulk", "cases", "cases_audiences", "cases_browsers",
    "cases_clients", "cases_store", "conformance_fapi", "conformance_oauch", "conformance_openid", "demo",
    "forking", "fuzz_forms", "fuzz_openapi", "house", "libraries", "libraries_keys", "lost_answers", "model",
    "model_stored", "mutants", "postgres", "races", "readme", "scenario", "speed", "transcripts",
}  # fmt: skip
COMMAND = re.compile(r"^<!-- command: (\w+) -->\n```bash\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
# Spelled so that no pattern finds itself.
FOREIGN = {
    "a path of one machine": re.compile(r"(?<![\w.~$/-])/(?:root|home|work|Users)/\w"),
    "the host of a package index": re.compile(r"\b(?:pypi|pythonhosted|npmjs|debian)[.](?:org|com|io)\b"),
    "a setting for a package index": re.compile(r"\b(?:index[-_]url|find[-_]links)\b", re.IGNORECASE),
    "a document that readers do not have": re.compile(r"\b(?!README\b)[A-Z]{4,}[.]md\b"),
}


def files_of_the_project() -> Iterator[Path]:
    """Every file that a reader of the repository gets; what tools leave behind is not among them."""
    for top in sorted(TOP_LEVEL | {".ci", ".gitignore", ".gitattributes"}):
        for path in (HOUSE / top, *(HOUSE / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def imports_of(source: str) -> set[str]:
    """The top-level packages that a module names in import statements, at whatever depth they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def backward_imports(house: Path) -> list[str]:
    """Each import that runs against api -> projections -> ledger, as `file imports package`."""
    return [
        f"{path.relative_to(house).as_posix()} imports {target}"
        for package, allowed in MAY_IMPORT.items()
        for path in sorted((house / package).rglob("*.py"))
        for target in sorted(imports_of(path.read_text("utf-8")) & ({*MAY_IMPORT, "tests"} - {package} - allowed))
    ]


def foreign_words(text: str) -> list[str]:
    return [f"{what}: {match[0]}" for what, pattern in FOREIGN.items() for match in pattern.finditer(text)]


def unmirrored(test_names: set[str], house: Path) -> list[str]:
    """Test files that name neither a file of a package (with or without an aspect after it) nor a whole trial."""
    stems = {
        "_".join(path.relative_to(house).with_suffix("").parts).replace("__main__", "main")
        for package in MAY_IMPORT
        for path in (house / package).rglob("*")
        if path.suffix == ".py" or path.is_dir()
    }
    return sorted(
        name
        for name in test_names - WHOLE
        if not any(name == stem or name.startswith(f"{stem}_") for stem in stems - {*MAY_IMPORT})
    )


def test_imports_run_from_api_to_projections_to_ledger_and_never_back() -> None:
    """The ledger decides without knowing who projects or asks."""
    assert [] == backward_imports(HOUSE)
    assert all((HOUSE / package / "__init__.py").is_file() for package in MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("ledger/grant.py", "import projections.current_tokens", "ledger/grant.py imports projections"),
        ("ledger/recorders/sqlite.py", "from api import settings", "ledger/recorders/sqlite.py imports api"),
        ("ledger/grant.py", "def late():\n    from api.errors import table", "ledger/grant.py imports api"),
        ("projections/follow.py", "import os, api.wiring as w", "projections/follow.py imports api"),
        ("api/app.py", "from tests.scenario import scenario", "api/app.py imports tests"),
    ],
)
def test_a_house_with_one_import_back_is_caught(tmp_path: Path, file: str, line: str, expected: str) -> None:
    """The broken twin of the rule above: one wrong line, at module level or inside a function, is named."""
    lawful = {
        "ledger/scope.py": "import re\nfrom .policy import Policy",
        "projections/rows.py": "from ledger.events import GrantIssued",
        "api/token.py": "import ledger\nfrom projections import INLINE",
    }
    for name, source in {**lawful, file: line}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    assert [expected] == backward_imports(tmp_path)


def test_the_top_holds_the_packages_and_nothing_else() -> None:
    """Whoever opens the folder sees three packages, the tests and three files."""
    visible = {path.name for path in HOUSE.iterdir() if not path.name.startswith(".")}
    assert TOP_LEVEL == visible - LEFT_BY_TOOLS


def test_no_file_names_a_machine_an_index_or_a_document_that_readers_lack() -> None:
    """What stands in the project is true wherever it is cloned."""
    files = list(files_of_the_project())
    found = {str(path): foreign_words(path.read_text("utf-8", errors="replace")) for path in files}
    assert {} == {path: words for path, words in found.items() if words}
    assert {HOUSE / ".ci" / "requirements.txt", HOUSE / "README.md", Path(__file__)} <= set(files)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("see " + "/".join(["", "root", "notes"]), "a path of one machine"),
        ("cd '" + "/".join(["", "home", "me", "src"]) + "'", "a path of one machine"),
        ("https://" + ".".join(["files", "pythonhosted", "org"]), "the host of a package index"),
        ("pip --" + "-".join(["extra", "index", "url"]) + " x", "a setting for a package index"),
        ("as " + ".".join(["DESIGN", "md"]) + " says", "a document that readers do not have"),
    ],
)
def test_a_foreign_word_is_caught(text: str, what: str) -> None:
    """The broken twin of the rule above."""
    assert [what] == [word.partition(":")[0] for word in foreign_words(text)]


def test_words_of_the_trade_are_not_foreign() -> None:
    """README.md, URL paths and places on a server are everyday words here."""
    assert [] == foreign_words("README.md https://app.example/home/x ./work/x $HOME/work/x /var/lib/token-ledger")


def test_each_test_file_mirrors_a_file_of_a_room_or_tries_the_whole() -> None:
    """A reader who knows the file knows the name of its test."""
    names = {path.stem.removeprefix("test_") for path in HOUSE.glob("tests/test_*.py")}
    assert [] == unmirrored(names, HOUSE)
    assert set() == WHOLE - names


def test_a_test_of_a_file_that_is_not_there_is_caught(tmp_path: Path) -> None:
    """The broken twin of the rule above: a renamed file leaves its test behind."""
    (tmp_path / "ledger" / "recorders").mkdir(parents=True)
    (tmp_path / "ledger" / "grant.py").touch()
    (tmp_path / "ledger" / "recorders" / "sqlite.py").touch()
    kept = {"house", "ledger_grant", "ledger_grant_scopes", "ledger_recorders_sqlite"}
    assert ["ledger_granted", "ledger_old"] == unmirrored(kept | {"ledger_granted", "ledger_old"}, tmp_path)


def test_the_readme_names_two_commands_that_need_nothing_set_up() -> None:
    """On a fresh machine the first command ends in the demo and the second in the tests' verdict."""
    commands = dict(COMMAND.findall((HOUSE / "README.md").read_text("utf-8")))
    assert {"demo", "test"} == set(commands)
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands.values())
    assert commands["demo"].endswith("token-ledger demo")
    assert re.search(r"/pytest( |$)", commands["test"])


def test_ci_runs_the_readmes_test_command_as_it_stands(tmp_path: Path) -> None:
    """The script has no test command of its own: it reads the README's, and follows when that changes."""
    script = (HOUSE / ".ci" / "run").read_text("utf-8")
    reader = re.search(r"^readme_command\(\) \{\n.*?^\}\n", script, re.MULTILINE | re.DOTALL)
    assert reader is not None
    assert "test_command=$(readme_command test)\n" in script
    assert 'bash -c "$test_command"' in script
    assert "pytest" not in script

    def read_by_ci(readme: str, name: str) -> str:
        (tmp_path / "README.md").write_text(readme, "utf-8")
        run = subprocess.run(
            ["bash", "-c", f"{reader[0]}\nreadme_command {name}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.removesuffix("\n")

    readme = (HOUSE / "README.md").read_text("utf-8")
    commands = dict(COMMAND.findall(readme))
    assert commands == {name: read_by_ci(readme, name) for name in commands}
    assert "make\nmake check" == read_by_ci(readme.replace(commands["test"], "make\nmake check"), "test")
    assert "" == read_by_ci(readme.replace("command: test", "command: other"), "test")


def test_without_the_driver_of_postgresql_one_line_says_what_the_tests_need() -> None:
    """An environment that is not whole is told apart from a test that fails."""
    program = "import sys, pytest; sys.modules['psycopg'] = None; sys.exit(pytest.main(['-q', 'tests/test_house.py']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=False)
    assert pytest.ExitCode.USAGE_ERROR == done.returncode
    assert ("", "ERROR: the tests need psycopg: pip install -e '.[dev]'") == (done.stdout.strip(), done.stderr.strip())


def test_every_dependency_is_pinned_with_its_hashes() -> None:
    """CI installs nothing by name alone: what the project asks for, in use and for tests, is pinned by content.

    Only the extra `ha` is not CI's to install."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(need for name, extra in project["optional-dependencies"].items() if name != "ha" for need in extra),
    ]
    pins = re.findall(
        r"^([\w.-]+)==\S+.*?\\\n    --hash=sha256:", (HOUSE / ".ci" / "requirements.txt").read_text(), re.M
    )
    assert set() == {re.split(r"[^\w.-]", need)[0] for need in wanted} - set(pins)
