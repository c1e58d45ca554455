"""What is claimed of uneven designs: nothing that the runs, the seeds or the test images do not bear out."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.planted import config, plant, plant_groups, plant_terms, scale
from vae_lab.compare import command, report, tables
from vae_lab.compare.analysis import Comparison
from vae_lab.compare.answer import sentences, standing
from vae_lab.compare.chart import legend
from vae_lab.run_dir import RunDir

RNG = np.random.default_rng(3)


def compared(*folders: Path, **options: Any) -> Comparison:
    return report.build(list(folders), **options).comparisons[0]


def words(found: Comparison) -> str:
    return " ".join(sentences(found))


def verdicts(found: Comparison) -> dict[tuple[str, str], str]:
    return {(pair.a, pair.b): pair.verdict for pair in found.pairs}


def plant_rates(folder: Path, shift: float, bad: float, failed: tuple[str, ...] = ("b",), seeds: int = 5) -> None:
    """Variants a and b at two learning rates; a is better by `shift` at both, the second rate is worse by `bad`."""
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        for variant, worse in (("a", 0.0), ("b", shift)):
            for lr, cost in ((1e-3, 0.0), (1e-1, bad)):
                plain = config(seed=seed, model__variant=variant, optimizer__lr=lr)
                lost = {"status": "failed", "error": "loss is nan"} if cost and variant in failed else {}
                plant(folder / f"{variant}_{lr}_{seed}", plain, 20 + worse + cost + 0.05 * rng.normal(), **lost)


def test_b1_a_winner_that_lost_its_bad_runs_is_none(tmp_path: Path) -> None:
    """Simpson's paradox: a is better at both rates, and b has runs at the good one only."""
    plant_rates(tmp_path, shift=1.0, bad=5.0)
    found = compared(tmp_path, by=["model"])
    assert found.best is not None
    assert found.best.label == "a"
    assert found.pairs[0].gain == pytest.approx(1.0, abs=0.1)
    assert verdicts(found) == {("a", "b"): "better"}
    assert found.table.loc["a", "mean"] == pytest.approx(-25, abs=0.1)  # of what is compared
    assert "b (5 of 10 runs failed)" in words(found)
    assert "over the settings of lr that all of them have" in words(found)


def test_b1_without_a_common_cell_there_is_no_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(4):
        plant(tmp_path / f"a{seed}", config(seed=seed, model__variant="a", optimizer__lr=1e-3), 20 + rng.normal())
        plant(tmp_path / f"a{seed}_", config(seed=seed, model__variant="a", optimizer__lr=1e-2), 20 + rng.normal())
        plant(tmp_path / f"b{seed}", config(seed=seed, model__variant="b", optimizer__lr=1e-1), 90 + rng.normal())
    found = compared(tmp_path, by=["model"])
    assert found.best is None
    assert found.pairs == []
    assert "No verdict on test/elbo: a and b have no setting of lr and seed in common; with these in --by" in words(found)
    assert {standing(found, group)[1] for group in found.groups} == {"not compared"}
    command.write(report.build([tmp_path], by=["model"]), tmp_path / "report.html")


def test_b1_other_seeds_are_no_common_ground(tmp_path: Path) -> None:
    for seed in range(4):
        plant(tmp_path / "one" / f"{seed}", config(seed=seed, model__variant="a"), 20 + seed)
        plant(tmp_path / "two" / f"{seed}", config(seed=seed + 10, model__variant="b"), 90 + seed)
    assert "have no seed in common" in words(compared(tmp_path / "one", tmp_path / "two"))


def test_b1_settings_that_a_group_decides_are_no_circumstance(tmp_path: Path) -> None:
    """A model that brings its own beta has no cell in common with another by beta; beta is part of the model."""
    for seed in range(4):
        for variant, beta in (("vae", 1.0), ("beta_vae", 4.0)):
            plant(tmp_path / f"{variant}{seed}", config(seed=seed, model__variant=variant, objective__beta=beta), 20 + beta + seed)
    assert compared(tmp_path, by=["model"]).num_seeds == 4


def test_b1_one_group_of_a_single_seed_costs_the_others_nothing(tmp_path: Path) -> None:
    values = {name: list(20 + shift + 0.1 * RNG.normal(size=4)) for name, shift in (("a", 0), ("b", 1), ("c", 2))}
    plant_groups(tmp_path, values | {"late": [1.0]})
    found = compared(tmp_path)
    assert [group.label for group in found.compared] == ["a", "b", "c"]
    assert found.num_seeds == 4
    assert "late (3 of 4 runs missing), 1 of 4 common cells" in words(found)
    assert standing(found, found.groups[-1]) == ("untested", "not compared")


