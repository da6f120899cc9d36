"""Exit with 0 if the application on this machine answers and renders, else with 1.

python scripts/healthcheck.py [URL]
"""

import sys
import urllib.error
import urllib.request

DEFAULT_URL = "http://127.0.0.1:7860/healthz"
TIMEOUT_S = 4.0
ASKS_TO_LOG_IN = 401


def is_healthy(url: str) -> bool:
    """Whether `url` answers with 200, or asks to log in, which a server does that is alive."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        with error:
            return error.code == ASKS_TO_LOG_IN
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not is_healthy(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL))
