"""Which runs are found, what becomes of those that did not end well, and which may be compared at all."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.planted import ENVIRONMENT, config, plant, plant_groups, write_ledger
from vae_lab import sweep
from vae_lab.compare import collect, report
from vae_lab.config import fingerprint
from vae_lab.errors import ConfigError
from vae_lab.run_dir import RunDir


def findings(found: report.Report, kind: str) -> list[str]:
    return [finding.text for finding in found.findings if finding.kind == kind]


def states(found: report.Report) -> dict[str, str]:
    return {record.name: record.state for record in found.records}


def test_the_ledger_has_the_name_that_sweeps_write() -> None:
    assert collect.LEDGER == sweep.LEDGER


def test_runs_are_found_in_run_and_sweep_folders_and_folders_of_them(tmp_path: Path) -> None:
    plant(tmp_path / "all" / "sweeps" / "one" / "0_a", config(seed=0))
    plant(tmp_path / "all" / "runs" / "b", config(seed=1))
    conf = tmp_path / "all" / "conf"  # a config alone is not a run
    conf.mkdir()
    (conf / "config.yaml").write_text("seed: 0\n")
    assert len(collect.collect([tmp_path / "all"])) == 2
    assert len(collect.collect([tmp_path / "all" / "runs" / "b"])) == 1
    assert len(collect.collect([tmp_path / "all", tmp_path / "all" / "runs"])) == 2  # named twice, counted once


def test_what_failed_is_missing_or_damaged_is_listed_and_costs_no_other(tmp_path: Path) -> None:
    root = plant_groups(tmp_path / "sweep", {"vae": [20, 20.1, 20.2, 20.3, 20.4], "other": [21, 21.2, 21.1, 21.5, 21.3]})
    bad = RunDir(root / "other_1")
    bad.write_results((bad.read_results() or {}) | {"status": "failed", "error": "NonFiniteError: kl is inf at step 3"})
    RunDir(root / "other_2").results.write_text('{"status": "completed", ')
    RunDir(root / "other_3").results.unlink()
    stopped = RunDir(root / "vae_4")
    stopped.write_results((stopped.read_results() or {}) | {"status": "interrupted", "error": "SIGTERM"})
    with RunDir(root / "vae_0").metrics.open("a") as file:
        file.write('{"epoch": 13, "tr')
    plain = config(seed=9)
    write_ledger(
        root, [{"name": "vae_z2_s9", "state": "not_run", "fingerprint": fingerprint(plain), "folder": "9_vae", "cause": None}]
    )
    found = report.build([root])
    lost = {record.name: (record.state, record.cause) for record in found.records if not record.usable}
    assert {name: state for name, (state, _) in lost.items()} == {
        "other_z2_s1": "failed",
        "other_z2_s2": "damaged",
        "other_z2_s3": "unfinished",
        "vae_z2_s4": "interrupted",
        "vae_z2_s9": "not_run",
    }
    assert "kl is inf" in str(lost["other_z2_s1"][1])
    assert "results.json" in str(lost["other_z2_s2"][1])
    assert findings(found, "missing") == [
        "other: n = 2 of 5 seeds; without seed 1, 2, 3.",
        "vae: n = 4 of 5 seeds; without seed 4.",
    ]
    assert any("metrics.jsonl: 1 damaged lines" in text for text in findings(found, "files"))
    assert [pair.n for pair in found.comparisons[0].pairs] == [1]  # seeds 0 and 4 of one, 0 to 3 of the other
    assert "few" in {finding.kind for finding in found.findings}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"status": "completed"}', '{"status": 3, "test": {}}', '{"test": {}, "status": "done"}', "\udcff"],
)
def test_damaged_results_are_never_an_exception(tmp_path: Path, content: str) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21]})
    RunDir(root / "vae_1").results.write_bytes(content.encode(errors="surrogateescape"))
    found = report.build([root])
    assert states(found)["vae_z2_s1"] == "damaged"


@pytest.mark.parametrize("content", ["", "- 1\n", "name: [\n", "name: x\nseed: seven\n", "!!python/object/apply:os.getcwd []\n"])
def test_damaged_configs_are_never_an_exception(tmp_path: Path, content: str) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21]})
    RunDir(root / "vae_1").config.write_text(content)
    assert "damaged" in states(report.build([root])).values()


def test_odd_types_in_results_are_not_numbers(tmp_path: Path) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21, 22]})
    run = RunDir(root / "vae_1")
    results: dict[str, Any] = run.read_results() or {}
    results |= {"environment": "here", "time": [1], "beta_eff": "x", "parameters": None, "resumed": 3, "train": "?"}
    results["test"] |= {"elbo": "high", "kl_per_latent": "?", "nll": True}
    run.write_results(results)
    assert report.build([root]).comparisons[0].table.loc["vae", "n"] == 2


def test_a_damaged_ledger_is_said(tmp_path: Path) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21]})
    (root / collect.LEDGER).write_text("{")
    assert states(report.build([root]))["sweep.json"] == "damaged"


@pytest.mark.parametrize(
    ("change", "results", "key"),
    [
        ({"loss__name": "mse"}, {}, "likelihood"),
        ({"data__binarize": "dynamic"}, {"data_digest": "other"}, "images"),
        ({}, {"data_digest": "other"}, "images"),
        ({"evaluation__active_threshold": 0.1}, {}, "evaluation.active_threshold"),
    ],
)
def test_what_is_on_another_scale_is_never_ranked_together(tmp_path: Path, change: dict, results: dict, key: str) -> None:
    for seed in range(3):
        plant(tmp_path / f"a{seed}", config(seed=seed), 20 + seed)
        plant(tmp_path / f"b{seed}", config(seed=seed, data__root=str(seed), **change), 5 + seed, **results)
    found = report.build([tmp_path])
    assert len(found.parts) == 2
    assert all(not comparison.pairs for comparison in found.comparisons)
    (why,) = findings(found, "scale")
    assert key in why


def test_the_squared_error_may_be_compared_across_likelihoods(tmp_path: Path) -> None:
    for seed in range(3):
        plant(tmp_path / f"a{seed}", config(seed=seed), 20 + 0.1 * seed)
        plant(tmp_path / f"b{seed}", config(seed=seed, loss__name="mse"), 16 + 0.3 * seed)
    found = report.build([tmp_path], metric="test/mse")
    assert [pair.verdict for pair in found.comparisons[0].pairs] == ["better"]
    assert found.comparisons[0].best.label == "mse"


def test_the_loss_is_not_ranked_across_betas(tmp_path: Path) -> None:
    for seed in range(3):
        for beta in (1.0, 4.0):
            plant(tmp_path / f"{beta}_{seed}", config(seed=seed, objective__beta=beta), 20 + seed)
    assert len(report.build([tmp_path], metric="test/loss").parts) == 2
    assert len(report.build([tmp_path], metric="test/elbo").parts) == 1


def test_an_autoencoder_is_compared_by_its_reconstruction(tmp_path: Path) -> None:
    for seed in range(3):
        plant(tmp_path / f"vae{seed}", config(seed=seed), 20 + seed)
        ae = config(seed=seed, model__variant="autoencoder", objective={"name": "reconstruction"})
        plant(tmp_path / f"ae{seed}", ae, 15 + 1.1 * seed, kl=None)
    elbo, nll = report.build([tmp_path]).comparisons
    assert ([group.label for group in elbo.groups], [group.label for group in elbo.without]) == (["vae"], ["autoencoder"])
    assert [group.label for group in nll.groups] == ["autoencoder", "vae"]


def test_copies_count_once_and_are_flagged(tmp_path: Path) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21, 22]})
    plant(tmp_path / "again", config(seed=1), 21)
    plant(tmp_path / "differs", config(seed=2), 29)
    found = report.build([root])
    texts = findings(found, "copies")
    assert len(texts) == 2
    assert any("the same numbers" in text for text in texts)
    assert any("other numbers" in text and "test/nll" in text for text in texts)
    assert found.comparisons[0].table.loc["vae", "n"] == 3


def test_mixed_environments_and_settings_are_flagged(tmp_path: Path) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21, 22]})
    plant(tmp_path / "new", config(seed=3), 20, environment=ENVIRONMENT | {"torch": "9.9", "threads": 4})
    plant(tmp_path / "lr", config(seed=3, optimizer__lr=0.1), 30)
    found = report.build([root], by=["model"])
    mixed = " ".join(findings(found, "mixed"))
    assert "environments differ in torch: 2.15.0 (4 runs), 9.9 (1 runs)" in mixed
    assert "several runs of one seed (5 runs, 4 seeds), which differ in lr: add it to --by" in mixed
    row = found.comparisons[0].table.loc["all runs" if "all runs" in found.comparisons[0].table.index else "vae"]
    assert row["n"] == 4  # seed 3 counts once, with its mean
    assert found.comparisons[0].values.loc[3].item() == pytest.approx(-(25 + 5))


def test_a_config_changed_after_training_is_flagged(tmp_path: Path) -> None:
    root = plant_groups(tmp_path, {"vae": [20, 21]})
    RunDir(root / "vae_0").write_config(config(optimizer__lr=0.5))
    assert any("changed after training" in text for text in findings(report.build([root]), "files"))


def test_the_time_of_a_cohort_is_shared(tmp_path: Path) -> None:
    folder = plant(tmp_path / "run", config())
    run = RunDir(folder)
    run.manifest.parent.mkdir(parents=True)
    run.manifest.write_text(json.dumps({"cohort": ["a", "b", "c"]}))
    assert collect.read(folder, tmp_path).numbers["time/train_s"] == pytest.approx(1.0)


def test_beta_eff_stands_beside_every_beta(tmp_path: Path) -> None:
    for seed in range(2):
        for beta in (1.0, 4.0):
            plant(tmp_path / f"{beta}_{seed}", config(seed=seed, objective__beta=beta), 20 + seed, beta_eff=beta / 2)
    assert [group.label for group in report.build([tmp_path]).comparisons[0].groups] == [
        "beta=1 (beta_eff 0.5)",
        "beta=4 (beta_eff 2)",
    ]


def test_labels_are_unique_and_whole_numbers_have_one_group(tmp_path: Path) -> None:
    for seed in range(2):
        for number, lr in enumerate((1e-3, 1.0000001e-3)):
            for beta in (4, 4.0):  # as `objective.beta=4` and `=4.0` leave it
                plain = config(seed=seed + 2 * isinstance(beta, float), objective__beta=beta, optimizer__lr=lr)
                plant(tmp_path / f"{number}_{beta}_{seed}", plain, 20 + seed + number)
    groups = report.build([tmp_path], by=["lr", "beta"]).comparisons[0].groups
    assert len({group.label for group in groups}) == len(groups) == 2
    assert [len(group.records) for group in groups] == [4, 4]


def test_effects_use_what_all_values_share(tmp_path: Path) -> None:
    """A missing cell would bias a plain mean: z=9 is easy, and only one model has it."""
    for seed in range(4):
        for variant, shift in (("vae", 0.0), ("other", 1.0)):
            for dim in (2, 5, 9):
                if (variant, dim) != ("vae", 9):
                    nll = 30 - dim + shift + 0.01 * seed * (1 + shift)
                    plant(tmp_path / f"{variant}{dim}{seed}", config(seed=seed, latent_dim=dim, model__variant=variant), nll)
    effects = {effect.key: effect for effect in report.build([tmp_path]).comparisons[0].effects}
    pair = effects["model"].pairs[0]
    assert (pair.a, pair.b) == ("vae", "other")
    assert pair.gain == pytest.approx(1.015)
    assert "latent_dim 2, 5" in effects["model"].over
    assert "latent_dim" not in effects  # only one model has all latent sizes


def test_wrong_commands_end_with_one_message(tmp_path: Path) -> None:
    root = plant_groups(tmp_path / "sweep", {"vae": [20, 21]})
    (tmp_path / "empty").mkdir()

    def message(*folders: Path, **options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            report.build(folders, **options)
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "no such folder" in message(tmp_path / "gone")
    assert "no run in it" in message(tmp_path / "empty")
    assert "no run in it" in message(root, tmp_path / "empty")
    assert "Did you mean 'latent_dim'" in message(root, by=["laten_dim"])
    assert "repetitions" in message(root, by=["seed"])
    assert "Did you mean 'test/elbo'" in message(root, metric="test/elb")
    assert "--direction" in message(root, metric="test/kl")
    assert report.build([root], metric="test/kl", direction="lower").comparisons
    for seed in range(2):
        RunDir(root / f"vae_{seed}").results.unlink()
    assert "none of 2 runs" in message(root)


def test_the_command_never_imports_torch_and_ends_with_its_code(tmp_path: Path) -> None:
    root = plant_groups(tmp_path / "sweep", {"vae": [20, 21.1, 22], "other": [21, 22, 22.8]})
    program = (
        "import sys; sys.argv = ['vae-lab', *sys.argv[1:]]\n"
        "from vae_lab.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'wandb'} & set(sys.modules)\n"
    )

    def call(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", program, "compare", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = call(str(root), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert "has the best mean of test/elbo" in re.sub(r"\s+", " ", done.stdout)
    assert (tmp_path / "page.html").is_file()
    wrong = call(str(tmp_path / "gone"))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_seeds_are_expected_of_a_runs_own_sweep_only(tmp_path: Path) -> None:
    plant_groups(tmp_path / "one", {"vae": [20, 21]})
    plant_groups(tmp_path / "two", {"other": [20, 21, 22, 23]})
    for name in ("one", "two"):
        write_ledger(tmp_path / name, [])
    assert findings(report.build([tmp_path]), "missing") == []
    assert findings(report.build([tmp_path / "one", tmp_path / "two"]), "missing") == []
    (tmp_path / "two" / collect.LEDGER).unlink()
    (tmp_path / "one" / collect.LEDGER).unlink()
    assert findings(report.build([tmp_path]), "missing") == ["vae: n = 2 of 4 seeds; without seed 2, 3."]
