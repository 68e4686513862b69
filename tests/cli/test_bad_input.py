"""``poolexport export`` on input that is wrong: one sentence, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Run
from poolexport.pipeline import package

GOOD = ("nets.py:small", "--input", "1x3x16x16")
SHAPE = ("--input", "1x3x16x16")

#: What is wrong: the words on the command line, and words of the sentence.
BAD = {
    "wrong rank": (("nets:small", "--input", "1x3x16"), "0 (Conv2d) failed on an input of shape 1x3x16"),
    "wrong channels": (("nets:small", "--input", "1x5x16x16"), "to have 3 channels, but got 5"),
    "kernel larger than input": (("nets:large_kernel", *SHAPE), "use a smaller kernel or a larger input"),
    "input smaller than kernel": (("nets:small", "--input", "1x3x3x3"), "2 (SoftPool2d) failed"),
    "zero kernel": (("nets.py:zero_kernel", *SHAPE), "kernel_size must be a positive int"),
    "negative kernel": (("nets.py:negative_kernel", *SHAPE), "(nets.py, line "),
    "zero stride": (("nets.py:zero_stride", *SHAPE), "stride must be a positive int"),
    "negative stride": (("nets.py:negative_stride", *SHAPE), "got -1"),
    "negative padding": (("nets.py:negative_padding", *SHAPE), "padding must be a non-negative int"),
    "no colon": (("nets", *SHAPE), "write MODULE:FACTORY, as in net.py:build"),
    "no factory": (("nets.py:", *SHAPE), "write MODULE:FACTORY"),
    "missing file": (("net.py:small", *SHAPE), "there is no file net.py; did you mean nets.py"),
    "missing module": (("net:small", *SHAPE), "there is no module 'net'"),
    "file without its ending": (("./nets:small", *SHAPE), "there is no file nets; did you mean nets.py?"),
    "folder": (("..:small", *SHAPE), "there is no file .."),
    "leading dot": (("./.nets:small", *SHAPE), "there is no file .nets; did you mean nets.py?"),
    "relative import": (("pkg/sub/rel.py:small", *SHAPE), "it is part of a package, write pkg.sub.rel:small"),
    "syntax error": (("broken.py:build", *SHAPE), "SyntaxError: invalid syntax (broken.py, line 1)"),
    "missing package": (("needy.py:build", *SHAPE), "No module named 'no_such_package' (needy.py, line 1)"),
    "missing package in a module": (("needy:build", *SHAPE), "No module named 'no_such_package' (needy.py, line 1)"),
    "import that exits": (("script.py:build", *SHAPE), "it calls exit(3) (script.py, line 3)"),
    "missing factory": (("nets.py:smal", *SHAPE), "nets.py has no 'smal'; did you mean small?"),
    "unlike any factory": (("nets.py:zzzz", *SHAPE), "there is HalfTrained, Noisy, Two"),
    "missing attribute": (("nets.py:settings.net", *SHAPE), "nets.py has no 'settings.net'"),
    "factory with arguments": (("nets.py:needs", *SHAPE), "needs arguments (channels)"),
    "factory that raises": (("nets.py:raises", *SHAPE), "raised RuntimeError: no such (nets.py, line "),
    "factory that exits": (("nets.py:leaves", *SHAPE), "it calls exit(4)"),
    "factory that returns nothing": (("nets.py:nothing", *SHAPE), "returned None instead of a torch.nn.Module"),
    "factory of a state dict": (("nets.py:state_dict", *SHAPE), "returned an OrderedDict of 2 entries"),
    "not a factory": (("nets.py:settings", *SHAPE), "is a dict of 1 entries"),
    "async factory": (("nets.py:later", *SHAPE), "nets.py:later is an async function"),
    "TorchScript": (("nets.py:scripted", *SHAPE), "0 of nets.py:scripted is TorchScript"),
    "shapes not known yet": (("nets.py:lazy", *SHAPE), "0.weight, 0.bias of nets.py:lazy has no shape"),
    "half trained": (("nets.py:HalfTrained", *SHAPE), "1 (BatchNorm2d) of nets.py:HalfTrained stays in training mode"),
    "random": (("nets.py:Noisy", *SHAPE), "draws rand_like of 1x3x16x16 at nets.py:132"),
    "weights missing": ((*GOOD, "--weights", "okay.safetensors"), "did you mean ok.safetensors"),
    "weights are a folder": ((*GOOD, "--weights", "."), "there is no file of weights at ."),
    "weights of another kind": ((*GOOD, "--weights", "weights.h5"), "not known to hold weights"),
    "weights lack a key": ((*GOOD, "--weights", "missing.pt"), "1 missing: 0.bias"),
    "weights have a key too many": ((*GOOD, "--weights", "unexpected.pt"), "1 unexpected: head.bias"),
    "weights of other shapes": ((*GOOD, "--weights", "reshaped.pt"), "0.weight is 4x3x5x5 instead of 4x3x3x3"),
    "weights that are lists": ((*GOOD, "--weights", "values.pt"), "1 not a tensor: 0.bias is a list of 4 entries"),
    "weights named by numbers": ((*GOOD, "--weights", "numbers.pt"), "names a weight 0, an int, instead of a string"),
    "integers for weights": ((*GOOD, "--weights", "integers.pt"), "0.bias holds int32 instead of float32"),
    "complex weights": ((*GOOD, "--weights", "complex.safetensors"), "0.weight holds complex64 instead of float32"),
    "safetensors under another name": ((*GOOD, "--weights", "renamed.pt"), "renamed.pt is a safetensors file"),
    "a whole model": ((*GOOD, "--weights", "whole.pt"), "would run code that it names (torch.nn.modules"),
    "a pickle of code": ((*GOOD, "--weights", "shell.pt"), "save model.state_dict() with torch.save, or convert"),
    "a raw pickle of code": ((*GOOD, "--weights", "raw.bin"), "so it is refused"),
    "a program": ((*GOOD, "--weights", "program.pt"), "program.pt is a TorchScript archive"),
    "a bomb": ((*GOOD, "--weights", "bomb.pt"), "are packed in it, which torch.save never does"),
    "no weights in it": ((*GOOD, "--weights", "epoch.pt"), "holds no weights, only epoch"),
    "a list": ((*GOOD, "--weights", "list.pt"), "holds a list of 2 entries instead of a state dict"),
    "truncated pickle": ((*GOOD, "--weights", "cut.pt"), "is damaged"),
    "empty pickle": ((*GOOD, "--weights", "empty.pt"), "is damaged"),
    "truncated safetensors": ((*GOOD, "--weights", "cut.safetensors"), "not a readable safetensors file"),
    "no input": (("nets.py:small",), "Missing option '--input'"),
    "letters in the shape": (("nets.py:small", "--input", "1x3xAx32"), "'A' is not a length"),
    "negative length": (("nets.py:small", "--input", "1x3x-8x8"), "'-8' is not a length"),
    "zero length": (("nets.py:small", "--input", "0x3x8x8"), "'0' is not a length"),
    "empty shape": (("nets.py:small", "--input", ""), "'' is not a length"),
    "enormous": (("nets.py:small", "--input", "1x3x99999x99999"), "too large"),
    "no name before the =": (("nets.py:small", "--input", "=1x3x8x8"), "no name before the ="),
    "a name twice": (("nets:Two", "--input", "a=1x3x8x8", "--input", "a=1x3x8x8"), "two inputs have the name 'a'"),
    "some names": (("nets:Two", "--input", "a=1x3x8x8", *SHAPE), "1 of 2 inputs have names"),
    "a misspelled name": (("nets:Two", "--input", "image=1x3x8x8", "--input", "dept=1x3x8x8"), "did you mean depth?"),
    "an argument left out": (("nets:Two", "--input", "depth=1x3x8x8"), "forward takes 'image' before 'depth'"),
    "too few inputs": (("nets:Two", *SHAPE), "missing 1 required positional argument"),
    "unknown axis": ((*GOOD, "--dynamic", "N,D"), "there is no axis 'D' in an input of 1x3x16x16 (N,C,H,W)"),
    "no axis": ((*GOOD, "--dynamic", ""), "there is no axis ''"),
    "axes without commas": ((*GOOD, "--dynamic", "NHW"), "there is no axis 'NHW'"),
    "unsupported opset": ((*GOOD, "--opset", "9"), "opset 9 is not supported; choose one from 17 to 28"),
    "opset in words": ((*GOOD, "--opset", "new"), "'new' is not a valid integer"),
    "unknown dtype": ((*GOOD, "--dtype", "int8"), "'int8' is not one of"),
}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def assert_refused(code: int, stderr: str, told: str) -> None:
    assert code == 2, stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith("error: ")
    assert told in stderr


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that somebody else keeps things in."""
    (tmp_path / "keep.txt").write_text("keep")
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(run: Run, out: Path, source: Path, case: str):
    words, told = BAD[case]
    before = snapshot(out)
    result = run("export", *words, "-o", out / "net")
    assert_refused(result.exit_code, result.stderr, told)
    assert result.stdout == ""
    assert snapshot(out) == before
    assert not (source / "ran").exists()


