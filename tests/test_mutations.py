"""Mutation control: without each guard, a test turns red. The guards are those of docs/reliability.md."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    "private attributes": (
        "vae_lab/stacking.py",
        "    return dict(sorted(own.items()))\n",
        "    return {key: value for key, value in own.items() if not key.startswith('_')}\n",
        "tests/test_stacking.py::test_a_weight_kept_in_private_trains_each_run_with_its_own",
    ),
    "settings are not state": (
        "vae_lab/settings.py",
        "persistent=False",
        "persistent=True",
        "tests/test_settings.py::test_no_checkpoint_holds_a_setting",
    ),
    "undeclared settings": (
        "vae_lab/job.py",
        "    run.state |= {name: buffer.to(run.state[name].device) for name, buffer in now.items() if name in run.state}\n",
        "",
        "tests/test_settings.py::test_a_changed_weight_counts_from_where_the_run_goes_on",
    ),
    "evaluation mode": (
        "vae_lab/job.py",
        "job.run.system.to(job.device).eval()",
        "job.run.system.to(job.device)",
        "tests/test_inspection.py::test_batch_norm_evaluates_with_the_statistics_of_training",
    ),
    "validation at the end of schedules": (
        "vae_lab/engine.py",
        "torch.tensor(self.runs[0].total_steps, device=self.device)",
        "torch.tensor(self.runs[0].step, device=self.device)",
        "tests/test_selection.py::test_validation_is_by_the_weight_at_the_end",
    ),
    "patience after the warm-up": (
        "vae_lab/engine.py",
        "max(run.best_epoch, self._settled(run))",
        "run.best_epoch",
        "tests/test_selection.py::test_patience_waits_for_the_end_of_the_warm_up",
    ),
    "code of the evaluation's own": (
        "vae_lab/evaluate.py",
        "part_eps = None if eps is None else eps[here]",
        "part_eps = noise['eps'][here] if 'eps' in noise else None",
        "tests/test_inspection.py::test_evaluation_draws_its_own_code",
    ),
    "draws are noticed": (
        "vae_lab/inspection.py",
        "        if _streams() != streams:\n",
        "        if False:\n",
        "tests/test_inspection.py::test_what_no_forward_pass_may_do",
    ),
    "all systems on the device": (
        "vae_lab/cohort.py",
        "        for system in distinct:\n            system.to(device).train()\n        self.template = systems[0]\n",
        "        self.template = systems[0].to(device).train()\n",
        "tests/test_device.py::test_nothing_is_left_behind",
    ),
    "weights_only": (
        "vae_lab/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "tests/test_hostile_checkpoints.py::test_h1_hostile_checkpoints_with_right_checksums_are_refused",
    ),
    "finite weights": (
        "vae_lab/resume.py",
        "(here, here.isfinite() | built[key])",
        "(here, built[key] | True)",
        "tests/test_trained.py::test_weights_that_are_no_numbers_or_of_another_type_are_refused",
    ),
    "type of weights": (
        "vae_lab/resume.py",
        "if here.dtype != there.dtype]",
        "if False]",
        "tests/test_trained.py::test_weights_that_are_no_numbers_or_of_another_type_are_refused",
    ),
    "finite optimiser state": (
        "vae_lab/resume.py",
        "(part, ~part.isnan())",
        "(part, part.isnan() | True)",
        "tests/test_checkpoint.py::test_b10_numbers_that_no_run_goes_on_from_are_refused",
    ),
    "digest of the pixel cache": (
        "vae_lab/data/stored.py",
        "hashlib.file_digest(opened, \"sha256\").hexdigest() != digest",
        "False",
        "tests/test_stored.py::test_a_damaged_cache_is_made_anew_and_says_so",
    ),
    "sum of the cache's manifest": (
        "vae_lab/data/stored.py",
        "known.pop(\"sha256\", None) != _sum(known)",
        "known.pop(\"sha256\", None) is known",
        "tests/test_stored.py::test_a_damaged_cache_is_made_anew_and_says_so",
    ),
    "draws of the prior itself": (
        "vae_lab/distributions.py",
        "z = p.sample(torch.Size([n]))",
        "z = p.mean + p.stddev * torch.randn(n, *p.mean.shape)",
        "tests/test_priors.py::test_draws_of_a_mixture_prior_are_of_that_mixture",
    ),
    "mixture of training codes": (
        "vae_lab/figures.py",
        "fit_mixture(subject.training_codes, seed=subject.seed)",
        "fit_mixture(subject.latents.mu, seed=subject.seed)",
        "tests/test_priors.py::test_an_autoencoders_samples_have_one_source",
    ),
    "whole layers": (
        "vae_lab/cohort.py",
        "with UndividedLayers() if self._bf16 else nullcontext():",
        "with nullcontext():",
        "tests/test_cohort_equality.py::test_the_first_step_is_that_of_the_run_alone",
    ),
    "untrained bias": (
        "vae_lab/networks/conv.py",
        "if layer.out_channels == self.config.groups:",
        "if False:",
        "tests/test_cohort_equality.py::test_a_bias_that_is_subtracted_is_not_trained",
    ),
    "no markup in data": (
        "vae_lab/console.py",
        "return Text(printable(value), style)",
        "return Text.from_markup(printable(value), style=style)",
        "tests/test_messages.py::test_d1_a_run_with_markup_in_its_name_and_folder",
    ),
    "escapes made visible": (
        "vae_lab/text.py",
        "if unicodedata.category(character) in CONTROLS and character not in JOINERS",
        "if False",
        "tests/test_messages.py::test_d1_what_is_printed_is_data",
    ),
    "lost output": (
        "vae_lab/text.py",
        "        with contextlib.suppress(OSError):\n            if (written",
        "        with contextlib.suppress(ValueError):\n            if (written",
        "tests/test_messages.py::test_d3_lost_output_costs_its_lines",
    ),
    "one spelling of a folder": (
        "vae_lab/entry.py",
        "QuotedString(literal, Quote.single).with_quotes()",
        "\"'\" + literal.replace(\"\\\\\", \"\\\\\\\\\").replace(\"'\", \"\\\\'\") + \"'\"",
        "tests/test_messages.py::test_d4_one_spelling_of_a_folder",
    ),
    "depth of YAML": (
        "vae_lab/foreign.py",
        "if len(nodes) > MAX_YAML_DEPTH or ",
        "if ",
        "tests/test_messages.py::test_d4_a_damaged_config_is_one_message",
    ),
    "names of a broken plugin": (
        "vae_lab/registry.py",
        "        _entries.update(before)\n",
        "",
        "tests/test_registry.py::test_d5_the_name_of_a_broken_plugin_gives_its_error",
    ),
    "a picture costs itself": (
        "vae_lab/skipped.py",
        "except Exception as error:",
        "except ZeroDivisionError as error:",
        "tests/test_skipped.py::test_d6_a_picture_that_raises_costs_itself",
    ),
    "a warning's own log": (
        "vae_lab/tracking/weights_and_biases.py",
        "extra={\"folder\": str(self.facts.run_dir.path), \"once\": self.problem},",
        "extra={\"once\": self.problem},",
        "tests/test_skipped.py::test_d7_a_wandb_warning_of_a_cohort_stands_once",
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
        "    places.check_run_folder(folder)\n    with storage_errors(folder):\n",
        "    with storage_errors(folder):\n",
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
        "    resume.check_written(folder, training, manifest)\n",
        "",
        "tests/test_hostile_checkpoints.py::test_h1_sound_checkpoints_that_no_run_wrote_are_refused",
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
        "vae_lab/text.py",
        "if unicodedata.category(character) in CONTROLS and character not in JOINERS",
        "if False",
        "tests/test_compare_foreign.py::test_c7_no_escape_reaches_what_is_written",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """What became of each guard's test without the guard, all at once on as many cores as there are."""
    chosen = [item.callspec.params["guard"] for item in request.session.items if item.module is request.module]
    with ThreadPoolExecutor(os.cpu_count()) as together:
        yield {guard: together.submit(mutated, guard, tmp_path_factory.mktemp("mutated")) for guard in chosen}


def mutated(guard: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a guard's test in a copy of the project that lacks the guard."""
    file, old, new, test = MUTATIONS[guard]
    copy = folder / "copy"
    copy.mkdir()
    for name in ("vae_lab", "hydra_plugins", "conf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    text = (copy / file).read_text()
    assert text.count(old) >= 1, f"{file} no longer has the guard {guard!r}"
    (copy / file).write_text(text.replace(old, new))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
    return subprocess.run(
        command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("guard", sorted(MUTATIONS))
def test_without_the_guard_a_test_turns_red(guard: str, outcomes: dict[str, Future]) -> None:
    done = outcomes[guard].result()
    assert done.returncode == 1, done.stdout[-2000:]
    assert re.search(r"\b1 (failed|error)\b", done.stdout)
