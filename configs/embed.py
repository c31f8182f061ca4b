"""The features of pictures, for other programs: `--config.checkpoint=DIR`, the work directory of a
run, and the pictures as pretraining takes them.

    python launch.py --config configs/embed.py --config.checkpoint=runs/mine \
        --config.data.name=folder --config.data.data_dir=DIR --workdir OUT

OUT gets embeddings.parquet, neighbours.png and map.html. The same command goes on where it stopped,
to the same bits. Without data.name the pictures are those of the run itself.
"""

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import default_embed


def get_config() -> ConfigDict:
    return default_embed()