def test_bad_input_in_json_is_one_document(run: Run, out: Path):
    result = run("export", "nets.py:smal", *SHAPE, "-o", out / "net", "--json")
    message = "nets.py has no 'smal'; did you mean small?"
    assert json.loads(result.stdout) == {"error": {"type": "InputError", "message": message, "exit_code": 2}}
    assert_refused(result.exit_code, result.stderr, message)


def test_a_path_that_exists_is_not_replaced_without_force(run: Run, out: Path):
    (out / "net").mkdir()
    (out / "net.onnx").write_text("mine")
    before = snapshot(out)
    for name in ("net", "net.onnx"):
        result = run("export", *GOOD, "-o", out / name)
        assert_refused(
            result.exit_code, result.stderr, f"{name} exists; choose another path, or replace it with --force"
        )
    assert snapshot(out) == before


def test_force_does_not_replace_a_folder_that_is_not_a_bundle(run: Run, out: Path):
    result = run("export", *GOOD, "-o", out, "--force")
    assert_refused(result.exit_code, result.stderr, "is a folder that holds more than a bundle")
    assert (out / "keep.txt").read_text() == "keep"


def test_a_missing_output_folder_is_not_made(run: Run, out: Path):
    result = run("export", *GOOD, "-o", out / "missing" / "net")
    assert_refused(result.exit_code, result.stderr, "missing does not exist; create it first")
    assert not (out / "missing").exists()


