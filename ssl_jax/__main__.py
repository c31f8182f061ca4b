"""The program: `ssl-jax`, `python -m ssl_jax` and `python launch.py` all call `run`."""

import signal


def run() -> None:
    """Run the command line of this process to the end of the process.

    Stops are taken care of before the imports that take a while.
    """
    if hasattr(signal, "pthread_sigmask"):  # what arrives now waits for `install`
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_BLOCK, names)

    from ssl_jax.runtime import stops, terminal

    terminal.secure_streams()
    stops.install()

    import sys

    from ssl_jax import launch

    stops.run(lambda: launch.main(sys.argv, own_process=True), launch.alone)


if __name__ == "__main__":
    run()
