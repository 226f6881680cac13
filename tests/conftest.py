"""What every test shares: one thread each, no window, and two small models' worth of data."""

import os

os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"})

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def digits():
    from paramarket import data

    return data.load("digits")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