def test_an_output_folder_that_cannot_be_written_is_said(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch):
    def for_an_ordinary_user(path: os.PathLike[str], mode: int) -> bool:
        return not mode & os.W_OK or bool(os.stat(path).st_mode & 0o222)

    out.chmod(0o555)
    # the superuser may write anywhere
    monkeypatch.setattr(package.os, "access", for_an_ordinary_user)
    before = snapshot(out)
    result = run("export", *GOOD, "-o", out / "net")
    out.chmod(0o755)
    assert_refused(result.exit_code, result.stderr, "cannot be written; check its permissions")
    assert snapshot(out) == before


FULL_DISK = """
import resource, signal, sys
from poolexport.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for out in sys.argv[1:]:
    try: main(["export", "nets.py:small", "--input", "1x3x16x16", "--no-verify", "-o", out])
    except SystemExit as stop: print(stop.code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_full_disk_leaves_nothing_behind(source: Path, out: Path):
    before = snapshot(out)
    words = [sys.executable, "-B", "-c", FULL_DISK, str(out / "net"), str(out / "net.onnx")]
    result = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.split() == ["2", "2"]
    for line, name in zip(result.stderr.splitlines(), ("net", "net.onnx"), strict=True):
        assert line == f"error: {out / name} could not be written: File too large; nothing was left behind"
    assert snapshot(out) == before
