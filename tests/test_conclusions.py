"""The sentences that experiments conclude with: golden text of constructed results.

Each experiment has a result of which its hypothesis holds, one of which it does not, and one that
cannot tell.
"""

import numpy as np
import pytest
from scipy import stats

from ssl_jax.intervals import paired
from ssl_jax.reports.experiments import phase_diagram, registry
from ssl_jax.reports.experiments.adam_l2 import (
    compared,
    conclude_adam_l2,
    ends,
    filled,
    without_gradient,
)
from ssl_jax.reports.experiments.optimizers import (
    beside_best,
    by_error,
    conclude_optimizers,
    overlap,
)
from ssl_jax.reports.experiments.random_labels import conclude_random_labels
from ssl_jax.reports.experiments.ridge import conclude_ridge
from ssl_jax.reports.experiments.signal import (
    conclude_signal,
    level,
    ratio,
    seen,
    smallest,
    trained,
)
from ssl_jax.reports.experiments.snapshots import conclude_snapshots


def score(mean, interval=None) -> dict:
    return {"mean": mean, "interval": interval}


# --- signal: a gradient that every layer sees is what training needs ------------------------------


def member(accuracy: float, *norms: float, depth=3) -> dict:
    """Training accuracy, and the powers of ten of the gradients before training, first layer to
    head.
    """
    return {
        "depth": depth,
        "train": score(accuracy),
        "log10_gradient": [list(norms), [0.0] * len(norms)],
    }


SEEN = (-1.0, -0.5, -1.5, 0.0)  # at least 0.01 in every layer
# smaller, but the first layer's within a factor of 10 of the last hidden one's
EVEN = (-4.0, -4.5, -3.5, 0.0)
FADED = (-6.0, -4.0, -2.0, 0.0)


def test_signal_that_decides():
    members = [
        member(1.0, *SEEN),
        member(0.95, *SEEN),
        member(0.1, *EVEN),
        member(0.1, *FADED, depth=10),
    ]
    assert conclude_signal(members) == (
        "Of 3 networks of 3 layers 2 trained. Of 1 networks of 10 layers 0 trained. With a "
        "gradient of at least 0.01 in every layer before training: 2 of 2. With a smaller one in "
        "some layer, but all alike within a factor of 10: 0 of 1. With a smaller one in some "
        "layer, and not alike: 0 of 1."
    )


def test_signal_that_decides_nothing():
    members = [member(0.1, *SEEN), member(1.0, *EVEN), member(0.95, *FADED)]
    assert conclude_signal(members) == (
        "Of 3 networks of 3 layers 2 trained. With a gradient of at least 0.01 in every layer "
        "before training: 0 of 1. With a smaller one in some layer, but all alike within a factor "
        "of 10: 1 of 1. With a smaller one in some layer, and not alike: 1 of 1."
    )


def test_signal_of_which_there_is_one_kind_only():
    assert conclude_signal([member(1.0, *SEEN)]).endswith(
        "before training: 1 of 1. With a smaller one in some layer, but all alike within a factor "
        "of 10: 0 of 0. With a smaller one in some layer, and not alike: 0 of 0."
    )


def test_limits_of_what_is_trained_seen_and_alike():
    assert trained(member(0.9, *SEEN)) and not trained(member(0.899, *SEEN))
    assert seen(member(1.0, -1.9, -2.0, 0.0)) and not seen(member(1.0, -1.9, -2.001, 0.0))
    assert level(member(1.0, -5.0, 0.0, -4.0, 9.0)) and not level(
        member(1.0, -5.01, 0.0, -4.0, 9.0)
    )
    assert level(member(1.0, -4.0, 0.0, -5.0, 9.0)) and not level(
        member(1.0, -4.0, 0.0, -5.01, 9.0)
    )
    # Before training: the first row. The last hidden layer is the last but one: behind it stands
    # the head.
    assert (
        ratio(member(1.0, -5.0, -1.0, -2.0, 0.0)),
        smallest(member(1.0, -1.0, -5.0, -2.0, 0.0)),
    ) == (-3.0, -5.0)


# --- adam_l2: decay is not L2 under Adam ----------------------------------------------------------


def variant(shrinkage, counts=(60, 60, 60), best=0.9, interval=0.01) -> dict:
    return {
        "shrinkage": list(shrinkage),
        "weights_in_bin": list(counts),
        "test_at_best": score(best, interval),
    }


