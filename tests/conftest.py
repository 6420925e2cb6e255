"""What every test needs of the place it runs in."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts background jobs so, and the programs under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