def test_b2_the_best_is_best_on_what_is_compared(tmp_path: Path) -> None:
    """a beats b in each common seed, and has two more, hard ones: its plain mean is worse."""
    seeds = np.array([20.0, 21, 19, 20.5, 19.5])
    plant_groups(tmp_path, {"a": [*seeds, 40, 41], "b": [*(seeds + 2 + 0.05 * RNG.normal(size=5))]})
    found = compared(tmp_path)
    assert found.best is not None
    assert found.best.label == "a"
    assert found.values.shape == (5, 2)
    assert verdicts(found) == {("a", "b"): "better"}
    text = words(found)
    assert text.startswith("a has the best mean of test/elbo: \N{MINUS SIGN}25.00")
    assert "It is better than b (2 of 7 runs missing), by 1.98, beyond" in text
    assert "Not told apart" not in text


@pytest.mark.parametrize("draw", range(12))
def test_b2_no_sentence_contradicts_a_test(tmp_path: Path, draw: int) -> None:
    """Random uneven designs: who is called best is ahead in every pair, and 'better' is said of those that a test found."""
    rng = np.random.default_rng(draw)
    for number in range(5):
        for seed in range(6):
            if rng.random() < 0.8:
                nll = 20 + number * rng.integers(2) + rng.normal(0, 0.3) + seed * (seed % 2)
                plant(tmp_path / f"{number}_{seed}", config(seed=seed, model__variant=f"m{number}"), float(nll))
    found = compared(tmp_path)
    best = found.best
    assert best is not None
    table = -found.values
    assert (table[best.label].mean() <= table.mean() + 1e-9).all()
    for group in found.others:
        pair = found.against_best(group)
        assert pair is not None
        assert pair.a == best.label
        assert pair.gain == pytest.approx(float((table[group.label] - table[best.label]).mean()))
        assert (pair.verdict == "better") <= (pair.p_family < 0.05 and not found.losses[best.label].count)
    text = words(found)
    assert ("It is better than" in text) == any(pair.verdict == "better" and pair.a == best.label for pair in found.pairs)


def test_b4_one_family_of_claims_a_page(tmp_path: Path) -> None:
    """What is clear in every table is claimed in one: the metric asked for, between groups."""
    rng = np.random.default_rng(1)
    for seed in range(5):
        for dim in (2, 5):
            for variant in ("vae", "other", "autoencoder"):
                nll = 30 - dim + 1.5 * (variant == "other") + 0.1 * rng.normal()
                objective = {"objective": {"name": "reconstruction"}} if variant == "autoencoder" else {}
                plain = config(seed=seed, latent_dim=dim, model__variant=variant, **objective)
                plant(tmp_path / f"{variant}{dim}{seed}", plain, nll, kl=None if objective else 5.0)
    built = report.build([tmp_path])
    elbo, nll = built.comparisons
    assert elbo.claims
    assert {pair.verdict for pair in elbo.pairs} == {"better"}
    assert not nll.claims
    assert {
        pair.verdict for pair in [*nll.pairs, *(pair for effect in [*elbo.effects, *nll.effects] for pair in effect.pairs)]
    } == {"unclaimed"}
    assert "better than" not in words(nll).replace("less nll is a better", "")
    assert "Estimate, averaged over" in words(elbo)
    assert report.build([tmp_path], metric="test/nll").comparisons[0].claims


def test_b4_sections_share_one_rate(tmp_path: Path) -> None:
    """A difference that is clear at 5 % alone is not when two sections claim."""
    rng = np.random.default_rng(0)
    rests = rng.normal(0, 0.3, (5, 2))
    rests -= rests.mean(0)
    for likelihood, loss in (("binary", "bce"), ("density", "mse")):
        for seed in range(5):
            for number in range(2):
                nll = 20 + seed + rests[seed, number] + 0.45 * number
                plain = config(seed=seed, latent_dim=2 + number, loss__name=loss)
                plant(tmp_path / likelihood / f"{number}{seed}", plain, nll, **scale(likelihood=likelihood))
    alone = compared(tmp_path / "binary", least=0.0).pairs[0]
    both = [found.pairs[0] for found in report.build([tmp_path], least=0.0).comparisons]
    assert alone.p_family == pytest.approx(alone.p)
    assert [pair.p_family for pair in both] == [pytest.approx(2 * alone.p)] * 2
    assert both[0].high - both[0].low > alone.high - alone.low


