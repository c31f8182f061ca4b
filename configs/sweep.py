"""Any fields of any configuration that trains, each value with each seed.

    python launch.py --config configs/sweep.py --config.of=configs/cifar10_small.py:byol \\
        --config.vary='target.tau=0,0.9,0.996; optimizer.predictor.learning_rate=0.03,0.3' \\
        --config.seeds=0,1,2 --workdir runs/tau

Each cell is an ordinary run in DIR/FIELD=VALUE+FIELD=VALUE/seed-N. More values or seeds on the same
directory run what is new.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "sweep"
    config.sweep = ""  # a table's name: configs/sweeps/
    config.of = ""  # the configuration that the cells start from, as --config takes it
    # FIELD=VALUE,VALUE,...; FIELD=...: one value fixes a field, several vary it. With commas in a
    # value: FIELD=(0.2,1),(0.08,1)
    config.vary = ""
    # the first values of all fields together, the second ones, ...; else every combination
    config.pair = False
    # so many cells, drawn from the values and from ranges: FIELD=0.1..0.9, 4..64, log:1e-4..1e-1;
    # 0: none is drawn
    config.random = 0
    config.draw_seed = 0
    config.seeds = (0,)
    # cells that differ in numbers alone (rates, decays, tau, rho, eps, seeds) train by one program:
    # so many at once; 1 or False: each by itself; auto: as many as fit an accelerator, 1 on a CPU
    config.together = "auto"
    # after so many, the cell at work is saved and left, to be gone on with; 0: no end
    config.minutes = 0.0
    # for cells at which other processes are, to take them over should those end; False: leave them
    config.wait = True
    return config
