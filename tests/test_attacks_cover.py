"""The bench is not blind: every attack has something that it breaks and a null on which it scores as chance."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shadownet.attacks import registry

FILES = ("test_attacks_weights.py", "test_attacks_live.py", "test_steal.py", "test_attacks_cli.py")

# By attack: the test in which it breaks something, then the test in which it finds nothing; or one that does both.
EVIDENCE = {
    "A0": ["a0_reads_what_is_in_the_clear_and_nothing_else"],
    "A1": ["a1_undoes_scalars"],
    "A2": ["a2_undoes_permutations_and_scalars"],
    "A3": ["a3_strips_masks_with_a_prior", "nothing_is_found_where_there_are_no_masks"],
    "A4": ["a4_strips_masks_of_the_artifact_without_a_prior", "nothing_is_found_where_there_are_no_masks"],
    "A5": ["small_masks_do_not_hide_the_order_of_channels", "unrelated_values_are_not_aligned"],
    "A6": ["a6_projects_on_the_row_space"],
    "A7": ["a7_undoes_groups_and_permuted_channels", "a7_finds_the_size_of_groups_and_gains_nothing_from_strangers"],
    "A8": ["a8_strips_low_rank"],
    "A9": ["a9_turns_rotations_back"],
    "A10": ["a_public_model_tells_a_hidden_assignment_of_channels"],
    "A11": ["masks_of_few_dimensions_are_projected_out_and_fresh_ones_stay"],
    "A12": ["a_pool_of_masks_is_seen_and_fresh_masks_are_not"],
    "A13": ["a_model_stolen_from_artifact_is_as_good_as_the_victim", "large_masks_hide_the_order"],
    "A14": ["without_integrity_every_finite_answer_passes", "with_integrity_no_wrong_answer_of_integers_passes"],
    "A15": ["repeats_average_masks_out", "exact_activations_average_to_nothing"],
    "A16": ["layers_are_peeled_off_our_own_network", "noise_alone_is_not_peeled"],
    "A17": [
        "a17_two_obfuscations_give_the_filters_exactly",
        "a17_has_nothing_from_other_models_or_from_one_half_twice",
    ],
    "A18": ["labels_alone_give_every_weight", "labels_that_do_not_follow_the_answers_give_nothing"],
    "A19": ["a19_unmixes_heavy_tailed_filters_and_no_gaussian_ones"],
    "A20": [
        "a20_reduces_integer_mixtures_to_the_filters",
        "a20_has_no_lattice_to_reduce_where_mixtures_are_rounded",
    ],
}


def quick_tests() -> set[str]:
    """Names of the tests that ``make test`` runs."""
    found: set[str] = set()
    for name in FILES:
        text = (Path(__file__).parent / name).read_text()
        for before, test in re.findall(r"((?:^@.*\n(?:^[ \)\]].*\n)*)*)^def test_(\w+)\(", text, re.MULTILINE):
            if "@pytest.mark.slow" not in before:
                found.add(test)
    return found


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_every_attack_breaks_something_and_finds_nothing_in_a_null(name: str) -> None:
    assert set(EVIDENCE[name]) <= quick_tests()
