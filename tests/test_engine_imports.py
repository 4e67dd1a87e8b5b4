"""The engine starts without torch's compiler, and whoever wants the compiler later gets the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CODE = """
import json, sys
from darkroom.config import Config
from darkroom.models.catalog import Catalog
from darkroom.job import parse, resolve
from darkroom.events import Picture
from darkroom.engine.render import Engine

config = Config()
asked = parse(b'{"prompt": "a red circle", "steps": 2, "width": 64, "height": 64}')
job = resolve(asked, config, Catalog(config.models), "x")
pictures = [event for event in Engine(config).render(job, frozenset(), lambda: False) if isinstance(event, Picture)]
found = {"pictures": len(pictures), "before": "torch._dynamo" in sys.modules}

import torch
found["distributed"] = torch.distributed.is_available()
found["filled"] = float(torch.nn.Embedding(100, 100).weight.std())
import torch._dynamo.config
found["real"] = torch._dynamo.config.__file__ is not None and callable(torch._dynamo.optimize)
found["compiled"] = float(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(())))
print(json.dumps(found))
"""


def test_the_compiler_stays_away_until_it_is_wanted(tmp_path: Path) -> None:
    environment = {"DARKROOM_ENGINE__CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=os.environ | environment)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found["pictures"] == 1
    assert not found["before"]
    assert found["real"]
    assert found["compiled"] == 2
    assert 0.8 < found["filled"] < 1.2
    assert found["distributed"]


def test_statistics_that_are_installed_are_not_imported_and_can_be_afterwards(tmp_path: Path) -> None:
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("told = True\n")
    code = (
        "import sys\n"
        "from darkroom.engine.imports import import_libraries\n"
        "import_libraries()\n"
        "from darkroom.engine.sampling.samplers import make_scheduler\n"
        "from darkroom.engine.sampling.schedulers import lms\n"
        "make_scheduler('LMS', 'karras', {}, 4), make_scheduler('Euler', 'beta', {}, 4)\n"
        "assert 'scipy' not in sys.modules\n"
        "import scipy\n"
        "print(scipy.told)\n"
    )
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths)
    assert ran.stdout.strip() == "True", ran.stderr
