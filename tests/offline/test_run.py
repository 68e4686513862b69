import json
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import poolexport
from poolexport.cli.run import run as command
from poolexport.errors import InputError, OutputError
from poolexport.nn import SoftPool2d
from poolexport.offline import Picture, run, running


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), SoftPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    model = torch.nn.Sequential(*layers).eval()
    path = tmp_path_factory.mktemp("offline") / "net"
    poolexport.export(model, torch.randn(2, 3, 10, 8), path, dynamic_shapes={0: "N", 2: "H", 3: "W"})
    return path, model


@pytest.fixture
def folder(tmp_path):
    """Arrays of one row, of no batch axis, and of many rows; archives; images in a folder of their own."""
    rng = np.random.default_rng(0)
    (tmp_path / "in/pictures").mkdir(parents=True)
    np.save(tmp_path / "in/one.npy", rng.standard_normal((1, 3, 9, 7), np.float32))
    np.save(tmp_path / "in/bare.npy", rng.standard_normal((3, 8, 8), np.float32))
    np.save(tmp_path / "in/many.npy", rng.standard_normal((21, 3, 6, 6), np.float32))
    np.savez(tmp_path / "in/named.npz", input=rng.standard_normal((2, 3, 6, 5), np.float32))
    for number in range(5):
        pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/pictures/{number}.png")
    return tmp_path / "in"


def answer(out, name):
    with np.load(out / f"{name}.npz") as arrays:
        return arrays["output"]


def expected(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(x, np.float32))).numpy()


def test_every_file_gets_its_answer(net, folder, tmp_path):
    path, model = net
    report = run(path, [folder], tmp_path / "out", threads=2, batch=4)
    assert (report.written, report.found, report.failures) == (9, 0, ())
    for name in ("one", "many"):
        want = expected(model, np.load(folder / f"{name}.npy"))
        np.testing.assert_allclose(answer(tmp_path / "out", name), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        answer(tmp_path / "out", "bare"), expected(model, np.load(folder / "bare.npy")[None]), rtol=1e-5, atol=1e-6
    )
    for number in range(5):
        pixels = np.asarray(Image.open(folder / f"pictures/{number}.png")).transpose(2, 0, 1)[None] / 255
        np.testing.assert_allclose(
            answer(tmp_path / "out", f"pictures/{number}"), expected(model, pixels), rtol=1e-5, atol=1e-6
        )


def test_pixels_become_the_numbers_that_were_asked_for(net, folder, tmp_path):
    path, model = net
    picture = Picture((6, 5), 1 / 128, (0.5, 0.4, 0.3), (0.2,))
    run(path, [folder / "pictures/0.png"], tmp_path / "out", picture=picture)
    image = Image.open(folder / "pictures/0.png").resize((5, 6), Image.Resampling.BILINEAR)
    x = (np.asarray(image) / 128 - [0.5, 0.4, 0.3]) / 0.2
    want = expected(model, x.transpose(2, 0, 1)[None])
    np.testing.assert_allclose(answer(tmp_path / "out", "0"), want, rtol=1e-5, atol=1e-5)


def test_a_run_that_was_cut_off_goes_on(net, folder, tmp_path):
    path, _ = net
    run(path, [folder / "pictures"], tmp_path / "out")
    (tmp_path / "out/3.npz").unlink()
    kept = (tmp_path / "out/1.npz").stat().st_mtime_ns
    report = run(path, [folder / "pictures"], tmp_path / "out")
    assert (report.written, report.found) == (1, 4)
    assert (tmp_path / "out/1.npz").stat().st_mtime_ns == kept


def test_an_input_that_changed_is_run_anew(net, folder, tmp_path):
    path, model = net
    run(path, [folder / "one.npy"], tmp_path / "out")
    time.sleep(0.02)
    np.save(folder / "one.npy", np.ones((1, 3, 4, 4), np.float32))
    assert run(path, [folder / "one.npy"], tmp_path / "out").written == 1
    np.testing.assert_allclose(answer(tmp_path / "out", "one"), expected(model, np.ones((1, 3, 4, 4))), rtol=1e-5)


def test_answers_of_other_options_are_not_mixed(net, folder, tmp_path):
    path, _ = net
    run(path, [folder / "pictures"], tmp_path / "out")
    with pytest.raises(OutputError, match="another model or other options"):
        run(path, [folder / "pictures"], tmp_path / "out", picture=Picture(scale=1.0))
    assert run(path, [folder / "pictures"], tmp_path / "out", picture=Picture(scale=1.0), force=True).written == 5


