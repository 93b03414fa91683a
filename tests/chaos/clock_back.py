"""`python -m jaxllm.train` with a clock that is an hour behind."""

import time

from jaxllm import cli, train

now = time.time

if __name__ == "__main__":
    time.time = lambda: now() - 3600
    cli.run(train.main)
