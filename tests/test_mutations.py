"""Mutation control: without each guard, a test turns red. The guards are those of docs/reliability.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MUTATIONS = {
    "fsync": (
        "vae_lab/checkpoint.py",
        "        file.flush()\n        os.fsync(file.fileno())\n",
        "",
        "tests/test_checkpoint.py::test_b1_every_file_is_synced_before_the_rename",
    ),
    "rename": (
        "vae_lab/checkpoint.py",
        "        os.rename(temporary, final)\n",
        "        final.mkdir()\n        for part in (MODEL, TRAINING, MANIFEST):\n"
        "            _write(final / part, (temporary / part).read_bytes())\n        _remove(temporary)\n",
        "tests/test_checkpoint.py::test_b1_a_crash_at_every_io_call_of_a_save",
    ),
    "previous checkpoint": (
        "vae_lab/checkpoint.py",
        "                os.rename(final, previous)\n",
        "                _remove(final)\n",
        "tests/test_checkpoint.py::test_b3_truncated_anywhere_falls_back_and_says_so",
    ),
    "random streams": (
        "vae_lab/rng.py",
        "text = \"/\".join([str(seed), purpose, *map(str, position)])",
        "import os; text = \"/\".join([str(seed), purpose, *map(str, position), str(os.getpid() * (purpose == 'noise'))])",
        "tests/test_kill.py::test_a2_a4_stop_after_every_step",
    ),
    "position in the epoch": (
        "vae_lab/engine.py",
        "runs[0].step - runs[0].epoch * (last + 1)",
        "0",
        "tests/test_engine.py::test_going_on_from_every_step_is_bit_identical",
    ),
    "optimiser state": (
        "vae_lab/job.py",
        "run.optimizer_state = training[\"optimizer\"]",
        "pass",
        "tests/test_kill.py::test_a2_a4_stop_after_every_step",
    ),
    "checksum": (
        "vae_lab/checkpoint.py",
        "if hashlib.sha256(data).hexdigest() != files[file][\"sha256\"]:",
        "if False:",
        "tests/test_checkpoint.py::test_b4_every_flipped_bit_is_noticed",
    ),
    "lock": (
        "vae_lab/lock.py",
        "            lock.acquire(timeout=0)\n",
        "            pass\n",
        "tests/test_resume.py::test_i_one_winner_of_eight",
    ),
    "deferred signals": (
        "vae_lab/interrupt.py",
        "if not self.is_deferred or (again and number == signal.SIGINT):",
        "if True:",
        "tests/test_kill.py::test_a5_signals_at_awkward_moments",
    ),
    "finite check": (
        "vae_lab/health.py",
        "if all(map(math.isfinite, values := sums.tolist()[0])):",
        "if values := sums.tolist()[0]:",
        "tests/test_numerics.py::test_c1_stops_before_the_update_and_says_what_and_where",
    ),
    "finite gradient": (
        "vae_lab/engine.py",
        "position == last or not health.immediate",
        "not health.immediate",
        "tests/test_numerics.py::test_c1_a_bad_gradient_is_traced_to_its_step",
    ),
    "metrics past the checkpoint": (
        "vae_lab/run_dir.py",
        "if row[\"epoch\"] <= epochs]",
        "]",
        "tests/test_resume.py::test_b7_a_torn_line_and_rows_past_the_checkpoint",
    ),
    "weights_only": (
        "vae_lab/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "tests/test_hostile_checkpoints.py::test_h1_hostile_checkpoints_with_right_checksums_are_refused",
    ),
    "common cells": (
        "vae_lab/compare/design.py",
        "_by_seed(cells[label], rows, metric)",
        "_by_seed(cells[label], set(cells[label]), metric)",
        "tests/test_compare_design.py::test_b1_a_winner_that_lost_its_bad_runs_is_none",
    ),
    "lost runs": (
        "vae_lab/compare/statistics.py",
        "return \"lost\" if best in rules.lost else \"better\"",
        "return \"better\"",
        "tests/test_compare_design.py::test_b6_who_lost_runs_is_never_called_better",
    ),
    "one family of claims": (
        "vae_lab/compare/report.py",
        "families if one == chosen else 0",
        "families",
        "tests/test_compare_design.py::test_b4_one_family_of_claims_a_page",
    ),
    "own spread": (
        "vae_lab/compare/blocks.py",
        "np.where(pooled[..., None], variance, np.maximum(variance, own))",
        "variance",
        "tests/test_compare_statistics.py::test_b3_false_claims_where_runs_are_not_normal_or_spread_alike",
    ),
    "interval of the best": (
        "vae_lab/compare/blocks.py",
        "stats.t.isf(alpha / 2 / groups, found.df)",
        "stats.t.isf(alpha / 2, found.df)",
        "tests/test_compare_statistics.py::test_b5_the_interval_of_the_best_holds_its_mean",
    ),
    "printable names": (
        "vae_lab/compare/foreign.py",
        "    if text.isprintable():",
        "    if True:",
        "tests/test_compare_foreign.py::test_c7_no_escape_reaches_what_is_written",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("guard", sorted(MUTATIONS))
def test_without_the_guard_a_test_turns_red(guard: str, tmp_path: Path) -> None:
    file, old, new, test = MUTATIONS[guard]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("vae_lab", "conf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    text = (copy / file).read_text()
    assert text.count(old) >= 1, f"{file} no longer has the guard {guard!r}"
    (copy / file).write_text(text.replace(old, new))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
    done = subprocess.run(
        command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert re.search(r"\b1 (failed|error)\b", done.stdout)