def test_a_folder_of_something_else_is_left_alone(net, folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    with pytest.raises(OutputError, match="something else"):
        run(net[0], [folder], tmp_path / "thesis", force=True)
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_answers_inside_the_inputs_are_no_inputs(net, folder):
    path, _ = net
    first = run(path, [folder], folder / "out")
    second = run(path, [folder], folder / "out")
    assert (first.written, second.written, second.found) == (9, 0, 9)


BROKEN = {
    "text.npy": b"no array",
    "empty.npz": b"",
    "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0",
    "pickle.npy": None,
    "rank.npy": np.zeros((3, 3), np.float32),
    "channels.npy": np.zeros((1, 2, 8, 8), np.float32),
    "complex.npy": np.zeros((1, 3, 8, 8), complex),
    "tiny.npy": np.zeros((1, 3, 2, 2), np.float32),
}


@pytest.fixture
def broken(folder):
    for name, content in BROKEN.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            np.save(folder / name, np.array([object()]) if content is None else content, allow_pickle=True)
    np.savez(folder / "unnamed.npz", a=np.zeros(3), b=np.zeros(3))
    return folder


def test_broken_files_are_told_and_skipped_when_asked(net, broken, tmp_path):
    report = run(net[0], [broken], tmp_path / "out", keep_going=True)
    assert report.written == 9
    assert {failure.path.name for failure in report.failures} == {*BROKEN, "unnamed.npz"}
    assert all(str(failure.path) in failure.reason for failure in report.failures)
    told = json.loads((tmp_path / "out/failed.json").read_text())
    assert told == {str(failure.path): failure.reason for failure in report.failures}
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.parametrize("name", [*BROKEN, "unnamed.npz"])
def test_a_broken_file_ends_the_run_otherwise(net, broken, tmp_path, name):
    with pytest.raises(InputError, match=name):
        run(net[0], [broken / name], tmp_path / "out")
    assert not (tmp_path / "out" / name.replace(name[name.rindex(".") :], ".npz")).exists()


def test_no_more_files_are_in_memory_than_threads_need(net, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(40):
        np.save(tmp_path / f"in/{number}.npy", np.zeros((1, 3, 4, 4), np.float32))
    held, most = set(), []
    real_read, real_write = running.read, running.Answers.write

    def reading(item, *rest):
        held.add(item.answer)
        most.append(len(held))
        return real_read(item, *rest)

    def writing(self, answer, arrays):
        real_write(self, answer, arrays)
        held.discard(answer)

    monkeypatch.setattr(running, "read", reading)
    monkeypatch.setattr(running.Answers, "write", writing)
    run(net[0], [tmp_path / "in"], tmp_path / "out", threads=3)
    assert max(most) <= 3


def test_rows_that_depend_on_each_other_stay_together(tmp_path):
    class Centred(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    poolexport.export(Centred().eval(), torch.randn(3, 4), tmp_path / "net", dynamic_shapes={0: "N"})
    x = np.random.default_rng(0).standard_normal((20, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    run(tmp_path / "net", [tmp_path / "x.npy"], tmp_path / "out", batch=3)
    np.testing.assert_allclose(answer(tmp_path / "out", "x"), x - x.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "at least one row"),
        (["--threads", "0"], "at least one thread"),
        (["--size", "224"], "as in 224x224"),
        (["--size", "0x4"], "as in 224x224"),
        (["--mean", "a,b"], "one number"),
        (["--std", "0"], "cannot be 0"),
        (["--mean", "1,2"], "2 numbers"),
    ],
)
def test_bad_options_are_one_sentence(net, folder, tmp_path, words, said):
    done = CliRunner().invoke(command, [str(net[0]), str(folder / "pictures"), "-o", str(tmp_path / "out"), *words])
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)


def test_the_command_ends_with_2_where_files_were_skipped(net, broken, tmp_path):
    words = [str(net[0]), str(broken), "-o", str(tmp_path / "out"), "--keep-going", "--json"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 2
    assert len(json.loads(done.stdout)["failures"]) == len(BROKEN) + 1


def test_missing_and_unknown_files_are_refused(net, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for given, said in (("missing.npy", "no file"), ("notes.txt", "neither an array"), ("empty", "nothing to run")):
        with pytest.raises(InputError, match=said):
            run(net[0], [tmp_path / given], tmp_path / "out")


def test_two_files_never_write_one_answer(net, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="one name"):
        run(net[0], [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
