"""The program as a whole: help, exit codes, and how errors are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import poolexport
from cli.conftest import Run
from poolexport import cli
from poolexport.cli import _show
from poolexport.errors import ExportError, InputError, ParityError, PoolExportError

VERBS = sorted(path.stem for path in Path(cli.__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_help_lists_every_verb_and_every_exit_code(run: Run):
    result = run("--help")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed[: len(VERBS)] == VERBS
    for code in ("0  fine", "1  the numbers differ", "2  bad input", "3  a fault", "130  interrupted", "141  "):
        assert code in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does(run: Run, verb: str):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: poolexport {verb} ")


def test_help_imports_neither_torch_nor_onnx():
    code = (
        "import sys; from poolexport.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    assert in_a_new_process(code).splitlines()[-1] == "[]"


def test_inspect_imports_no_torch(bundle: Path):
    code = (
        "import sys; from poolexport.cli import main\n"
        f"try: main(['inspect', {str(bundle)!r}])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    assert in_a_new_process(code).splitlines()[-1] == "False"


def test_version_is_the_package_version(run: Run):
    assert run("--version").stdout == f"poolexport {poolexport.__version__}\n"


def test_without_a_verb_help_goes_to_stderr_as_bad_input(run: Run):
    result = run()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Exit codes:" in result.stderr


def test_a_misspelled_verb_is_told_the_right_one(run: Run):
    result = run("exprot")
    assert result.exit_code == 2
    assert result.stderr == "error: there is no verb 'exprot'; did you mean export?; see poolexport --help\n"


def test_an_unknown_option_is_one_sentence(run: Run):
    result = run("inspect", "x.onnx", "--jsn")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--json" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (ExportError("x"), 2),
        (PoolExportError("x"), 2),
        (ParityError("x", verdict=None), 1),  # type: ignore[arg-type]
        (PermissionError(13, "Permission denied", "net.onnx"), 2),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_error_has_its_exit_code(error: BaseException, code: int):
    assert cli.explain(error)[1] == code


def test_a_fault_of_ours_is_one_sentence_without_traceback(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("poolexport.cli._graph.read", lambda path: 1 / 0)
    result = run("inspect", "x.onnx")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: a fault of poolexport itself, run again with --debug")
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_wherever_it_stands(run: Run):
    for words in (("--debug", "inspect", "nope.onnx"), ("inspect", "nope.onnx", "--debug")):
        result = run(*words)
        assert result.exit_code == 2
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: there is no model at nope.onnx")


@pytest.mark.parametrize("factory", ["stops", "hides_a_stop"])
def test_ctrl_c_exits_with_130_whoever_caught_it_first(run: Run, tmp_path: Path, factory: str):
    result = run("export", f"nets.py:{factory}", "--input", "1x3x16x16", "-o", tmp_path / "net")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "error: interrupted"
    assert not list(tmp_path.iterdir())


def test_an_error_in_json_is_one_document(run: Run):
    result = run("verify", "nope.onnx", "nets:small", "--json")
    assert result.exit_code == 2
    error = {"type": "InputError", "message": "there is no model at nope.onnx", "exit_code": 2}
    assert json.loads(result.stdout) == {"error": error}
    assert result.stderr == "error: there is no model at nope.onnx\n"


def test_an_error_of_usage_in_json_is_one_document(run: Run):
    result = run("export", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "MissingParameter"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", ["methods --json", "methods", "--help", "methods nope --json"])
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_no_difference_in_numbers(words: str, where: str):
    if (words, where) == ("--help", ">&-"):
        pytest.skip("click prints nothing where there is no stdout")
    shell = f'"{sys.executable}" -m poolexport {words} {where}'
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert all(line.startswith("error: ") for line in result.stderr.splitlines()), result.stderr
    assert result.stderr


@pytest.mark.parametrize("verb", ["methods", "export x:y --input 1", "verify BUNDLE x:y"])
def test_a_verb_without_torch_says_what_it_needs(bundle: Path, verb: str):
    words = [str(bundle) if word == "BUNDLE" else word for word in verb.split()]
    code = f"import sys; sys.modules['torch'] = None; from poolexport.cli import main; main({words!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == "error: this verb needs torch, which is not installed; run: pip install torch\n"
    assert result.returncode == 2


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("click._compat.should_strip_ansi", lambda *_: False)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _show.error("x")
    monkeypatch.setenv("NO_COLOR", "1")
    _show.error("x")
    coloured, plain = capsys.readouterr().err.splitlines()
    assert coloured != plain
    assert plain == "error: x"


def test_characters_that_a_terminal_obeys_are_escaped(run: Run):
    result = run("inspect", "a\x1b[31m[bold]:smile:.onnx")
    assert result.stderr == "error: there is no model at a\\x1b[31m[bold]:smile:.onnx\n"


@pytest.mark.parametrize("words", ["'inspect', {!r}", "'--help'"])
def test_a_reader_that_has_enough_is_no_difference_in_numbers(bundle: Path, words: str):
    code = f"from poolexport.cli import main; main([{words.format(str(bundle))}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == cli.BROKEN_PIPE, told
    assert told == b""
