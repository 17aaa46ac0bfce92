"""`python -m sparsetrain.worker JOB [a.b=c ...]`: one rank, see rank.py. SIGUSR1 counts from here on, while packages
that take seconds are still being loaded."""

from __future__ import annotations

import signal

from sparsetrain.worker.notice import Notice

if __name__ == "__main__":
    notice = Notice()
    signal.signal(signal.SIGUSR1, notice.receive)
    from sparsetrain.worker.rank import main

    main(notice)
