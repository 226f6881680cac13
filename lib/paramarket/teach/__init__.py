"""Checks of a learner's own code, in the order of the notebooks; copies of the notebooks: one's own, or unsolved."""

from paramarket.teach.checks_experts import (
    check_cka,
    check_interpolate,
    check_output_router_step,
    check_pays_after,
    check_route,
    check_soup_step,
    check_turning_step,
)
from paramarket.teach.checks_market import (
    check_best_answer,
    check_best_bid,
    check_only_training,
    check_payment_both_sign,
    check_price_from_sample,
    check_purchase,
    check_quote_and_audit,
    check_split_cents,
)
from paramarket.teach.checks_verdict import check_break_even, check_choose_way, check_examples_needed
from paramarket.teach.checks_weights import (
    check_average,
    check_match_layer,
    check_match_two_layers,
    check_merge_method,
    check_same_mistake,
    check_swap_units,
)
from paramarket.teach.copies import own_copy
from paramarket.teach.student import student_copy

__all__ = [
    "check_average",
    "check_best_answer",
    "check_best_bid",
    "check_break_even",
    "check_choose_way",
    "check_cka",
    "check_examples_needed",
    "check_interpolate",
    "check_match_layer",
    "check_match_two_layers",
    "check_merge_method",
    "check_only_training",
    "check_output_router_step",
    "check_payment_both_sign",
    "check_pays_after",
    "check_price_from_sample",
    "check_purchase",
    "check_quote_and_audit",
    "check_route",
    "check_same_mistake",
    "check_soup_step",
    "check_split_cents",
    "check_swap_units",
    "check_turning_step",
    "own_copy",
    "student_copy",
]
