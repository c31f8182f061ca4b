"""What the linear theory predicts, drawn: `configs/theory.py:FIGURE`, by default all of them.

FIGURE is figure3, figure4, figure5, figure7, figure8, figure9, figure10 (numbered as in Tian et al.
2021, arXiv 2102.06810), phase_diagram, water, direct_spectrum, euclid_and_cosine (all three of the
cosine loss), or all. Nothing is trained; it needs diffrax: pip install -e '.[theory]'.
"""

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest

FIGURES = [f"figure{n}" for n in (3, 4, 5, 7, 8, 9, 10)] + ["phase_diagram"]
FIGURES += ["water", "direct_spectrum", "euclid_and_cosine", "all"]


def get_config(figure: str = "all"):
    if figure not in FIGURES:
        raise UserError(f"figure: got {figure!r}, {nearest(figure, FIGURES)}")
    config = ConfigDict()
    config.task = "theory"
    config.figure = figure
    return config