def adam_result(adam, others=(1.0, 1.0, 1.0), sgd=(0.0, 0.003), apart=(0.0, 0.9)) -> dict:
    return {
        "gradient_scale": [1e-6, 1e-4, 1e-2],
        "variants": {
            "SGD with L2": variant(others),
            "SGD with decoupled decay": variant(others),
            "Adam with L2": variant(adam, best=0.9),
            "AdamW": variant(others, best=0.95, interval=0.02),
        },
        "distance_between_kinds": {"SGD": score(list(sgd)), "Adam": score(list(apart))},
    }


def test_adam_under_which_decay_is_not_l2():
    assert conclude_adam_l2(adam_result([2000.0, 50.0, 0.5])) == (
        "Under Adam with L2, weights with gradients of about 1e-06 shrink 4e+03 times as fast as "
        "those with gradients of about 0.01. In the three others every weight shrinks by learning "
        "rate times λ, to within 0.0001 of it. After training, SGD's weights under the two kinds "
        "of decay differ by at most 0.003 of their norm, whatever λ; Adam's by up to 0.9. At the λ "
        "that held-out images choose, AdamW reaches 95.0 % and Adam with L2 90.0 % (± 2.0 and 1.0)."
    )


def test_adam_under_which_decay_is_l2_and_others_that_stray():
    text = conclude_adam_l2(
        adam_result([1.0, 1.0, 1.0], others=(0.8, 1.0, 1.1), sgd=(0.0, 0.4), apart=(0.0, None))
    )
    assert text.startswith(
        "Under Adam with L2, weights with gradients of about 1e-06 shrink 1 times as fast as those "
    )
    assert "to within 0.2 of it" in text
    assert "SGD's weights under the two kinds of decay differ by at most 0.4 of their norm" in text
    assert "Adam's by up to 0." in text  # of the λ of which a distance is known


def test_adam_in_the_bins_that_have_enough_weights():
    """A bin of 49 weights is passed over, one of 50 is not; between the ends such a bin counts as
    little.
    """
    result = adam_result([1.0, 8.0, 0.1])
    result["variants"]["Adam with L2"]["weights_in_bin"] = [49, 50, 50]
    result["variants"]["AdamW"] |= {"shrinkage": [9.0, 1.0, 1.02], "weights_in_bin": [49, 50, 50]}
    text = conclude_adam_l2(result)
    assert "of about 0.0001 shrink 80 times as fast as those with gradients of about 0.01." in text
    assert "to within 0.02 of it" in text
    assert ends(variant([1, 2, 3], (49, 50, 49))) == (1, 1) and ends(
        variant([1, 2, 3], (50, 0, 50))
    ) == (0, 2)
    assert ends(variant([1, 2, 3], (3, 49, 4))) == (1, 1)  # none has enough: the fullest
    assert filled(variant([1, 2, 3], (50, 49, 60))) == [1, 3]


def test_adam_of_a_network_of_few_weights():
    """No bin has enough: the fullest speaks."""
    result = adam_result([5.0, 8.0, 0.1])
    for one in result["variants"].values():
        one["weights_in_bin"] = [3, 7, 2]
    result["variants"]["AdamW"]["shrinkage"] = [None, 1.3, 9.0]
    text = conclude_adam_l2(result)
    assert "of about 0.0001 shrink 1 times as fast as those with gradients of about 0.0001." in text
    assert "to within 0.3 of it" in text


def test_accuracies_of_adam_and_adamw_stand_side_by_side():
    a, b = variant([1.0], [60], best=0.9, interval=None), variant([1.0], [60], best=0.8)
    assert compared(a, b) == (
        "At the λ that held-out images choose, AdamW reaches 80.0 % and Adam with L2 90.0 % (± 1.0 "
        "and 0.0)."
    )


def test_weights_without_a_gradient():
    kinds = [(12.3456, 5, "12.3"), (12.3456, 0, ""), (None, 5, "")]
    for share, count, expected in kinds:
        assert (
            without_gradient(
                {"shrinkage_without_gradient": share, "weights_without_gradient": count}
            )
            == expected
        )


# --- optimizers: which is the best, and whether that is decided ----------------------------------


def swept(best_rate: float, best: tuple, *errors: float) -> dict:
    return {"best_rate": best_rate, "test_at_best": score(*best), "test": score(list(errors))}


def optimizers_result(**optimizers) -> dict:
    adadelta = {"test": score([0.2, 0.05, 0.9])}
    return {"rates": [0.01, 0.1, 1.0], "optimizers": optimizers, "adadelta": adadelta}


