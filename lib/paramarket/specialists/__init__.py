"""Two specialists from one base: trained side by side, held back, measured; and routers over frozen specialists."""

from paramarket.specialists.measurements import Measurements, gradient_cosine, measure
from paramarket.specialists.routers import OutputRouter, Router, fit_router, init_router
from paramarket.specialists.specialise import (
    Couples,
    Kinship,
    block_outputs,
    kinship,
    specialise,
)

__all__ = [
    "Couples",
    "Kinship",
    "Measurements",
    "OutputRouter",
    "Router",
    "block_outputs",
    "fit_router",
    "gradient_cosine",
    "init_router",
    "kinship",
    "measure",
    "specialise",
]
