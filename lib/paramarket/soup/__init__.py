"""Soup of Experts (Ablin et al. 2025): a base and experts, trained so that every mixture of them is a good model.

And the domain weights that say which mixture a customer needs.
"""

from paramarket.soup.mixtures import (
    Clusters,
    Law,
    Teller,
    Trial,
    batches,
    by_domain,
    check_weights,
    clusters,
    domain_weights,
    draw_weights,
    look,
    plan,
    score,
    teller,
    told_loss,
    trial,
)
from paramarket.soup.soups import Soup, alone, alphas, combine, cook, one_domain_each, pretrain, soup_of, specialists

__all__ = [
    "Clusters",
    "Law",
    "Soup",
    "Teller",
    "Trial",
    "alone",
    "alphas",
    "batches",
    "by_domain",
    "check_weights",
    "clusters",
    "combine",
    "cook",
    "domain_weights",
    "draw_weights",
    "look",
    "one_domain_each",
    "plan",
    "pretrain",
    "score",
    "soup_of",
    "specialists",
    "teller",
    "told_loss",
    "trial",
]