def test_optimizers_of_which_one_is_best():
    result = optimizers_result(
        sgd=swept(0.1, (0.07, 0.01), 0.3, 0.07, 0.8),
        adam=swept(0.01, (0.03, 0.01), 0.03, 0.5, 0.9),
        lion=swept(1.0, (0.06, 0.005), 0.9, 0.2, 0.06),
    )
    assert conclude_optimizers(result) == (
        "Each at its own best rate, adam has the least test error, 3.0 ± 1.0 %, and sgd the "
        "largest, 7.0 ± 1.0 %; of the others, 0 have intervals that overlap adam's. One rate below "
        "their best, at it and one above, the optimizers' median error is 25.0 / 6.0 / 65.0 %. "
        "Over all its ε and ρ, Adadelta's lies between 5.0 and 90.0 %."
    )


def test_optimizers_of_which_the_best_is_undecided():
    result = optimizers_result(
        sgd=swept(0.1, (0.07, 0.03), 0.3, 0.07, 0.8),
        adam=swept(0.1, (0.04, 0.01), 0.2, 0.04, 0.9),
        lion=swept(0.1, (0.041, 0.0), 0.4, 0.041, 0.7),
        lars=swept(0.1, (0.0501, 0.0), 0.4, 0.0501, 0.7),
    )
    text = conclude_optimizers(result)
    assert "adam has the least test error, 4.0 ± 1.0 %, and sgd the largest, 7.0 ± 3.0 %" in text
    # sgd by its own width, lion by adam's
    assert "of the others, 2 have intervals that overlap adam's" in text


def test_optimizers_of_one_seed_and_one_rate():
    result = optimizers_result(sgd=swept(1.0, (0.07,), 0.07), adam=swept(1.0, (0.04,), 0.04)) | {
        "rates": [1.0]
    }
    assert conclude_optimizers(result) == (
        "Each at its own best rate, adam has the least test error, 4.0 %, and sgd the largest, 7.0 "
        "%; of the others, 0 have intervals that overlap adam's. One rate below their best, at it "
        "and one above, the optimizers' median error is none / 5.5 / none %. Over all its ε and ρ, "
        "Adadelta's lies between 5.0 and 90.0 %."
    )


def test_neighbours_of_the_best_rate_are_those_that_there_are():
    result = optimizers_result(
        a=swept(0.01, (0.1,), 0.1, 0.2, 0.3), b=swept(1.0, (0.6,), 0.4, 0.5, 0.6)
    )
    assert [beside_best(result, by) for by in (-1, 0, 1)] == [0.5, np.median([0.1, 0.6]), 0.2]
    assert beside_best(result, 3) is None


@pytest.mark.parametrize(
    "apart, widths, expected", [(0.3, (0.1, 0.21), True), (0.3, (0.1, 0.19), False)]
)
def test_intervals_that_overlap(apart, widths, expected):
    one, other = score(0.5, widths[0]), score(0.5 + apart, widths[1])
    assert overlap(one, other) == overlap(other, one) == expected
    assert overlap(score(0.5), score(0.5)) and not overlap(score(0.5), score(0.6))


def test_order_by_the_error_that_validation_chose():
    rows = {
        "a": swept(1.0, (0.3,), 0.0),
        "b": swept(1.0, (0.1,), 0.9),
        "c": swept(1.0, (0.2,), 0.5),
    }
    assert [name for name, _ in by_error(rows)] == ["b", "c", "a"]


# --- random_labels: whether they can be learned by heart ------------------------------------------


def labelled(labels: str, augmented: bool, decay: float, train: float, test: float, curve) -> dict:
    row = {
        "labels": labels,
        "augmented": augmented,
        "weight_decay": decay,
        "train_curve": list(curve),
    }
    return row | {"train": score(train, 0.01), "test": score(test, 0.02)}


def random_result(random=(0.5, 0.7, 0.99, 0.985), true=(0.9, 0.995, 1.0, 1.0), learnt=1.0) -> dict:
    rows = [
        labelled("true", True, 0.1, 0.11, 0.12, [0.0]),  # of which nothing is to be said
        labelled("true", False, 0.1, 0.13, 0.14, [0.0]),
        labelled("true", True, 0.0, 0.15, 0.16, [0.0]),
        labelled("true", False, 0.0, 0.98, 0.97, true),
        labelled("random", False, 0.0, learnt, 0.105, random),
        labelled("random", False, 0.1, 0.6, 0.2, [0.0]),
        labelled("random", True, 0.0, 0.4, 0.3, [0.0]),
        labelled("random", True, 0.1, 0.3, 0.4, [0.0]),
    ]
    return {"rows": rows, "largest_class": 0.102}


