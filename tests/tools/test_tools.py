"""The scripts that the Makefile calls."""

import subprocess
import sys
import tomllib
import venv

import pytest
from scripts import ROOT, tool


def test_requirements_are_those_of_the_project(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["requirements.py"])
    tool("requirements").main()
    lines = capsys.readouterr().out.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lines == project["dependencies"] + project["optional-dependencies"]["dev"]
    assert all(line.strip() == line != "" for line in lines)


@pytest.mark.parametrize(
    ("version", "expected"), [((3, 11), "--constraint constraints.txt\n"), ((3, 12), "")]
)
def test_constraints_are_for_one_python(capsys, monkeypatch, version, expected):
    monkeypatch.setattr(sys, "argv", ["requirements.py", "--constraints"])
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    tool("requirements").main()
    assert capsys.readouterr().out == expected


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].lower().replace("_", "-")
        assert name in pinned, requirement


def test_shared_dependencies_can_be_imported_but_editable_installs_cannot(tmp_path):
    # Two environments of its own: what the suite itself runs in differs (the checkout's, the wheel's).
    for name in ("with_dependencies", "empty"):
        venv.create(tmp_path / name, symlinks=True, with_pip=False)
    packages = (
        tmp_path
        / "with_dependencies/lib"
        / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    )
    (packages / "dependency.py").write_text("")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "edited.py").write_text("")
    (packages / "edited.pth").write_text(f"{tmp_path / 'checkout'}\n")

    def imports(environment: str, module: str) -> bool:
        python = tmp_path / environment / "bin" / "python"
        done = subprocess.run(
            [python, "-I", "-c", f"import {module}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or f"No module named '{module}'" in done.stderr, done.stderr
        return done.returncode == 0

    modules = ("dependency", "edited")
    assert [imports("with_dependencies", module) for module in modules] == [True, True]
    assert [imports("empty", module) for module in modules] == [False, False]
    tool_path = ROOT / "tools" / "share_dependencies.py"
    subprocess.run([tmp_path / "with_dependencies/bin/python", tool_path, tmp_path / "empty"], check=True)
    assert [imports("empty", module) for module in modules] == [True, False]


def test_the_matrix_finds_and_names_interpreters(capsys, monkeypatch, tmp_path):
    matrix = tool("test_matrix")
    pyenv = tmp_path / ".pyenv" / "versions" / "3.13.2" / "bin"
    pyenv.mkdir(parents=True)
    (pyenv / "python3").touch()
    monkeypatch.setattr(matrix.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(matrix.shutil, "which", lambda name: None)
    monkeypatch.setattr(matrix.shutil, "rmtree", lambda *args, **kwargs: None)
    commands = []
    monkeypatch.setattr(
        matrix.subprocess,
        "run",
        lambda command, **_: commands.append(command) or subprocess.CompletedProcess([], 0),
    )
    assert matrix.main() == 0
    assert [command[2:] for command in commands] == [
        [f"PYTHON={pyenv / 'python3'}", "VENV=build/matrix/3.13"]
    ]
    out = capsys.readouterr().out
    assert "Python 3.12: not installed here, not tested" in out
    assert "Python 3.13: passed" in out


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 1)])
def test_the_matrix_fails_with_any_of_its_runs(monkeypatch, capsys, code, expected):
    matrix = tool("test_matrix")
    monkeypatch.setattr(matrix, "find", lambda minor: "python3" if minor == 12 else None)
    monkeypatch.setattr(matrix.shutil, "rmtree", lambda *args, **kwargs: None)
    monkeypatch.setattr(matrix.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code))
    assert matrix.main() == expected


def test_the_matrix_without_any_python_fails(monkeypatch, capsys):
    matrix = tool("test_matrix")
    monkeypatch.setattr(matrix, "find", lambda minor: None)
    assert matrix.main() == 1
    assert capsys.readouterr().out.count("not installed here") == 2
