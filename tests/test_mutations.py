"""Mutation control: without each guard, a test turns red. The guards are those of docs/reliability.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOREIGN = "tests/test_foreign_folders.py"
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
    "config.yaml alone": (
        "vae_lab/resume.py",
        "    return overrides_of(read_config(RunDir(folder)), more, folders), folder\n",
        "    return [*yaml.safe_load((folder / '.hydra' / 'overrides.yaml').read_text()), *more], folder\n",
        f"{FOREIGN}::test_c1_a_resume_takes_no_launcher_from_the_run_directory",
    ),
    "exact targets": (
        "vae_lab/security.py",
        "raw not in TARGETS.get(key, ())",
        "not str(raw).startswith('hydra_plugins.')",
        "tests/test_security.py::test_h3_paths_to_code_are_refused",
    ),
    "resolved paths": (
        "vae_lab/security.py",
        "in places.outputs(hydra):",
        "in ():",
        "tests/test_security.py::test_h4_no_way_out",
    ),
    "each job": (
        "vae_lab/security.py",
        "        places.check_inside(\"hydra.sweep.subdir\", str(cfg.hydra.sweep.subdir), root, \"the sweep's folder\")\n",
        "",
        "tests/test_security.py::test_c3_each_job_of_a_sweep_is_checked",
    ),
    "secret values": (
        "vae_lab/secrecy.py",
        "    if any(secret in text",
        "    if False and any(secret in text",
        "tests/test_security.py::test_c4_no_spelling_gets_a_secret_into_a_config",
    ),
    "searched folders": (
        "vae_lab/security.py",
        "        foreign.check_yaml_folder(folders[-1])\n",
        "",
        "tests/test_security.py::test_c5_searched_folders_are_checked_as_config_dir_is",
    ),
    "links in a run directory": (
        "vae_lab/resume.py",
        "    places.check_run_folder(folder)\n    if not explicit:\n",
        "    if not explicit:\n",
        f"{FOREIGN}::test_c6_links_and_pipes_in_a_run_directory",
    ),
    "links in a sweep": (
        "vae_lab/entry.py",
        "    places.check_sweep_folder(folder)\n",
        "",
        f"{FOREIGN}::test_c6_links_in_a_sweeps_folder",
    ),
    "pipes": (
        "vae_lab/foreign.py",
        "if not stat.S_ISREG(path.stat().st_mode):",
        "if False:",
        f"{FOREIGN}::test_c6_a_pipe_is_never_waited_for",
    ),
    "known files": (
        "vae_lab/tasks/push.py",
        "[run_dir.checkpoints / CHECKPOINTS[0] / name for name in (MANIFEST, MODEL, TRAINING)]",
        "sorted((run_dir.checkpoints / CHECKPOINTS[0]).iterdir())",
        f"{FOREIGN}::test_c6_push_takes_known_files_and_says_what_it_leaves",
    ),
    "trials of this search": (
        "vae_lab/tune.py",
        "    _check_found(earlier, space, folder)\n",
        "",
        f"{FOREIGN}::test_c1_trials_of_a_foreign_search_are_no_overrides",
    ),
    "imports of a worker": (
        "vae_lab/pool.py",
        "\"-P\", ",
        "",
        f"{FOREIGN}::test_c1_workers_import_nothing_from_the_working_directory",
    ),
    "what a run wrote": (
        "vae_lab/job.py",
        "    resume.check_written(folder, training, manifest, dict(run.system.named_parameters()))\n",
        "",
        "tests/test_hostile_checkpoints.py::test_h1_sound_checkpoints_that_no_run_wrote_are_refused",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("guard", sorted(MUTATIONS))
def test_without_the_guard_a_test_turns_red(guard: str, tmp_path: Path) -> None:
    file, old, new, test = MUTATIONS[guard]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("vae_lab", "hydra_plugins", "conf", "tests"):
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
