"""mirrorha-install-agents."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agents import install

EXECUTABLE = "usr/lib/ocf/resource.d/mirrorha/VirtualIP"
LIBRARY = "usr/lib/ocf/lib/mirrorha"


def test_everybody_may_read_what_is_installed_and_run_the_agents(installed: Path) -> None:
    for path in (installed / "usr").rglob("*"):
        mode = path.stat().st_mode & 0o777
        wanted = 0o755 if path.is_dir() or (path.parent.name == "mirrorha" and "resource.d" in path.parts) else 0o644
        assert mode == wanted, path


def test_a_second_run_changes_nothing(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_ino for path in installed.rglob("*")}
    assert install.main(["--root", str(installed)]) == 0
    assert capsys.readouterr().out.endswith("0 changes\n")
    assert {path: path.stat().st_ino for path in installed.rglob("*")} == before


def test_damage_is_repaired_and_files_of_an_earlier_version_go(tmp_path: Path) -> None:
    install.install(tmp_path, dry_run=False)
    (tmp_path / EXECUTABLE).chmod(0o700)
    (tmp_path / LIBRARY / "metadata/VirtualIP.xml").write_text("damaged")
    old = tmp_path / LIBRARY / "agents/old.py"
    cached = tmp_path / LIBRARY / "agents/__pycache__/old.cpython-311.pyc"
    for path in (old, cached):
        path.write_text("")
    lines = install.install(tmp_path, dry_run=False)
    assert sorted(line.split()[0] for line in lines) == ["remove", "remove", "update", "update"]
    assert not old.exists()
    assert not cached.exists()
    assert install.install(tmp_path, dry_run=False) == []


def test_a_dry_run_names_everything_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["--root", str(tmp_path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"would create {tmp_path / EXECUTABLE}" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_executable_names_the_final_place_of_its_library(installed: Path) -> None:
    text = (installed / EXECUTABLE).read_text()
    assert text.splitlines()[0] == "#!/usr/bin/python3 -IS"
    assert f'"/{LIBRARY}"' in text
    assert str(installed) not in text


def test_meta_data_is_printed_from_the_rendered_file(installed: Path) -> None:
    rendered = installed / LIBRARY / "metadata/VirtualIP.xml"
    program = (
        f"import sys; sys.path.insert(0, {str(installed / LIBRARY)!r}); from agents.virtual_ip import VirtualIP as V;"
        "V.main()"
    )
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", program, "meta-data"], capture_output=True, check=True)
    assert done.stdout == rendered.read_bytes()


def test_psutil_is_found_by_the_agents_and_only_when_asked_for(installed: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(installed / LIBRARY)!r})\n"
        "from agents.ocf import site\n"
        "assert not any('site-packages' in path for path in sys.path)\n"
        "site.enable(); import psutil; print(psutil.pid_exists(1))"
    )
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_wrong_option_ends_with_the_usage_code_and_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        install.main(["--rot", "/tmp/x"])
    assert ended.value.code == 64
    assert "see mirrorha-install-agents -h" in capsys.readouterr().err
