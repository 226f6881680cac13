"""Two specialists from one base: trained side by side, held back, judged; and routers over frozen specialists."""

from paramarket.specialists.routers import OutputRouter, Router, fit_router, routers
from paramarket.specialists.specialise import (
    HOLDS,
    free,
    frozen,
    judge,
    kinship,
    likeness,
    pulled,
    said,
    sparse,
    specialise,
)

__all__ = [
    "HOLDS",
    "OutputRouter",
    "Router",
    "fit_router",
    "free",
    "frozen",
    "judge",
    "kinship",
    "likeness",
    "pulled",
    "routers",
    "said",
    "sparse",
    "specialise",
]
