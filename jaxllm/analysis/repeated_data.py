"""How often the domains of the training data were read, and what that is worth."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import DATA, Study, analysis
from jaxllm.data.repetition import DATA_DECAY, worth

_REPEATED = 1.05  # epochs beyond which a domain is repeated
_NAMED = 3


@analysis(
    DATA, "Repeated data", place=5, needs=lambda study: bool(study.epochs),
    caption="Epochs of each domain until the last checkpoint, and the epochs of new tokens that "
    "they are worth. The law was fitted to whole corpora repeated, at fixed R* = 15.4; of a part "
    "that is repeated alone it is a guide.",
    method="Worth of repeated data (Muennighoff et al. 2023, arXiv 2305.16264).",
)  # fmt: skip
def repeated_data(study: Study) -> Finding:
    """The domains of every run, the most repeated first: `run, domain, epochs`.

    `effective` are the epochs of new tokens that they are worth, `next` what the domain's next
    token is worth as a share of a new one.
    """
    rows = [(run, *item) for run, read in study.epochs.items() for item in read.items()]
    table = pd.DataFrame(rows, columns=["run", "domain", "epochs"])
    table = table.sort_values("epochs", ascending=False, ignore_index=True)
    after = np.exp(-(table.epochs - 1).clip(lower=0) / DATA_DECAY)
    table = table.assign(effective=worth(table.epochs), next=after)
    repeated = table[table.epochs > _REPEATED]
    named = ", ".join(
        f"{row.domain} is at {row.effective:.1f} effective of {row.epochs:.1f} epochs"
        + (f" in {row.run}" if len(study.epochs) > 1 else "")
        + f" (its next token is worth {row.next:.0%} of a new one)"
        for row in repeated.head(_NAMED).itertuples()
    )
    more = f"; {len(repeated) - _NAMED} more are repeated" if len(repeated) > _NAMED else ""
    return Finding(f"{named}{more}." if named else "No domain has been read more than once.", table)
