"""t5x bridge: its train.py runs our decoder."""