def survivors(folder: Path, lost: dict[str, Any], gone: int = 3) -> Comparison:
    """Two equal variants with good and bad seeds; of the first, the bad ones are lost."""
    rng = np.random.default_rng(2)
    for seed in range(8):
        for variant in ("a", "b"):
            run = folder / f"{variant}{seed}"
            bad = variant == "a" and seed < gone
            plant(
                run,
                config(seed=seed, model__variant=variant),
                20 + (0 if variant == "a" else 1) + 0.05 * rng.normal(),
                **(lost if bad else {}),
            )
    return compared(folder)


@pytest.mark.parametrize("how", ["failed", "infinite", "missing", "unfinished", "damaged"])
def test_b6_who_lost_runs_is_never_called_better(tmp_path: Path, how: str) -> None:
    root = tmp_path / "runs"
    found = survivors(root, {"status": "failed", "error": "NaN"} if how == "failed" else {})
    for seed in range(3):
        run = RunDir(root / f"a{seed}")
        if how == "infinite":
            content = run.read_results() or {}
            run.write_results(content | {"test": content["test"] | {"elbo": float("inf")}})
        elif how == "missing":
            run.path.rename(tmp_path / f"gone{seed}")
        elif how == "unfinished":
            run.results.unlink()
        elif how == "damaged":
            run.results.write_text("{")
    found = compared(root)
    assert found.best is not None
    assert found.best.label == "a"
    assert [pair.verdict for pair in found.pairs] == ["lost"]
    said = {"infinite": "without a finite test/elbo"}.get(how, how)
    text = words(found)
    assert f"a (3 of 8 runs {said}) has the best mean of test/elbo" in text
    assert "a is not called better than them" in text
    assert "better than b" not in text
    assert standing(found, found.best) == ("noise", "best of what is left")


def test_b6_whoever_is_complete_may_be_better_than_who_lost_runs(tmp_path: Path) -> None:
    plant_groups(tmp_path, {"a": [20.0, 20.1, 20.05, 20.2], "b": [25.0, 25.1, 25.3]})
    found = compared(tmp_path)
    assert verdicts(found) == {("a", "b"): "better"}
    assert "better than b (1 of 4 runs missing)" in words(found)


def test_b6_a_group_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    plant_groups(tmp_path, {"a": [20.0, 20.1, 20.05, 20.2], "b": [21.0, 21.1, 21.3, 21.2]})
    for seed in range(4):
        plant(tmp_path / f"dead{seed}", config(seed=seed, model__variant="dead"), status="failed", error="NaN")
    found = compared(tmp_path)
    assert [group.label for group in found.dead] == ["dead"]
    assert "Not compared, since no run is left: dead (4 of 4 runs failed)." in words(found)


def test_b6_a_group_that_is_infinite_throughout_is_lost_and_not_without_the_metric(tmp_path: Path) -> None:
    plant_groups(tmp_path, {"a": [20.0, 20.1, 20.05], "b": [21.0, 21.1, 21.3], "c": [20.5, 20.1, 22.3]})
    for seed in range(3):
        run = RunDir(tmp_path / f"c_{seed}")
        content = run.read_results() or {}
        run.write_results(content | {"test": content["test"] | {"elbo": float("nan")}})
    found = compared(tmp_path)
    assert found.without == []
    assert "no run is left: c (3 of 3 runs without a finite test/elbo)" in words(found)


def test_b1_of_groups_that_share_in_parts_the_largest_part_is_compared(tmp_path: Path) -> None:
    """Two families of variants on seeds of their own: one of them is compared, not one of each."""
    for seed in range(6):
        for variant in ("a", "b", "c") if seed < 3 else ("d", "e", "f", "g"):
            plant(tmp_path / f"{variant}{seed}", config(seed=seed, model__variant=variant), 20 + float(RNG.normal()))
    found = compared(tmp_path)
    assert {group.label for group in found.compared} == {"d", "e", "f", "g"}
    assert found.num_seeds == 3


def test_b7_images_without_any_spread_cannot_turn_a_difference_round(tmp_path: Path) -> None:
    for seed in range(4):
        for variant, nll in (("a", 20.0), ("b", 21.0)):
            value = nll + 0.25 * (seed % 2) * (variant == "a")
            run = plant(tmp_path / f"{variant}{seed}", config(seed=seed, model__variant=variant), value)
            plant_terms(run, elbo=np.full(64, -value - 5))
    found = compared(tmp_path)
    assert (found.pairs[0].verdict, found.pairs[0].image_error) == ("better", 0.0)