def test_random_labels_that_are_learned_by_heart():
    assert conclude_random_labels(random_result()) == (
        "On random labels the network reaches a training accuracy of 100.0 ± 1.0 % (99 % after 2 "
        "epochs with true labels, 3 with random ones), and on test images 10.5 ± 2.0 %, where the "
        "largest class makes 10.2 %; on true labels 98.0 ± 1.0 and 97.0 ± 2.0 %. Weight decay "
        "leaves 60.0 ± 1.0 % of the random labels learnt, augmentation 40.0 ± 1.0 %, both 30.0 ± "
        "1.0 %."
    )


@pytest.mark.parametrize(
    "curves",
    [
        {"random": (0.3, 0.989, 0.4)},
        {"true": (0.9, 0.98)},
        {"random": (0.3,), "true": (0.4,)},
    ],
)
def test_random_labels_that_are_not_learned_have_no_pace(curves):
    text = conclude_random_labels(random_result(**curves, learnt=0.4))
    assert (
        "a training accuracy of 40.0 ± 1.0 %, and on test images 10.5 ± 2.0 %," in text
        and "epochs" not in text
    )


# --- snapshots: whether the ensemble is better ----------------------------------------------------


def snapshots_result(last: tuple, plain: tuple) -> dict:
    return {
        "ensemble_minus": {
            "its last member": score(*last),
            "its members, mean": score(9.0),
            "plain run": score(*plain),
        },
        "members": {"accuracy": score([0.90, 0.5, 0.94])},
        "disagreement": score(0.0175),
    }


TAIL = (
    " Two members name different classes for 1.8 % of the test images; the first one alone has "
    "90.0 %, the last 94.0 %."
)


def test_snapshots_that_are_better_and_worse():
    assert conclude_snapshots(snapshots_result((0.01, 0.005), (-0.02, 0.0199))) == (
        "The ensemble against its last member: +1.00 ± 0.50 points; against the plain run of the "
        f"same cost: -2.00 ± 1.99 points.{TAIL}"
    )


def test_snapshots_of_which_it_is_undecided():
    """Also where the interval ends at zero."""
    assert conclude_snapshots(snapshots_result((0.01, 0.01), (-0.002, 0.003))) == (
        "The ensemble against its last member: +1.00 ± 1.00 points, an interval that holds zero; "
        "against the plain run of the same cost: -0.20 ± 0.30 points, an interval that holds "
        f"zero.{TAIL}"
    )


def test_snapshots_of_a_single_seed_have_no_interval():
    assert conclude_snapshots(snapshots_result((0.01,), (0.0,))) == (
        "The ensemble against its last member: +1.00 points; against the plain run of the same "
        f"cost: +0.00 points.{TAIL}"
    )


# --- ridge: whether gradient descent goes as its eigenvalues say ----------------------------------


def descent(rate: float, factor: float, gap: float, accuracy=0.938) -> dict:
    return {
        "rate_in_units_of_1_over_L": rate,
        "factor": factor,
        "gap": gap,
        "test_accuracy": accuracy,
    }


def ridge_result(*runs: dict, newton=2.2e-10) -> dict:
    return {
        "runs": list(runs),
        "closed_accuracy": 0.938,
        "newton_error": newton,
        "step": [0, 10, 3000],
    }


def test_ridge_that_goes_as_predicted():
    result = ridge_result(
        descent(1.0, 0.98, 1e-9), descent(1.962, 0.9624, 2e-6), descent(2.1, 1.1, 7.0)
    )
    assert 0.9624**60 > 0.1 > 0.9624**61
    assert conclude_ridge(result) == (
        "The error follows the prediction from the eigenvalues to within 2e-06 of itself wherever "
        "it converges. At the best rate, 1.962 / L, a tenth of the error takes 61 steps in the "
        "end, which one Newton step reaches to 2e-10. After 3000 steps 2 of 2 converging rates "
        "classify the test images as well as the closed form does."
    )


def test_ridge_that_does_not_go_as_predicted():
    result = ridge_result(descent(1.0, 0.5, 0.7, 0.93), descent(1.2, 0.6, 0.2, 0.939), newton=0.3)
    assert conclude_ridge(result) == (
        "The error follows the prediction from the eigenvalues to within 0.7 of itself wherever it "
        "converges. At the best rate, 1.000 / L, a tenth of the error takes 4 steps in the end, "
        "which one Newton step reaches to 3e-01. After 3000 steps 0 of 2 converging rates classify "
        "the test images as well as the closed form does."
    )


