"""Two specialists from one base: trained side by side, held back, judged; and routers over frozen specialists."""

from paramarket.specialists.routers import OutputRouter, Router, fit_router, init_router
from paramarket.specialists.specialise import (
    PULLS,
    CoupleLosses,
    Couples,
    Kinship,
    Pull,
    block_outputs,
    couple_cka,
    couple_losses,
    free_few_weights,
    freeze_first_layers,
    kinship,
    no_pull,
    pull_to_base,
    specialise,
)

__all__ = [
    "PULLS",
    "CoupleLosses",
    "Couples",
    "Kinship",
    "OutputRouter",
    "Pull",
    "Router",
    "block_outputs",
    "couple_cka",
    "couple_losses",
    "fit_router",
    "free_few_weights",
    "freeze_first_layers",
    "init_router",
    "kinship",
    "no_pull",
    "pull_to_base",
    "specialise",
]