def plant_images(folder: Path, shift: float, spread: float, images: int = 297) -> None:
    """Two variants, five seeds; per image the difference has this mean and spread."""
    rng = np.random.default_rng(5)
    difference = rng.normal(0, spread, images)
    difference += shift - difference.mean()
    base = rng.normal(25, 5, images)
    for seed in range(5):
        for variant, terms in (("a", base), ("b", base + difference)):
            here = terms + 0.001 * rng.normal()
            run = plant(folder / f"{variant}{seed}", config(seed=seed, model__variant=variant), float(here.mean()) - 5)
            plant_terms(run, elbo=-here, nll=here - 5, kl=np.full(images, 5.0))


def test_b7_image_errors_stand_beside_those_of_seeds(tmp_path: Path) -> None:
    plant_images(tmp_path, shift=1.0, spread=1.5)
    found = compared(tmp_path)
    pair = found.pairs[0]
    assert pair.verdict == "better"
    assert pair.images == 297
    assert pair.image_error == pytest.approx(1.5 / np.sqrt(297), rel=0.1)
    assert pair.error < 0.01
    assert "from the choice of 297 test images" in words(found)
    row = tables.summary([found], ["model"]).iloc[1]
    assert (row["error_seeds"], row["error_images"]) == (pair.error, pair.image_error)


def test_b7_what_other_images_may_turn_round_is_not_better(tmp_path: Path) -> None:
    plant_images(tmp_path, shift=0.1, spread=1.5)
    found = compared(tmp_path)
    assert [pair.verdict for pair in found.pairs] == ["images"]
    assert found.pairs[0].p_family < 0.001
    assert "another test set might turn it round: b (by 0.09951 ± 0.08349 over 297" in words(found)


def test_b7_a_millionth_is_no_difference(tmp_path: Path) -> None:
    """Beyond the noise of seeds, since these have none; but of no interest."""
    plant_groups(tmp_path, {"a": [20 + 1e-7 * k for k in range(5)], "b": [20 + 1e-6 + 2e-7 * (k % 2) for k in range(5)]})
    found = compared(tmp_path)
    assert found.least == pytest.approx(0.025)  # a thousandth of the ELBO
    assert verdicts(found) == {("a", "b"): "small"}
    assert "Ahead by less than the least difference of interest, 0.025 nats per image: b (by 0.000001)" in words(found)
    assert verdicts(compared(tmp_path, least=0.0)) == {("a", "b"): "better"}


