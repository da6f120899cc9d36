"""Exit with 0 if the application on this machine answers and renders, else with 1.

python scripts/healthcheck.py [URL]
"""

import sys
import urllib.request

DEFAULT_URL = "http://127.0.0.1:7860/healthz"
TIMEOUT_S = 4.0


def is_healthy(url: str) -> bool:
    """Whether `url` answers with 200; a server that asks to log in tells this to everybody."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except OSError:  # what is no success is one as well
        return False


if __name__ == "__main__":
    sys.exit(not is_healthy(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL))