def test_ridge_that_is_too_large_for_newton():
    text = conclude_ridge(ridge_result(descent(1.0, 0.5, 1e-9), newton=None))
    assert "takes 4 steps in the end. After 3000 steps 1 of 1" in text and "Newton" not in text


# --- robustness: whether layer-wise pre-weight-decay is ahead -------------------------------------


def robustness_result(difference, over, best) -> dict:
    """Two rates and two decays, of which the difference is given cell by cell."""
    cell = {"mean": 0.8, "interval": None, "learning_rate": 0.1, "weight_decay": 0.01}
    arm = {"test": score([[0.8, 0.8], [0.8, 0.8]]), "chosen": cell}
    return {
        "experiment": "robustness",
        "learning_rates": [0.01, 0.1],
        "weight_decays": [0.001, 0.01],
        "seeds": "3 seeds",
        "layers": ["head"],
        "arms": {"WD": arm, "LPWD": arm},
        "difference": score(difference),
        "difference_over_grid": score(*over),
        "difference_at_own_best": score(*best),
        "opposing": {"ratio": np.full((2, 2, 3, 2), 0.01).tolist()},
    }


@pytest.mark.parametrize(
    "difference, over, best, words",
    [
        (
            [[0.01, 0.02], [0.03, 0.0]],
            (0.015, 0.002),
            (0.004, 0.001),
            (
                "+1.50 ± 0.20 points over all cells, ahead in 3 and behind in 0 of 4 cells, +0.40 "
                "± 0.10 between"
            ),
        ),
        (
            [[-0.01, -0.02], [0.03, -0.1]],
            (-0.025, 0.002),
            (-0.004, 0.001),
            (
                "-2.50 ± 0.20 points over all cells, ahead in 1 and behind in 3 of 4 cells, -0.40 "
                "± 0.10 between"
            ),
        ),
        (
            [[None, None], [0.0, 0.0]],
            (0.0,),
            (None,),
            (
                "+0.00 points over all cells, ahead in 0 and behind in 0 of 4 cells, not finite "
                "between"
            ),
        ),
    ],
)
def test_robustness(difference, over, best, words):
    text = registry.report(robustness_result(difference, over, best))
    assert text.endswith(f"\nLPWD - WD: {words} the best cells.\n")


# --- phase_diagram: where networks live and die as predicted --------------------------------------


def test_phase_diagram_of_which_theory_and_practice_agree_and_do_not():
    def part(predicted, measured, agreement, difference):
        return {
            "predicted": predicted,
            "measured": measured,
            "agreement": agreement,
            "difference": difference,
        }

    result = {
        "config": {"digits": {"losses": ["euclidean"]}},
        "twin-none": part([[1.0, 0.5], [0.0, 0.0]], [[1.0, 0.5], [0.0, 0.0]], 1.0, 0.0),
        "twin-average": part([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], 0.0, 1.0),
        "euclidean-none": part([[1.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.0, 0.0]], 0.75, 0.25),
        "euclidean-average": part([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], 1.0, 0.0),
    }
    rows = [line.strip("| ").split(" | ") for line in phase_diagram.report(result).splitlines()]
    assert rows[0][2:] == [
        "cells that agree",
        "mean difference of shares",
        "predicted alive",
        "measured alive",
    ]
    assert rows[2:] == [
        ["linear network", "none", "100%", "0.000", "38%", "38%"],
        ["linear network", "averaged", "0%", "1.000", "100%", "0%"],
        ["digits, squared distance", "none", "75%", "0.250", "25%", "25%"],
        ["digits, squared distance", "averaged", "100%", "0.000", "0%", "0%"],
    ]


# --- What the intervals rest on -------------------------------------------------------------------


def test_intervals_are_those_of_scipy():
    """What "holds zero" rests on: Student's interval of paired differences excludes zero where the
    t test does.
    """
    a, b = np.random.default_rng(1).normal(size=(2, 4))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    expected = {
        "mean": (interval.low + interval.high) / 2,
        "interval": (interval.high - interval.low) / 2,
    }
    assert paired(a, b) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    decided = []
    for shift in np.linspace(0, 2, 9):
        a, b = rng.normal(size=5) + shift, rng.normal(size=5)
        d = paired(a, b)
        result = snapshots_result((d["mean"], d["interval"]), (0.5, 0.1))
        significant = "holds zero" not in conclude_snapshots(result)
        assert significant == (stats.ttest_rel(a, b).pvalue < 0.05)
        decided.append(significant)
    assert 0 < sum(decided) < 9
