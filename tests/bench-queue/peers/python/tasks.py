"""A job that does nothing, and how many of them make a measurement."""

PAYLOAD = "x" * 1024
# From so many the speed is guessed; they also warm up.
FIRST = 20
MOST = 5_000


def handle(payload):
    return None


def enough(first_took, seconds):
    """Jobs that take about `seconds` when `FIRST` took `first_took`."""
    return max(FIRST, min(MOST, int(FIRST * seconds / first_took)))
