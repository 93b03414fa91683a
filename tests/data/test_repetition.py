"""The worth of repeated data, against the published table and measured losses."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.registry import Study
from jaxllm.analysis.repeated_data import repeated_data
from jaxllm.data.repetition import DATA_DECAY, check_epochs, worth

# Muennighoff et al. (2023), the unrounded coefficients of their code.
A, B, E, EXPONENT = np.exp(6.255414), np.exp(7.3049974), np.exp(0.6254804), 0.35266
PARAMS_DECAY = 5.3097  # R_N*


def test_the_published_table_comes_out() -> None:
    table = [1.97, 3.73, 6.62, 10.6, 15.2]
    np.testing.assert_allclose(worth([2, 4, 8, 16, 40]), table, rtol=0.005)
    assert worth(0.4) == pytest.approx(0.4) and worth(1.0) == pytest.approx(1.0)
    assert worth(1e9) == pytest.approx(1 + DATA_DECAY)


def test_more_of_it_is_never_worth_less_and_always_worth_less_than_new() -> None:
    times = np.linspace(0.1, 200, 4000)
    assert (np.diff(worth(times)) > 0).all() and (worth(times) <= times).all()
    assert (np.diff(worth(times), 2) < 1e-9).all()


def test_the_decay_explains_measured_losses(shared_data) -> None:
    """Final losses on C4; R^2 of the published law about .36, without its decay terms .27."""
    runs = pd.read_csv(shared_data / "reference" / "repeated_data" / "contour_losses.csv.gz")
    runs = runs[runs["index"] != 7]  # whose number of epochs was misread
    n, d, unique = (runs[c].to_numpy() for c in ("num_params", "token_num", "unique_tokens"))

    def r2(n, d):
        fitted = E + A / n**EXPONENT + B / d**EXPONENT
        return 1 - ((fitted - runs.loss) ** 2).sum() / ((runs.loss - runs.loss.mean()) ** 2).sum()

    optimal = np.minimum(n, (A / B) ** (1 / EXPONENT) * unique)
    decayed = optimal * worth(n / optimal, PARAMS_DECAY), unique * worth(d / unique)
    assert r2(*decayed) > r2(n, d) + 0.05


def test_advice_names_domain_epochs_and_worth() -> None:
    (warning,) = check_epochs({"code": 8.0, "web": 1.5}, 100)
    assert "code is read 8.0 times in 100 steps, worth 6.6 epochs of new tokens" in warning
    found = repeated_data(Study(pd.DataFrame(), epochs={"r": {"web": 0.4, "code": 8.0}}))
    assert found.sentence == (
        "code is at 6.6 effective of 8.0 epochs (its next token is worth 63% of a new one)."
    )
    assert list(found.table.domain) == ["code", "web"]
    once = repeated_data(Study(pd.DataFrame(), epochs={"r": {"web": 0.4}}))
    assert once.sentence == "No domain has been read more than once."