def test_b7_the_least_difference_is_said_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from vae_lab.cli import main

    plant_groups(tmp_path, {"a": [20.0, 20.1, 20.2, 20.1], "b": [21.0, 21.2, 21.1, 21.2]})
    for arguments, said in (
        ((), "It is better than b"),
        (("--least-difference", "3"), "less than the least difference of interest, 3 nats"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["vae-lab", "compare", str(tmp_path), *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 0
        assert said in " ".join(capsys.readouterr().out.split())
    for wrong in ("-1", "nan", "inf", "much"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["vae-lab", "compare", str(tmp_path), f"--least-difference={wrong}"])
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 2


@pytest.mark.parametrize("damage", ["torn", "flipped", "other", "pickle", "shape", "nan", "bomb", "header"])
def test_b7_damaged_image_terms_cost_themselves_only(tmp_path: Path, damage: str) -> None:
    plant_images(tmp_path, shift=1.0, spread=1.5)
    path = tmp_path / "a2" / "test_terms.npz"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(255 - value for value in content[200:260])
        path.write_bytes(content)
    elif damage == "header":  # says to hold more numbers than there is memory
        with zipfile.ZipFile(path, "w") as archive, archive.open("elbo.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)})
    elif damage == "pickle":
        np.savez_compressed(path, elbo=np.array([{"a": 1}], dtype=object))
    else:
        values = {"other": np.zeros(297), "shape": np.zeros((297, 2)), "nan": np.full(297, np.nan), "bomb": np.zeros(2**27)}[damage]
        np.savez_compressed(path, elbo=values)
    found = report.build([tmp_path])
    pair = found.comparisons[0].pairs[0]
    assert (pair.verdict, pair.images) == ("better", 0)
    assert any("test_terms.npz is not used" in finding.text for finding in found.findings)


def test_b8_densities_of_the_same_pixels_are_one_scale(tmp_path: Path) -> None:
    for old in (True, False):
        root = tmp_path / str(old)
        for seed in range(4):
            for loss in ("mse", "gaussian"):
                said = {} if old else scale(likelihood="density")
                plant(root / f"{loss}{seed}", config(seed=seed, loss__name=loss), 20 + seed + (loss == "mse"), **said)
        (found,) = report.build([root]).comparisons
        assert [group.label for group in found.groups] == ["gaussian", "mse"]


def test_b8_static_and_dynamic_share_their_test_draws(tmp_path: Path) -> None:
    for seed in range(4):
        for binarize in ("static", "dynamic"):
            plain = config(seed=seed, data__binarize=binarize)
            plant(tmp_path / f"{binarize}{seed}", plain, 20 + seed + (binarize == "static"), data_digest=binarize, **scale())
    (found,) = report.build([tmp_path]).comparisons
    assert [group.label for group in found.groups] == ["binarize=dynamic", "binarize=static"]


@pytest.mark.parametrize(
    ("said", "key"), [({"conditional": True}, "bound"), ({"images": "0"}, "images"), ({"likelihood": "levels"}, "likelihood")]
)
def test_b8_what_results_say_of_their_scale_keeps_runs_apart(tmp_path: Path, said: dict, key: str) -> None:
    for seed in range(3):
        plant(tmp_path / f"a{seed}", config(seed=seed), 20 + seed, **scale())
        plant(tmp_path / f"b{seed}", config(seed=seed, latent_dim=3), 5 + seed, **scale(**said))
    built = report.build([tmp_path])
    assert len(built.parts) == 2
    assert any(f"differ in {key} (" in finding.text for finding in built.findings if finding.kind == "scale")


def test_b8_runs_of_old_stand_beside_new_ones_of_the_same_data(tmp_path: Path) -> None:
    """And a run that failed without results beside those of its data set."""
    for seed in range(3):
        plant(tmp_path / f"a{seed}", config(seed=seed), 20 + seed, **scale(likelihood="cross_entropy"))
        plant(tmp_path / f"b{seed}", config(seed=seed, latent_dim=3), 21 + seed)
        RunDir(plant(tmp_path / f"c{seed}", config(seed=seed, latent_dim=4), 21 + seed)).results.unlink()
    built = report.build([tmp_path])
    assert len(built.parts) == 1
    assert [len(built.comparisons[0].groups), len(built.comparisons[0].dead)] == [2, 1]


def test_a14_a_sweep_over_objectives_shows_them(tmp_path: Path) -> None:
    """model=vae objective=elbo,iwae: beta says nothing, the objective does; a model that brings its own is named by itself."""
    iwae = {"name": "iwae", "samples": 5}
    for seed in range(3):
        plant(tmp_path / "one" / f"e{seed}", config(seed=seed), 20 + seed)
        plant(tmp_path / "one" / f"i{seed}", config(seed=seed, objective=iwae), 19 + seed, beta=None, beta_eff=None)
        plant(tmp_path / "two" / f"e{seed}", config(seed=seed), 20 + seed)
        plant(tmp_path / "two" / f"i{seed}", config(seed=seed, model__variant="iwae", objective=iwae), 19 + seed)
    built = report.build([tmp_path / "one"])
    assert built.by == ["objective"]
    assert {group.label for group in built.comparisons[0].groups} == {"elbo", "iwae"}
    assert {name for name, _ in legend(built.parts[0].section.groups, built.by)} == {"elbo", "iwae"}
    assert report.build([tmp_path / "two"]).by == ["model"]
    for seed in range(3):
        plant(tmp_path / "one" / f"b{seed}", config(seed=seed, latent_dim=3), 20 + seed)
        plant(tmp_path / "one" / f"c{seed}", config(seed=seed, latent_dim=3, objective=iwae), 19 + seed)
    built = report.build([tmp_path / "one"])
    assert built.by == ["latent_dim", "objective"]
    assert {group.label for group in built.comparisons[0].groups} == {"z=2 · elbo", "z=2 · iwae", "z=3 · elbo", "z=3 · iwae"}


def test_keys_that_move_no_number_make_no_groups(tmp_path: Path) -> None:
    for seed in range(4):
        plain = config(seed=seed, data__cache=f"c{seed}", trainer__checkpoint_every=seed + 1, evaluation__num_images=seed + 1)
        plant(tmp_path / f"{seed}", plain, 20 + seed)
    assert [group.label for group in compared(tmp_path).groups] == ["vae"]
