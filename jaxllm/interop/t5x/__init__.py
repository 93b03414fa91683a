"""t5x: its train.py runs our decoder."""
