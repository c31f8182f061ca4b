"""Run a task from the command line: `ssl_jax.launch` says how, and `ssl-jax` is the same command.

python launch.py --config configs/NAME.py[:ARG] --workdir DIR [--config.section.field=VALUE ...]
"""

if __name__ == "__main__":
    from ssl_jax.__main__ import run

    run()
