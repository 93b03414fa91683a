"""`python -m jaxllm.train` that ends with a page that has no charts, and without pictures."""

from jaxllm import cli, train
from jaxllm.report import items

if __name__ == "__main__":
    items.items = lambda *_, **__: []
    cli.run(train.main)
